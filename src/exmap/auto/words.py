"""What a choice of groups says, in sentences: made of its record alone, for the command line and the report page."""

from __future__ import annotations

from math import hypot

from exmap.results import AutoRecord, LastLayerVerdict

__all__ = ["confidence", "last_layer", "mislabelled", "more_images", "remarks", "verdict"]

NAMES_SHOWN = 5  # classes in a sentence
LEAST_GAIN = 0.01  # in accuracy, that counts as one


def verdict(record: AutoRecord) -> str:
    """State whether there is a shortcut, and what was done about it."""
    if record.chosen is None:
        return record.why
    found = [f"class {name}" for name, finding in record.shortcut.items() if finding.found]
    if found:
        count = f" ({len(found)} of {len(record.shortcut)} classes)"
        return f"A shortcut was found in {_listed(found)}{count}; the classifier was retrained on the chosen groups."
    if record.repaired:
        return (
            "No shortcut was found; the classifier was retrained on the chosen groups anyway, because "
            "auto.only_if_found is false."
        )
    return "No shortcut was found; the classifier is left as it is."


def confidence(record: AutoRecord) -> str:
    """State how sure the choice is; empty where nothing was chosen."""
    if record.chosen is None:
        return ""
    runner_up = f"The runner-up is {record.runner_up}." if record.runner_up else "No other grouping may be chosen."
    return (
        f"Confidence {record.confidence:.0%}: the chance that the chosen grouping is within 2 points of the best one, "
        f"in accuracy of the worst group. {runner_up}"
    )


def last_layer(record: AutoRecord) -> str:
    """State whether retraining the last layer is enough, why, and what to expect of it; empty where not measured."""
    repair = record.repair
    if repair is None:
        return ""
    said = {
        True: "Retraining the last layer is enough.",
        False: "Retraining the last layer is not enough.",
        None: "Whether retraining the last layer is enough cannot be said.",
    }[repair.last_layer_suffices]
    return " ".join(filter(None, (said, repair.why, _expected(repair, record.repaired))))


def _expected(repair: LastLayerVerdict, repaired: bool) -> str:
    """State how the accuracy of the worst chosen group will change; empty where that was not measured."""
    before, gain, low, high = repair.before, repair.gain, repair.gain_low, repair.gain_high
    if before is None or gain is None or low is None or high is None:
        return ""
    about, least, most = (min(max(before + each, 0.0), 1.0) for each in (gain, low, high))
    change = f"from {before:.0%} to about {about:.0%} (90% interval {least:.0%} to {most:.0%})"
    if low <= 0 <= high:
        return f"No clear change is to be expected in the worst chosen group: {change}."
    if repaired:
        return f"Expect the worst chosen group to go {change}."
    return f"Retraining it would take the worst chosen group {change}."


def more_images(record: AutoRecord) -> str:
    """State whether the last step of the data curve was a gain beyond chance; empty where there are no two points."""
    curve = record.data_curve
    if len(curve) < 2:
        return ""
    fewer, all_of_them = curve[-2], curve[-1]
    gain = all_of_them.worst_group_accuracy - fewer.worst_group_accuracy
    helps = gain > max(hypot(fewer.spread, all_of_them.spread), LEAST_GAIN)
    return (
        f"From {fewer.images:,} to {all_of_them.images:,} images the worst chosen group goes from "
        f"{fewer.worst_group_accuracy:.0%} to {all_of_them.worst_group_accuracy:.0%} right, "
        + (
            "more than draws differ: more labelled images are likely to help."
            if helps
            else "no more than draws differ: nothing says that more images of the same kind would help."
        )
    )


def mislabelled(record: AutoRecord) -> str:
    """State how many images look mislabelled, by class; empty where none does."""
    counts: dict[str, int] = {}
    for each in record.mislabelled:
        counts[each.class_name] = counts.get(each.class_name, 0) + len(each.images)
    if not counts:
        return ""
    some = _listed([f"{count:,} of {name!r}" for name, count in counts.items()])
    return (
        f"Images that look mislabelled: {some}. They were left out of the test and of the groups. Look at them first, "
        "because a strong shortcut can make right labels look wrong. Then correct their labels, or leave them out, in "
        "a file of edits (relabel, leave_out)."
    )


def remarks(record: AutoRecord) -> list[str]:
    """Return the remarks that the verdict does not make already."""
    return [remark for remark in record.remarks if remark != record.why]


def _listed(names: list[str]) -> str:
    """Return names as a part of a sentence, the first few of many."""
    if len(names) > NAMES_SHOWN:
        return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
