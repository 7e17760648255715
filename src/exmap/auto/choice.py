"""Choose among groupings without group labels: by what every other grouping says of the model each one repairs.

A head that has unlearned a shortcut is as sure of an image whichever strategy's group it lies in. So each candidate's
head is fitted on one half of the images, and its *reliance* on each other candidate's groups is read off the other:
how far below its class's mean margin the worst group lies, in standard deviations of the class. The candidate with the
least mean reliance is chosen. Margins, unlike accuracies, still tell heads apart where a group has ten images and none
of them is wrong; a head's own groups have no say, for every head does well by those.

Features follow the prediction, so their clusters often hold little but the classifier's errors. Only groups of heatmaps
judge, therefore, and a grouping of features that restates the errors is not chosen, as the error set itself is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import adjusted_mutual_info_score

from exmap.auto.candidates import Candidate, find_candidates
from exmap.auto.repair import data_curve, judge_last_layer
from exmap.auto.shortcut import ShortcutTest, find_shortcuts
from exmap.config import AutoSettings
from exmap.errors import DataError
from exmap.groups import ClassGroups, ErrorSetGroups, Evidence
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.retrain import DFR
from exmap.runtime import child_seed, generator

__all__ = ["JUDGED", "AutoChoice", "choose_groups", "held_out_margins", "margins_of", "reliance"]

QUICK = {"strengths": (1.0, 0.3, 0.1, 0.03), "tuning_splits": 2, "subsamples": 5}  # DFR, for comparing
HELD_OUT = 20_000  # halvings are repeated until about so many margins were held out
MOST_REPEATS = 6
SHRINK = 5.0  # samples of the class that are added to a group's mean margin
FEWEST = 3  # samples of a group that has a say
RESTATES = 0.5  # adjusted mutual information with the errors from which a grouping of features restates them
SAME = 0.9  # adjusted mutual information within classes from which two groupings count as one
FEWEST_IN_CLASS = 20  # images with a finite heatmap that a class needs for halves to be fitted and judged
AUTO = "auto"  # source of the chosen grouping
JUDGED = "auto-judged"  # source of the chosen grouping of images that were only judged
DRAWS = 100  # of the bootstrap behind the confidence
WORTH_PROCESSES = 1_000_000  # numbers in the features


@dataclass(frozen=True)
class AutoChoice:
    """What was chosen, and why.

    Attributes
    ----------
    groups : Groups
        The chosen grouping of the split that is retrained on, with source ``auto``; the classes where nothing was
        chosen.
    judged : Groups
        The same grouping of the images that were judged; `groups` itself where they are the same images.
    repair : bool
        Whether the last layer is to be retrained on them. False leaves the model alone.
    record : dict
        What results.json holds under ``auto``.
    """

    groups: Groups
    judged: Groups
    repair: bool
    record: dict[str, Any]


def choose_groups(
    evidence: Evidence,
    shape: tuple[int, int, int],
    *,
    judged: tuple[Evidence, tuple[int, int, int]] | None = None,
    logits: NDArray[np.float32],
    settings: AutoSettings | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> AutoChoice:
    """Choose a grouping, say whether there is a shortcut at all, and whether the last layer can be repaired.

    Parameters
    ----------
    evidence : Evidence
        Of the split that is retrained on, with heatmaps and features.
    shape : (int, int, int)
        Channels, height and width of a heatmap.
    judged : (Evidence, shape), optional
        Of other images than those, to judge heads by: needed where the model was trained on the split that is
        retrained on, for it is right there. By default halves of the one split are judged by heads of the other.
    logits : ndarray of float32, shape (N, K)
        Of the model as it is, on the images that are judged.
    settings : AutoSettings, optional
    seed : int
    listen : Listener

    Raises
    ------
    DataError
        If either evidence lacks heatmaps or features.

    Notes
    -----
    Where a class has too few images to be halved, or the classifier is no better than chance, nothing is chosen: the
    groups are the classes, and the record's ``why`` says so.
    """
    settings = settings or AutoSettings()
    judge, judge_shape = judged or (evidence, shape)
    if any(part.heatmaps is None or part.features is None for part in (evidence, judge)):
        raise DataError("choosing a grouping needs heatmaps and features; explain the split and collect outputs first")
    n_classes = len(evidence.class_names)
    if (why := _cannot_say(evidence, judge)) is not None:
        classes = _classes(evidence, AUTO)
        return AutoChoice(classes, classes if judged is None else _classes(judge, JUDGED), False, _nothing(why, judge))
    known = find_candidates(judge, judge_shape, seed=child_seed(seed, "judges"), listen=listen)
    test = find_shortcuts(known, judge, settings)
    if judged is None:
        pool = [(candidate, candidate) for candidate in known.each]
    else:
        fitted = find_candidates(evidence, shape, seed=child_seed(seed, "candidates"), listen=listen).names()
        pool = [(fitted[candidate.name], candidate) for candidate in known.each if candidate.name in fitted]
    margins = _all_margins(pool, evidence, judge, judged is None, n_classes, seed, listen)
    own = margins_of(logits, judge.labels)
    table = _Table([candidate for _, candidate in pool], judge.labels)
    errors = ErrorSetGroups().infer(judge, seed=seed).index
    eligible = np.array([_eligible(candidate, errors, judge.labels) for _, candidate in pool])
    scores = table.scores(margins)
    order = np.lexsort((scores, ~eligible))
    best = int(order[0])
    alike = [_alike(pool[best][1].groups.index, candidate.groups.index, judge.labels) for _, candidate in pool]
    family = np.array(alike) >= SAME
    second = next((int(n) for n in order if eligible[n] and not family[n]), None)
    rng = generator(seed, "auto", "bootstrap")
    drawn = [np.where(eligible, table.scores(margins, rng), np.inf) for _ in range(DRAWS)]
    wins = [bool(family[int(np.argmin(values))]) for values in drawn]
    chosen, seen = pool[best]
    groups = replace(chosen.groups, source=AUTO)
    layer = judge_last_layer(margins[best], own, judge.labels, seen.groups)
    curve = data_curve(evidence, judge, groups, seen.groups, held_out=judged is None, seed=child_seed(seed, "curve"))
    before = table.scores(own[None])[0]
    remarks = []
    if len(pool) - sum(candidate.representation in ("errors", "classes") for candidate, _ in pool) < 2:
        remarks.append("All clusterings gave the same grouping, so there was nothing to choose between.")
    if second is not None and np.mean(wins) < 0.5:
        remarks.append(
            "The choice is uncertain: other images of the same kind would often have chosen another grouping."
        )
    if not test.found and settings.only_if_found:
        remarks.append("No shortcut was found, so the model is left alone; the grouping is shown for looking.")
    record = {
        "chosen": chosen.name,
        "runner_up": None if second is None else pool[second][0].name,
        "confidence": float(np.mean(wins)),
        "judged_on": "held-out halves" if judged is None else "the validation split",
        "reliance": {"classifier": float(before), "chosen": float(scores[best])},
        "candidates": [
            {
                "name": pool[n][0].name,
                "also": list(pool[n][0].also),
                "score": -float(scores[n]),
                "groups": int((pool[n][0].groups.counts() > 0).sum()),
                "like_chosen": float(alike[n]),
                "eligible": bool(eligible[n]),
            }
            for n in order
        ],
        "shortcut": test.as_record(),
        "repair": layer.as_record(),
        "data_curve": [point.as_record() for point in curve],
        "repaired": test.found or not settings.only_if_found,
        "why": _why(chosen.name, float(before), float(scores[best]), len(pool)),
        "remarks": remarks,
    }
    judged_groups = groups if judged is None else replace(seen.groups, source=JUDGED)
    return AutoChoice(groups, judged_groups, bool(record["repaired"]), record)


def margins_of(logits: NDArray[np.floating], labels: IntArray) -> NDArray[np.float64]:
    """Return how far each sample's own logit lies above the largest other one, shape (N,)."""
    rows, values = np.arange(len(labels)), np.array(logits, dtype=np.float64)
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    return np.asarray(own - values.max(axis=1))


