"""The paper's figures of a finished run, as files: what is shown is chosen here, how it is drawn is in ``report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from exmap.data import Split, array_split
from exmap.errors import SettingsError, unknown_name
from exmap.explain import compute_heatmaps
from exmap.finished import FinishedRun
from exmap.records import Heatmaps, IntArray, Listener, silent
from exmap.report import comparison_figure, embedding_figure, mistakes_figure, save_figure, strategies_figure
from exmap.runtime import generator
from exmap.stages import reported_groups, sample_rows

__all__ = ["Drawn", "draw_figures", "figure_names"]

COMPARED, MISTAKES = 8, 12  # images shown
GROUPS_SHOWN, SAMPLES_SHOWN = 16, 5


@dataclass(frozen=True)
class Drawn:
    """What became of one figure.

    Attributes
    ----------
    name : str
    paths : tuple of Path
        Empty where it was not drawn.
    note : str
        Why it was not drawn, or what is missing in it; empty if there is nothing to say.
    """

    name: str
    paths: tuple[Path, ...] = ()
    note: str = ""


Made = tuple[Any, str]  # a figure, or None, and what is to be said


def draw_figures(
    finished: FinishedRun, out: Path, names: Sequence[str] = (), *, listen: Listener = silent
) -> list[Drawn]:
    """Write figures as PNG and PDF into a folder.

    Parameters
    ----------
    finished : FinishedRun
    out : Path
        Made if it does not exist.
    names : sequence of str
        Of :func:`figure_names`; by default all.
    listen : Listener

    Returns
    -------
    list of Drawn
        In order. A figure whose images, true groups or retrained head are not there is left out, with a sentence.

    Raises
    ------
    SettingsError
        For an unknown name.
    """
    for name in names:
        if name not in FIGURES:
            raise SettingsError(unknown_name("figure", name, FIGURES))
    drawn = []
    for name, make in FIGURES.items():
        if names and name not in names:
            continue
        figure, note = make(finished, listen)
        if figure is None:
            drawn.append(Drawn(name, (), note))
            continue
        out.mkdir(parents=True, exist_ok=True)
        drawn.append(Drawn(name, tuple(save_figure(figure, out / name)), note))
    return drawn


def figure_names() -> list[str]:
    """Return the names of the figures, in order."""
    return list(FIGURES)


def _comparison(finished: FinishedRun, listen: Listener) -> Made:
    """Show test images by the trained and by the repaired classifier (the paper's figure 4)."""
    if why := _no_repair(finished):
        return None, why
    test, trained, repaired = _test_predictions(finished)
    mended = np.flatnonzero((trained != test.labels) & (repaired == test.labels))
    found = f"{len(mended):,} of {len(test):,} test images that only the repaired classifier gets right"
    title = f"{found}: drawn at random, classes in turn"
    candidates = mended
    if not len(mended):
        candidates = np.arange(len(test))
        title = "Test images drawn at random, classes in turn; none is right after retraining that was wrong before"
    rows = _in_turn(candidates, test.labels, COMPARED, generator(finished.settings.seed, "figures", "comparison"))
    images, classes = test.images.pixels(rows), test.class_names
    index, names = reported_groups(test)
    return comparison_figure(
        images,
        _explained(finished, "train", test, rows, listen).values,
        _explained(finished, "retrain", test, rows, listen).values,
        titles=[names[index[row]] for row in rows],
        said_before=[f"says {classes[trained[row]]}" for row in rows],
        said_after=[f"says {classes[repaired[row]]}" for row in rows],
        title=title,
    ), ""


def _strategies(finished: FinishedRun, _: Listener) -> Made:
    """Show sample images by pseudo-group."""
    if not finished.splits:
        return None, finished.no_images
    grouped, correct = finished.splits["grouped"], finished.predicted == finished.labels
    rng = generator(finished.settings.seed, "report")  # as in the run's own picture
    rows = sample_rows(finished.groups, grouped.images, finished.heatmaps, correct, rng=rng)
    return strategies_figure(rows), ""


def _true_groups(finished: FinishedRun, _: Listener) -> Made:
    """Show sample images by true group (the paper's figure 5)."""
    if finished.oracle is None:
        return None, "the data set has no true groups"
    if not finished.splits:
        return None, finished.no_images
    correct, truth = finished.predicted == finished.labels, finished.oracle
    rows = sample_rows(
        truth,
        finished.splits["grouped"].images,
        finished.heatmaps,
        correct,
        rng=generator(finished.settings.seed, "figures", "groups"),
        most=GROUPS_SHOWN,
        samples=SAMPLES_SHOWN,
    )
    there = int((truth.counts() > 0).sum())
    shown = f" ({len(rows)} of {there})" if len(rows) < there else ""
    title = f"Heatmaps by true group{shown}: image | relevance (red for, blue against); those it gets wrong most, first"
    return strategies_figure(rows, columns=SAMPLES_SHOWN, title=title), ""


def _embedding(finished: FinishedRun, _: Listener) -> Made:
    """Show true groups beside pseudo-groups (the supplement's figure 3)."""
    panels = [("pseudo-groups (no group label used)", finished.groups.index, finished.groups.names)]
    note = "the data set has no true groups: the pseudo-groups stand alone"
    if finished.oracle is not None:
        note = ""
        panels.insert(0, ("true groups", finished.oracle.index, finished.oracle.names))
    title = f"Heatmaps of {len(finished.ids):,} images ({finished.split_name}) in the plane"
    return embedding_figure(finished.coordinates, panels, title=title), note


def _mistakes(finished: FinishedRun, listen: Listener) -> Made:
    """Show what the repaired classifier gets wrong most surely (the supplement's figure 2)."""
    if why := _no_repair(finished):
        return None, why
    head, features = finished.repaired_head(), finished.outputs("test").features
    assert head is not None
    test, _, repaired = _test_predictions(finished)
    wrong = np.flatnonzero(repaired != test.labels)
    if not len(wrong):
        return None, "the repaired classifier gets every test image right"
    sure = softmax(features[wrong] @ head.weight.T + head.bias, axis=1).max(axis=1)
    order = np.argsort(-sure, kind="stable")[:MISTAKES]
    rows, classes = wrong[order], test.class_names
    index, names = reported_groups(test)
    captions = [
        f"{names[index[row]]}:\nsays {classes[repaired[row]]}, {share:.0%} sure"
        for row, share in zip(rows, sure[order], strict=True)
    ]
    title = f"The surest of {len(wrong):,} mistakes of the repaired classifier on {len(test):,} test images"
    maps = _explained(finished, "retrain", test, rows, listen)
    return mistakes_figure(test.images.pixels(rows), maps.values, captions, title=title), ""


FIGURES: dict[str, Callable[[FinishedRun, Listener], Made]] = {
    "comparison": _comparison,
    "strategies": _strategies,
    "true-groups": _true_groups,
    "embedding": _embedding,
    "mistakes": _mistakes,
}


def _no_repair(finished: FinishedRun) -> str:
    """Return why the repaired classifier cannot be shown on images, or nothing if it can."""
    if finished.repaired_head() is None:
        return f"the run is not retrained; finish it with exmap evaluate {finished.run.path}"
    return finished.no_images


def _test_predictions(finished: FinishedRun) -> tuple[Split, IntArray, IntArray]:
    """Return the test split, and the classes that the trained and the repaired classifier predict for it."""
    head, outputs = finished.repaired_head(), finished.outputs("test")
    assert head is not None
    return finished.splits["test"], outputs.predicted, head.predict(outputs.features)


def _in_turn(rows: IntArray, labels: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Draw rows at random, one of each class after the other, and return them class by class.

    Examples
    --------
    >>> _in_turn(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), 3, np.random.default_rng(0))[-1]
    np.int64(5)
    """
    drawn = rng.permutation(rows)
    turn = np.empty(len(drawn), dtype=np.int64)
    for label in np.unique(labels[drawn]):
        of_class = labels[drawn] == label
        turn[of_class] = np.arange(of_class.sum())
    first = drawn[np.lexsort((labels[drawn], turn))][:count]
    return np.asarray(first[np.argsort(labels[first], kind="stable")])


def _explained(finished: FinishedRun, stage: str, split: Split, rows: IntArray, listen: Listener) -> Heatmaps:
    """Return heatmaps of a few images by the classifier that a stage left."""
    images = split.images.batch(rows)
    few = array_split(images, split.labels[rows], name=split.name, class_names=split.class_names)
    settings = finished.settings.explain.model_copy(update={"layer": "none"})
    return compute_heatmaps(finished.model(stage), few, settings, listen=listen)
