"""What an audit found as a model card in Markdown, to stand beside a classifier's weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from exmap.plain_text import printable
from exmap.results.findings import Accuracy, Change, Findings

__all__ = ["model_card"]

VERDICTS = {"shortcut": "A shortcut was found.", "none": "No shortcut was found.", "cannot say": "Nothing can be said."}
GROUPS_SHOWN = 12  # the weakest


def model_card(findings: Findings) -> str:
    """Return the card; whatever comes from data is escaped.

    Parameters
    ----------
    findings : Findings
    """
    data, repair, model = findings.data, findings.repair, findings.model
    made = {**findings.made_with, "seconds": f"{findings.seconds:,.0f}" if findings.seconds else ""}
    parts = [
        f"# Audit of {_text(model.name)}",
        f"**{VERDICTS[findings.verdict]}** {_text(findings.summary)}",
        *(f"- {_text(sentence)}" for sentence in findings.shortcuts),
        *(f"- Warning: {_text(warning)}" for warning in findings.warnings),
        "## Before and after",
        _text(repair.why),
        _table("images", [findings.overall, *findings.measured]),
        f"Measured on {_text(findings.measured_on)}. Intervals hold 95 % of bootstrap draws of the images.",
        "## Groups that were found",
        "Images that the classifier treats alike, within each class. No group label was used to find them. Differences "
        "in accuracy alone are no evidence of a shortcut: hard images form groups, too.",
        _table("group", findings.groups[:GROUPS_SHOWN]),
        *_sentences(findings),
        *_gain(findings),
        "## Classifier and images",
        _bullets(
            [
                ("Classifier", model.name),
                ("Weights", f"{model.weights} (SHA-256 {model.digest[:16]})" if model.weights else "as built"),
                ("Classes", ", ".join(model.classes)),
                ("Outputs", ", ".join(map(str, model.outputs))),
                ("Images", f"{data.images:,} of {data.name} ({_counted(data.by_class)})"),
                ("Left out", f"{len(data.skipped):,} that could not be read" if data.skipped else ""),
                ("Ignored files", _counted(data.ignored)),
                ("Second set", f"{data.test_images:,} images" if data.test_images else ""),
                ("Repaired classifier", repair.model),
                *((title, value) for title, value in made.items()),
            ]
        ),
        *(f"- {_text(note)}" for note in findings.notes),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _sentences(findings: Findings) -> list[str]:
    said = [
        f"- {_text(each.name)}: {_text(each.description.sentence)}"
        for each in findings.groups[:GROUPS_SHOWN]
        if each.description is not None and each.description.sentence
    ]
    return ["\n".join(said)] if said else []


def _gain(findings: Findings) -> list[str]:
    last = findings.repair.last_layer
    if last is None or last.gain is None or last.gain_low is None or last.gain_high is None:
        return []
    said = (
        f"What retraining the last layer gains in the worst group, with the group picked on one half of the images and "
        f"measured on the other: {100 * last.gain:+.0f} points (90 % interval {100 * last.gain_low:+.0f} to "
        f"{100 * last.gain_high:+.0f})."
    )
    if last.images_needed is not None:
        said += f" The deciding group has {last.images:,} images; {last.images_needed:,} would settle it."
    return [said]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(title: str, rows: Sequence[Change]) -> str:
    lines = [f"| {title} | number | before | after |", "|---|---:|---:|---:|"]
    lines += [f"| {_text(row.name)} | {row.images:,} | {_share(row.before)} | {_share(row.after)} |" for row in rows]
    return "\n".join(lines)


def _share(value: Accuracy | None) -> str:
    if value is None or value.value != value.value:
        return ""
    return f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})"


def _bullets(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {title}: {_text(value)}" for title, value in rows if value)


def _text(value: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    plain = printable(" ".join(value.split()))
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", plain)