def held_out_margins(
    features: NDArray[np.floating], labels: IntArray, groups: Groups, *, n_classes: int, repeats: int, seed: int
) -> NDArray[np.float64]:
    """Return every sample's margin by heads fitted to the half it does not lie in, the mean over halvings, shape (N,).

    The halves depend on the seed alone, so that all groupings are compared over the same ones. A head's scale says
    nothing of it, so margins are divided by their mean size before halvings are averaged.
    """
    total = np.zeros(len(labels))
    for number in range(repeats):
        side = generator(seed, "auto", "halves", number).permutation(len(labels)) % 2
        for part in (0, 1):
            rows, others = np.flatnonzero(side != part), np.flatnonzero(side == part)
            total[others] += _fitted_margins(
                features, labels, groups, rows, features[others], labels[others], n_classes
            )
    return total / repeats


def _other_margins(
    features: NDArray[np.floating],
    labels: IntArray,
    groups: Groups,
    others: NDArray[np.floating],
    other_labels: IntArray,
    *,
    n_classes: int,
) -> NDArray[np.float64]:
    """Return the margins of other images by heads fitted to all of one split, the mean over two draws."""
    rows = np.arange(len(labels))
    draws = [
        _fitted_margins(features, labels, groups, rows, others, other_labels, n_classes, number) for number in range(2)
    ]
    return np.asarray(np.mean(draws, axis=0))


