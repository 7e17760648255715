"""Is there a shortcut? A property that predictions follow, and images that it leads astray.

Two things are asked of a shortcut in a class, and both must be shown at the level that is asked for:

1. Predictions follow a property: the randomised exchange of :mod:`exmap.exchange.trial`, corrected for all properties
   and classes.
2. It does harm: images of the class whose own property votes for another class are classified wrong more often than
   the others. Null hypothesis: among images of the class, being classified wrong does not depend on what the property
   votes for. The votes take no label, so Fisher's exact test holds, corrected for all properties and classes that are
   tested.

The p-value of a class is the larger of both: the null hypothesis "there is no shortcut" is that at least one of the two
holds, so the level holds without a further correction (an intersection-union test; Berger, 1982). Hard images alone do
not pass the first, since the exchange is randomised; a property that the classifier reads, but that does no harm, does
not pass the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import fisher_exact

from exmap.auto.candidates import AUTO, Candidate
from exmap.auto.exchange import Exchanges
from exmap.auto.intervene import Intervention, intervene
from exmap.auto.shortcut import ShortcutTest, upper_bound
from exmap.exchange import Looks
from exmap.groups import crossed_groups
from exmap.records import Explained, IntArray, Listener, Progress, silent
from exmap.results import ClassFinding, PropertyReliance
from exmap.settings import AutoSettings

__all__ = ["exchange_candidates", "find_by_exchanges", "reactions", "verified_names"]

FEWEST = 3  # images that go against a property, for errors among them to be tested


@dataclass(frozen=True)
class _Evidence:
    """A property and a class: how far it is relied on, and the errors of images for and against it."""

    reliance: PropertyReliance
    against: IntArray
    images: int
    wrong: int
    others: int
    others_wrong: int

    @property
    def errors_p_value(self) -> float:
        table = [[self.wrong, self.images - self.wrong], [self.others_wrong, self.others - self.others_wrong]]
        return float(fisher_exact(table, alternative="greater").pvalue)


def find_by_exchanges(exchanges: Exchanges, explained: Explained, settings: AutoSettings | None = None) -> ShortcutTest:
    """Test every class.

    Parameters
    ----------
    exchanges : Exchanges
        Measured on these images.
    explained : Explained
    settings : AutoSettings, optional
        The level.
    """
    settings = settings or AutoSettings()
    evidence = {name: _evidence(exchanges, explained, label) for label, name in enumerate(explained.class_names)}
    tested = sum(len(each) for each in evidence.values())
    findings = {name: _finding(name, each, tested, exchanges, settings) for name, each in evidence.items()}
    return ShortcutTest(findings, tested)


def exchange_candidates(exchanges: Exchanges, explained: Explained) -> tuple[Candidate, ...]:
    """Return a grouping of each property that predictions follow: each class's images for it and against it."""
    made = []
    for prop in exchanges.votes:
        against = exchanges.against(prop, explained.labels)
        if (against >= 0).all() and against.any():
            names = (f"{prop} of its own class", f"{prop} of another class")
            groups = crossed_groups(explained.labels, against, explained.class_names, source=AUTO, part_names=names)
            made.append(Candidate(f"exchange[property={prop}]", f"exchange {prop}", groups))
    return tuple(made)


def verified_names(test: ShortcutTest) -> list[str]:
    """Return the names of the groupings that the experiment found a shortcut in."""
    return sorted({each.candidate for each in test.classes.values() if each.found and each.property})


def reactions(
    looks: Looks, exchanges: Exchanges, explained: Explained, *, seed: int, listen: Listener = silent
) -> dict[str, Intervention]:
    """Return, by class, what images against its property do with that of the others, beside images as hard.

    Only of classes for which both null hypotheses are rejected at 0.05 before correction.
    """
    found = {}
    for label, name in enumerate(explained.class_names):
        listen(Progress("reactions", label, len(explained.class_names), "classes", name))
        each = min(_evidence(exchanges, explained, label), key=lambda e: e.errors_p_value, default=None)
        if each is not None and each.errors_p_value <= 0.05:
            found[name] = intervene(looks.predict_input, looks.images, explained, each.against, seed=seed)
    return found


def _evidence(exchanges: Exchanges, explained: Explained, label: int) -> list[_Evidence]:
    """Return the properties that predictions of a class follow, with enough images for and against."""
    found, wrong = [], ~explained.correct
    for reliance in exchanges.of(explained.class_names[label]):
        if not reliance.relied_on or reliance.property not in exchanges.votes:
            continue
        against = exchanges.against(reliance.property, explained.labels)
        members = explained.labels == label
        led, rest = members & (against == 1), members & (against == 0)
        if led.sum() >= FEWEST and rest.sum() >= FEWEST:
            counts = (int(led.sum()), int(wrong[led].sum()), int(rest.sum()), int(wrong[rest].sum()))
            found.append(_Evidence(reliance, np.flatnonzero(led).astype(np.int64), *counts))
    return found


def _finding(
    name: str, evidence: list[_Evidence], tested: int, exchanges: Exchanges, settings: AutoSettings
) -> ClassFinding:
    """Return what is said of one class."""
    reliances = exchanges.of(name)
    if not reliances:
        return ClassFinding.nothing(None, "Too few of its images are classified right to exchange their properties.")
    if not evidence:
        followed = [each.property for each in reliances if each.relied_on]
        if not followed:
            names = _listed([each.property for each in reliances], "nor")
            return ClassFinding.nothing(False, f"Its predictions follow {names} of the image.")
        return ClassFinding.nothing(
            False,
            f"Its predictions follow the {_listed(followed, 'and')}, but hardly any of its images here goes against "
            "it, so these images cannot say what harm it does.",
        )
    values = [max(each.reliance.p_value, min(1.0, each.errors_p_value * tested)) for each in evidence]
    best = int(np.argmin(values))
    each, p_value = evidence[best], values[best]
    prop, rate, rest = each.reliance.property, each.wrong / each.images, each.others_wrong / each.others
    found = p_value <= settings.level
    reaction = exchanges.reactions.get(name)
    restored, matched = (None, None) if reaction is None or reaction.restored is None else reaction.restored
    why = (
        f"{each.reliance.why} Of the {each.images} images whose {prop} speaks for another class {rate:.0%} are "
        f"classified wrong, of the other {each.others} {rest:.0%}"
    )
    if not found:
        why += ", which is no clear difference"
    return ClassFinding(
        found=found,
        p_value=p_value,
        effect=rate - rest,
        effect_low=1 - upper_bound(each.images - each.wrong, each.images) - upper_bound(each.others_wrong, each.others),
        images=each.images,
        conductance=None,
        candidate=f"exchange[property={prop}]",
        property=prop if found else "",
        restored=restored,
        restored_matched=matched,
        why=f"{why}.{_restored(reaction)}",
    )


def _restored(reaction: Intervention | None) -> str:
    """State what an exchange restores, where that was measured."""
    if reaction is None or reaction.restored is None or None in reaction.restored:
        return ""
    group, matched = reaction.restored
    return (
        f" Given the {reaction.exchanged} of the others, {group:.0%} of those wrong ones are classified right, against "
        f"{matched:.0%} of images as hard."
    )


def _listed(names: list[str], last: str) -> str:
    """Return names as a part of a sentence."""
    if len(names) < 2:
        return "".join(names)
    first = "neither " if last == "nor" else ""
    return f"{first}{', '.join(names[:-1])} {last} {names[-1]}"
