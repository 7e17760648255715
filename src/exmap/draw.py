"""The paper's figures of an analysis, as files: what is shown is chosen here, how it is drawn is in ``report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from exmap.analysis import Analysis, reported_groups
from exmap.data import array_split
from exmap.errors import NotTrustedError, SettingsError, unknown_name
from exmap.explain import compute_heatmaps
from exmap.model import collect_outputs
from exmap.records import Groups, Heatmaps, IntArray, Listener, silent
from exmap.report import comparison_figure, embedding_figure, mistakes_figure, save_figure, strategies_figure
from exmap.runtime import generator

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Drawn", "draw_figures", "figure_names", "save_strategies"]

COMPARED, MISTAKES = 8, 12  # images shown
PSEUDO_GROUPS_SHOWN, PSEUDO_GROUP_SAMPLES = 8, 6
TRUE_GROUPS_SHOWN, TRUE_GROUP_SAMPLES = 16, 5


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


def draw_figures(analysis: Analysis, out: Path, names: Sequence[str] = (), *, listen: Listener = silent) -> list[Drawn]:
    """Write figures as PNG and PDF into a folder.

    Parameters
    ----------
    analysis : Analysis
    out : Path
        Made if it does not exist.
    names : sequence of str
        Of :func:`figure_names`; by default all.
    listen : Listener

    Returns
    -------
    list of Drawn
        In order. A figure whose images, true groups or repaired classifier are not there, or whose
        classifier is code that is not trusted, is left out, with a sentence.

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
        try:
            figure, note = make(analysis, listen)
        except NotTrustedError as error:
            figure, note = None, str(error)
        if figure is None:
            drawn.append(Drawn(name, (), note))
            continue
        out.mkdir(parents=True, exist_ok=True)
        drawn.append(Drawn(name, tuple(save_figure(figure, out / name)), note))
    return drawn


def figure_names() -> list[str]:
    """Return the names of the figures, in order."""
    return list(FIGURES)


def save_strategies(analysis: Analysis, path: Path) -> None:
    """Draw what the classifier looks at in the groups it gets wrong most, as a PNG file; nothing without the images."""
    figure, _ = _strategies(analysis, silent)
    if figure is not None:
        figure.savefig(path, dpi=130)


def _comparison(analysis: Analysis, listen: Listener) -> Made:
    """Show test images by the trained and by the repaired classifier (the paper's figure 4)."""
    if why := _no_repair(analysis):
        return None, why
    test, trained, repaired = analysis.task.test, analysis.test.predicted, analysis.fit(analysis.method).predicted[0]
    rows = np.flatnonzero((trained != test.labels) & (repaired == test.labels))
    title = (
        f"{len(rows):,} of {len(test):,} test images that only the repaired classifier gets right: drawn at random, "
        "classes in turn"
    )
    if not len(rows):
        rows = np.arange(len(test))
        title = "Test images drawn at random, classes in turn; none is right after retraining that was wrong before"
    rows = _in_turn(rows, test.labels, COMPARED, generator(analysis.settings.seed, "figures", "comparison"))
    classes, (index, names) = test.class_names, reported_groups(test)
    return comparison_figure(
        test.images.pixels(rows),
        _test_heatmaps(analysis, analysis.network(), rows, listen).values,
        _test_heatmaps(analysis, analysis.repair(analysis.method), rows, listen).values,
        titles=[names[index[row]] for row in rows],
        said_before=[f"says {classes[trained[row]]}" for row in rows],
        said_after=[f"says {classes[repaired[row]]}" for row in rows],
        title=title,
    ), ""


def _strategies(analysis: Analysis, _: Listener) -> Made:
    """Show sample images by pseudo-group."""
    if analysis.no_images:
        return None, analysis.no_images
    rng = generator(analysis.settings.seed, "report")
    rows = sample_rows(analysis, analysis.pseudo_groups, PSEUDO_GROUPS_SHOWN, PSEUDO_GROUP_SAMPLES, rng)
    return strategies_figure(rows, columns=PSEUDO_GROUP_SAMPLES), ""


