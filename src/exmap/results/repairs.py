"""What is written of the repairs that were tried: which one was kept, and what a dearer one would give."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from pydantic import Field

from exmap.results.part import Number, Part

__all__ = ["RepairTrial", "repairs_in_words"]


class RepairTrial(Part):
    """A repair that was tried, measured on held-out images that its fit or its epoch was not chosen by."""

    name: str = Field(description="The learner, with its options.")
    worst: Number = Field(description="Accuracy in the worst pseudo-group, in [0, 1]; null where not measured.")
    low: Number = Field(description="Lower end of its 90 % bootstrap interval; null likewise.")
    high: Number = Field(description="Upper end of that interval; null likewise.")
    gain: Number = Field(
        description="Its accuracy in the worst pseudo-group less that of the repair that was kept; null likewise.",
    )
    gain_low: Number = Field(
        description="Lower end of the 90 % interval of the gain, paired over images; null likewise."
    )
    gain_high: Number = Field(description="Upper end of that interval; null likewise.")
    seconds: Number = Field(description="Spent on it; null where it was not tried.")
    trainings: Number = Field(
        description="Images that its training shows, in trainings of the classifier (epochs times training images); "
        "one whose features alone are computed counts a third. An upper bound where only the last layers are trained; "
        "null where it is not known.",
    )
    kept: bool = Field(False, description="Whether it is the repair that was kept.")
    harm: str = Field(
        "", description="Why it leaves the classifier as it is: it makes a class worse, say; empty where it does not."
    )
    why: str = Field("", description="Why it was not measured; empty where it was.")

    @classmethod
    def not_measured(cls, name: str, why: str, *, kept: bool = False) -> RepairTrial:
        """Return the record of a repair that was not measured, and why."""
        numbers = dict.fromkeys(("worst", "low", "high", "gain", "gain_low", "gain_high", "seconds", "trainings"), nan)
        return cls(name=name, why=why, kept=kept, **numbers)

    @property
    def measured(self) -> bool:
        """Whether it was tried, and could be."""
        return self.worst == self.worst


def repairs_in_words(trials: Sequence[RepairTrial]) -> str:
    """State which repair was kept, and what each other one would gain or lose; empty where that was not measured.

    Examples
    --------
    >>> numbers = {"gain": 0, "gain_low": 0, "gain_high": 0, "seconds": 3, "trainings": 0.1}
    >>> kept = RepairTrial(name="dfr", worst=0.8, low=0.7, high=0.9, kept=True, **numbers)
    >>> print(repairs_in_words([kept, RepairTrial.not_measured("rwg", "it was not tried")]))
    The repair that was kept is dfr, with 80.0 % right in the worst pseudo-group (70.0 to 90.0 %). rwg was not measured:
    it was not tried.
    """
    kept = next((trial for trial in trials if trial.kept), None)
    if kept is None or not kept.measured:
        return ""
    measured = [trial for trial in trials if trial.measured]
    others = [trial for trial in measured if not trial.kept]
    harmless = measured if kept.harm else [trial for trial in measured if not trial.harm]
    best = max(harmless, key=lambda trial: trial.worst)
    why = ""
    if others:
        why = (
            f", the best of those that {'were tried' if len(harmless) == len(measured) else 'can be kept'}"
            if kept.worst == best.worst
            else f", the cheapest that is within noise of the best ({best.name})"
        )
    said = [
        f"The repair that was kept is {kept.name}{why}, with {100 * kept.worst:.1f} % right in the worst pseudo-group "
        f"({100 * kept.low:.1f} to {100 * kept.high:.1f} %)"
    ]
    for trial in others:
        verb = "gain" if trial.gain >= 0 else "lose"
        sign = 1 if trial.gain >= 0 else -1
        low, high = sorted(100 * sign * end for end in (trial.gain_low, trial.gain_high))
        noise = ", within noise" if low <= 0 <= high else ""
        points = f"{abs(100 * trial.gain):.1f} points ({low:.1f} to {high:.1f}{noise})"
        but = f", but {trial.harm}" if trial.harm else ""
        said.append(f"{trial.name} would {verb} {points}{_cost(trial)}{but}")
    said += [f"{trial.name} was not measured: {trial.why}" for trial in trials if trial.why]
    return ". ".join(said) + "."


def _cost(trial: RepairTrial) -> str:
    """Return what a repair costs as a part of a sentence; empty where that is not known."""
    if trial.trainings != trial.trainings:
        return ""
    return f" at up to {trial.trainings:.2g} times the cost of training the classifier"