def _fitted_margins(
    features: NDArray[np.floating],
    labels: IntArray,
    groups: Groups,
    rows: IntArray,
    others: NDArray[np.floating],
    other_labels: IntArray,
    n_classes: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    part = replace(groups, index=groups.index[rows], clusters=None)
    head = DFR(**QUICK, seed=seed).fit_head(features[rows], labels[rows], part, n_classes=n_classes)  # type: ignore[arg-type]
    found = margins_of(others @ head.weight.T + head.bias, other_labels)
    return np.asarray(found / max(float(np.abs(found).mean()), 1e-12))


def _all_margins(
    pool: Sequence[tuple[Candidate, Candidate]],
    evidence: Evidence,
    judge: Evidence,
    halved: bool,
    n_classes: int,
    seed: int,
    listen: Listener,
) -> NDArray[np.float64]:
    """Return the margins of every candidate's heads on images they were not fitted to, shape (candidates, N)."""
    features, others = evidence.features, judge.features
    assert features is not None
    assert others is not None
    repeats = int(np.clip(HELD_OUT // max(len(judge.labels), 1), 2, MOST_REPEATS))
    workers = cpu_count() if features.size > WORTH_PROCESSES else 1
    fits = Parallel(workers, return_as="generator")(  # of arrays, which all processes share, and no more
        delayed(held_out_margins)(
            features, evidence.labels, candidate.groups, n_classes=n_classes, repeats=repeats, seed=seed
        )
        if halved
        else delayed(_other_margins)(
            features, evidence.labels, candidate.groups, others, judge.labels, n_classes=n_classes
        )
        for candidate, _ in pool
    )
    rows = []
    for number, found in enumerate(fits):
        rows.append(found)
        listen(Progress("candidates", number + 1, len(pool), "heads", pool[number][0].name))
    return np.array(rows)


def reliance(
    margins: NDArray[np.float64], labels: IntArray, index: IntArray, weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return how much heads rely on what distinguishes some groups, in standard deviations of the class's margins.

    Of each class: its mean margin less that of its worst group (shrunk towards the class's mean by five samples), over
    the standard deviation; of the classes, the largest.

    Parameters
    ----------
    margins : ndarray of float64, shape (heads, N)
    labels : ndarray of int64, shape (N,)
    index : ndarray of int64, shape (N,)
        Group of each sample; -1 has no say. No group lies in two classes.
    weight : ndarray of float64, shape (N,), optional
        How often each sample counts.

    Returns
    -------
    ndarray of float64, shape (heads,), at least 0
    """
    return _reliance(margins, labels, [index], weight)[:, 0]


def _reliance(
    margins: NDArray[np.float64],
    labels: IntArray,
    judges: Sequence[IntArray],
    weight: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return :func:`reliance` on each of several groupings, shape (heads, groupings)."""
    n = len(labels)
    weight = np.ones(n) if weight is None else weight
    kinds, label = np.unique(labels, return_inverse=True)
    of_class = sparse.csr_array((weight, (np.arange(n), label)), shape=(n, len(kinds)))
    size = np.maximum(np.asarray(of_class.sum(axis=0)).ravel(), 1e-12)
    mean = np.asarray(margins @ of_class) / size
    deviation = np.sqrt(np.maximum(np.asarray(margins**2 @ of_class) / size - mean**2, 1e-24))
    result = np.zeros((len(margins), len(judges)))
    for number, index in enumerate(judges):
        rows = np.flatnonzero(index >= 0)
        names, column = np.unique(index[rows], return_inverse=True)
        inside = sparse.csr_array((weight[rows], (rows, column)), shape=(n, len(names)))
        count = np.asarray(inside.sum(axis=0)).ravel()
        owner = np.zeros(len(names), dtype=np.int64)
        owner[column] = label[rows]
        group = (np.asarray(margins @ inside) + SHRINK * mean[:, owner]) / (count + SHRINK)
        short = (mean[:, owner] - group) / deviation[:, owner]
        short[:, count < FEWEST] = 0
        result[:, number] = short.max(axis=1, initial=0)
    return result


@dataclass(frozen=True)
class _Table:
    """The candidates as judges of one another."""

    candidates: Sequence[Candidate]
    labels: IntArray

    def scores(self, margins: NDArray[np.float64], rng: np.random.Generator | None = None) -> NDArray[np.float64]:
        """Return the mean reliance on all others' groups, shape (heads,); with a generator, of a bootstrap sample."""
        n = len(self.labels)
        weight = None if rng is None else rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        judging = [number for number, candidate in enumerate(self.candidates) if candidate.judges]
        found = _reliance(margins, self.labels, [self.candidates[number].groups.index for number in judging], weight)
        others = np.ones_like(found, dtype=np.bool_)
        if len(margins) == len(self.candidates):  # a head's own groups have no say
            for column, number in enumerate(judging):
                others[number, column] = False
        total = np.where(others, found, 0).sum(axis=1)
        return np.asarray(total / np.maximum(others.sum(axis=1), 1))


def _eligible(candidate: Candidate, errors: IntArray, labels: IntArray) -> bool:
    """Return whether a grouping may be chosen: not the errors, and not features that restate them."""
    if candidate.representation != "features":
        return candidate.representation != "errors"
    return _alike(candidate.groups.index, errors, labels) < RESTATES


def _alike(first: IntArray, second: IntArray, labels: IntArray) -> float:
    """Return the adjusted mutual information of two groupings within classes, the mean over classes."""
    values = [
        adjusted_mutual_info_score(first[labels == label], second[labels == label]) for label in np.unique(labels)
    ]
    return float(np.mean(values))


def _classes(evidence: Evidence, source: str) -> Groups:
    """Return the classes as groups."""
    return replace(ClassGroups().infer(evidence, seed=0), source=source)


def _cannot_say(evidence: Evidence, judge: Evidence) -> str | None:
    """Return why no grouping can be chosen, in one sentence, or None."""
    for part in (evidence, judge):
        labels = part.labels if part.usable is None else part.labels[part.usable]
        counts = np.bincount(labels, minlength=len(part.class_names))
        if (fewest := int(counts.min())) < FEWEST_IN_CLASS:
            name = part.class_names[int(counts.argmin())]
            return (
                f"Nothing can be concluded: class {name} has {fewest} images with a heatmap to judge groupings by, and "
                f"at least {FEWEST_IN_CLASS} are needed; give more labelled images."
            )
    right = [float(np.mean(judge.predicted[judge.labels == k] == k)) for k in range(len(judge.class_names))]
    chance = 1 / len(right)
    if np.mean(right) <= chance + 2 * np.sqrt(chance * (1 - chance) / len(judge.labels)):
        return (
            f"Nothing can be concluded: the classifier is right in {np.mean(right):.0%} of its classes' images, which "
            "is no better than chance, so its heatmaps explain nothing; train it better first."
        )
    return None


def _nothing(why: str, judge: Evidence) -> dict[str, Any]:
    """Return the record of a choice that was not made."""
    return {
        "chosen": None,
        "runner_up": None,
        "confidence": None,
        "judged_on": None,
        "reliance": None,
        "candidates": [],
        "shortcut": ShortcutTest((), 0).as_record(judge.class_names),
        "repair": None,
        "data_curve": [],
        "repaired": False,
        "why": why,
        "remarks": [why],
    }


def _why(name: str, before: float, after: float, count: int) -> str:
    """Return the reason for the choice in one sentence."""
    return (
        f"{name} was chosen of {count} groupings because the classifier retrained on it relies least on the groups of "
        f"all others: on held-out images, their worst groups lie {after:.2f} standard deviations below their class's "
        f"mean margin, against {before:.2f} for the classifier as it is."
    )