def _true_groups(analysis: Analysis, _: Listener) -> Made:
    """Show sample images by true group (the paper's figure 5)."""
    if analysis.oracle is None:
        return None, "the data set has no true groups"
    if analysis.no_images:
        return None, analysis.no_images
    rng = generator(analysis.settings.seed, "figures", "groups")
    rows = sample_rows(analysis, analysis.oracle, TRUE_GROUPS_SHOWN, TRUE_GROUP_SAMPLES, rng)
    filled = int((analysis.oracle.counts() > 0).sum())
    shown = f" ({len(rows)} of {filled})" if len(rows) < filled else ""
    title = f"Heatmaps by true group{shown}: image | relevance (red for, blue against); those it gets wrong most, first"
    return strategies_figure(rows, columns=TRUE_GROUP_SAMPLES, title=title), ""


def sample_rows(
    analysis: Analysis, groups: Groups, most: int, samples: int, rng: np.random.Generator
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Return a row per group for :func:`exmap.report.strategies_figure`: the groups that are wrong most, first."""
    correct, values, images = analysis.explained.correct, analysis.explained.maps().values, analysis.grouped.images
    members = [np.flatnonzero(groups.index == number) for number in range(len(groups.names))]
    filled = [number for number in range(len(members)) if len(members[number])]
    rows = []
    for number in sorted(filled, key=lambda number: correct[members[number]].mean())[:most]:
        drawn = np.sort(rng.permutation(members[number])[:samples])
        title = f"{groups.names[number]}\nn = {len(members[number]):,}, right {correct[members[number]].mean():.0%}"
        rows.append((title, images.pixels(drawn), np.asarray(values[drawn])))
    return rows


def _embedding(analysis: Analysis, _: Listener) -> Made:
    """Show true groups beside pseudo-groups (the supplement's figure 3)."""
    groups, truth, explained = analysis.pseudo_groups, analysis.oracle, analysis.explained
    panels = [("pseudo-groups (no group label used)", groups.index, groups.names)]
    note = "the data set has no true groups: the pseudo-groups stand alone"
    if truth is not None:
        note = ""
        panels.insert(0, ("true groups", truth.index, truth.names))
    title = f"Heatmaps of {len(explained):,} images ({explained.split}) in the plane"
    return embedding_figure(analysis.coordinates, panels, title=title), note


def _mistakes(analysis: Analysis, listen: Listener) -> Made:
    """Show what the repaired classifier gets wrong most surely (the supplement's figure 2)."""
    if why := _no_repair(analysis):
        return None, why
    test, repaired = analysis.task.test, analysis.fit(analysis.method).predicted[0]
    wrong = np.flatnonzero(repaired != test.labels)
    if not len(wrong):
        return None, "the repaired classifier gets every test image right"
    sure = softmax(_repaired_logits(analysis, listen)[wrong], axis=1).max(axis=1)
    order = np.argsort(-sure, kind="stable")[:MISTAKES]
    rows, classes, (index, names) = wrong[order], test.class_names, reported_groups(test)
    captions = [
        f"{names[index[row]]}:\nsays {classes[repaired[row]]}, {share:.0%} sure"
        for row, share in zip(rows, sure[order], strict=True)
    ]
    title = f"The surest of {len(wrong):,} mistakes of the repaired classifier on {len(test):,} test images"
    maps = _test_heatmaps(analysis, analysis.repair(analysis.method), rows, listen)
    return mistakes_figure(test.images.pixels(rows), maps.values, captions, title=title), ""


FIGURES: dict[str, Callable[[Analysis, Listener], Made]] = {
    "comparison": _comparison,
    "strategies": _strategies,
    "true-groups": _true_groups,
    "embedding": _embedding,
    "mistakes": _mistakes,
}


def _no_repair(analysis: Analysis) -> str:
    """Return why the repaired classifier cannot be shown on images, or nothing if it can."""
    if analysis.method is None:
        return "nothing was retrained yet; bring a run that far with exmap evaluate RUN_DIR"
    return analysis.no_images


def _repaired_logits(analysis: Analysis, listen: Listener) -> NDArray[np.float32]:
    """Return the logits of the repaired classifier for the test images."""
    fit = analysis.fit(analysis.method)
    if fit.heads:
        return np.asarray(analysis.test.features @ fit.heads[0].weight.T + fit.heads[0].bias)
    return collect_outputs(analysis.repair(analysis.method), analysis.task.test, listen=listen).logits


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


def _test_heatmaps(analysis: Analysis, model: nn.Module, rows: IntArray, listen: Listener) -> Heatmaps:
    """Return heatmaps of a few test images by a classifier."""
    test = analysis.task.test
    few = array_split(test.images.batch(rows), test.labels[rows], name=test.name, class_names=test.class_names)
    return compute_heatmaps(model, few, analysis.settings.explain, explainer=analysis.explainer, listen=listen)
