"""Which images look mislabelled? Label errors and a shortcut both give errors that a classifier is sure of.

An image whose label is wrong is, whatever its label says, an image of another class: it is classified as one, as surely
as others of that class are, and nothing about it tells it from them. An image that a shortcut leads astray has the
other class's property, but an object of its own class; so something tells it from images of that class, even if the
classifier does not see it.

Confident learning (Northcutt, Jiang and Chuang, 2021) takes the first half of that: images that are classified as
another class, at least as surely as images of that class usually are. Here the second half is tested, too. Null
hypothesis, for a class: its images that are taken for another class are exchangeable with images of that other class. A
support vector machine is fitted to tell the two kinds apart, by features, heatmaps and pixels in turn, and asked about
images that it was not fitted to; margins are compared as they are. Where the area under the curve exceeds 0.7 by any of
them, the images are of their own class, and errors of the classifier; where it does by none, the labels are wrong.

Hard images have small margins. Where more of the errors lie in the lowest tenth of the other class's margins than
chance allows, or where the errors are told apart, the surest of them are asked once more, provided that they are most
of the errors of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.stats import binom, rankdata
from sklearn.svm import SVC

from exmap.cluster.rows import finite_rows, row_blocks
from exmap.records import Explained, IntArray, Listener, Progress, silent
from exmap.results import DoubtfulLabels
from exmap.runtime import generator

__all__ = ["doubtful_labels", "doubtful_rows", "known_rows"]

Vectors = Callable[[IntArray], NDArray[np.floating]]

FEWEST, FEWEST_BESIDE = 3, 20  # errors of a class; images of the class they are taken for
LEAST_SURE = (0.0, 0.05, 0.1)  # quantiles of the margins of images that are classified right; 0 takes all errors
MOST_ERRORS = 0.5  # share of a class's errors that must be so sure
UNLIKELY = 0.01  # level of the test for hard images among them
MOST_LABELS = 0.5  # share of a class's labels that may be wrong: beyond, it is the classifier that is
TOLD_APART = 0.7  # area under the curve beyond which two kinds of images differ
DEVIATIONS = 1.64  # from a half, within which the area of few images lies by chance
MOST, MOST_BESIDE, MOST_CLASSES = 500, 400, 50  # errors; images they are compared with; classes, those of most errors
FOLDS, AXES = 5, 30


def doubtful_labels(
    explained: Explained, *, pixels: Vectors | None = None, seed: int = 0, listen: Listener = silent
) -> tuple[DoubtfulLabels, ...]:
    """Return the images that look mislabelled, by class and by the class they look like.

    Parameters
    ----------
    explained : Explained
        Of images that the classifier was not trained on.
    pixels : callable, optional
        From rows to images as vectors, shape (n, F). Without them features and heatmaps alone say how an image looks,
        and a shortcut that a classifier follows blindly may pass for label errors.
    seed : int
        Of the images that are compared, and of the folds.
    listen : Listener
    """
    predicted, usable = explained.outputs.predicted, _usable(explained)
    right = explained.correct & usable
    margins = _margins(explained.outputs.logits)
    beside = np.bincount(predicted[right], minlength=len(explained.class_names)) >= FEWEST_BESIDE
    errors = ~explained.correct & usable & beside[predicted]
    counts = np.bincount(explained.labels[errors], minlength=len(explained.class_names))
    counts[counts > MOST_LABELS * np.bincount(explained.labels, minlength=len(counts))] = 0
    found: list[DoubtfulLabels] = []
    classes = sorted(np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist())
    for number, label in enumerate(classes):
        listen(Progress("label errors", number, len(classes), "classes", explained.class_names[label]))
        if counts[label] >= FEWEST:
            compared = _Compared(explained, right, margins, pixels, seed, label)
            found += _named(explained, *compared.sure_errors(errors & (explained.labels == label)))
    return tuple(found)


def doubtful_rows(found: tuple[DoubtfulLabels, ...], explained: Explained) -> NDArray[np.bool_]:
    """Return which images are named, shape (N,)."""
    named = {name for each in found for name in each.images}
    return np.array([name in named for name in explained.ids], dtype=np.bool_)


def known_rows(explained: Explained) -> NDArray[np.bool_]:
    """Return which images have finite logits and features, shape (N,)."""
    return np.asarray((explained.outputs.predicted >= 0) & finite_rows(explained.features))


def _margins(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how far each image's largest logit lies above the second, shape (N,); 0 where there is but one class."""
    margins = np.zeros(len(logits))
    for block in row_blocks(*logits.shape) if logits.shape[1] > 1 else ():
        ordered = np.sort(np.nan_to_num(logits[block].astype(np.float64)), axis=1)
        margins[block] = ordered[:, -1] - ordered[:, -2]
    return margins


def _usable(explained: Explained) -> NDArray[np.bool_]:
    """Return which images have a predicted class, and numbers to compare them by."""
    known = known_rows(explained)
    return known if explained.heatmaps is None else known & explained.heatmaps.finite


class _Compared:
    """The errors of one class, beside images that are rightly taken for what these are taken for."""

    def __init__(
        self,
        explained: Explained,
        right: NDArray[np.bool_],
        margins: NDArray[np.float64],
        pixels: Vectors | None,
        seed: int,
        label: int,
    ) -> None:
        self.explained, self.right, self.margins, self.label = explained, right, margins, label
        self.seed, self.pixels = seed, pixels

    def sure_errors(self, errors: NDArray[np.bool_]) -> tuple[IntArray, float]:
        """Return the errors that nothing tells from images of the other class, and how well they were told apart."""
        predicted, right = self.explained.outputs.predicted, self.right
        taken_for = np.unique(predicted[errors])
        for quantile in LEAST_SURE:
            least, decile = np.zeros((2, len(self.explained.class_names)))
            for other in taken_for:
                margins = self.margins[right & (predicted == other)]
                least[other], decile[other] = np.quantile(margins, [quantile, quantile + (1 - quantile) / 10])
            sure = (self.margins >= least[predicted]) | (quantile == 0)
            some = errors & sure
            if (count := int(some.sum())) < max(FEWEST, MOST_ERRORS * errors.sum()):
                break
            if binom.sf((self.margins < decile[predicted])[some].sum() - 1, count, 0.1) < UNLIKELY:
                continue  # too many of them are less sure than images of the other class: these are hard
            rows, beside = self._drawn(some, right & sure & np.isin(predicted, np.unique(predicted[some])))
            chance = np.sqrt((len(rows) + len(beside) + 1) / (12 * len(rows) * len(beside)))
            most, told = max(TOLD_APART, 0.5 + DEVIATIONS * chance), 0.0
            for area in self._areas(rows, beside):
                told = max(told, area)
                if told > most:
                    break
            else:
                return np.flatnonzero(some).astype(np.int64), told
        return np.zeros(0, dtype=np.int64), 1.0

    def _drawn(self, errors: NDArray[np.bool_], beside: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
        rng = generator(self.seed, "mislabelled", self.label)
        drawn = [rng.permutation(np.flatnonzero(rows))[:most] for rows, most in ((errors, MOST), (beside, MOST_BESIDE))]
        return drawn[0], drawn[1]

    def _areas(self, errors: IntArray, beside: IntArray) -> Iterator[float]:
        """Yield how well errors are told from the images beside them, by what is cheap first."""
        rows = np.concatenate([errors, beside])
        wrong, kind = np.arange(len(rows)) < len(errors), self.explained.outputs.predicted[rows]
        yield _area(-self.margins[rows], wrong, kind)
        rng = generator(self.seed, "mislabelled", self.label, "folds")
        for vectors in self._looks(rows):
            yield _told_apart(np.asarray(vectors, dtype=np.float64).reshape(len(rows), -1), wrong, kind, rng)

    def _looks(self, rows: IntArray) -> Iterator[NDArray[np.floating]]:
        yield self.explained.features[rows]
        if self.explained.heatmaps is not None:
            yield self.explained.heatmaps.values[rows]
        if self.pixels is not None:
            yield self.pixels(rows)


def _told_apart(
    vectors: NDArray[np.float64], wrong: NDArray[np.bool_], kind: IntArray, rng: np.random.Generator
) -> float:
    """Return the area under the curve of machines that tell wrong images from the others, on images left out."""
    points = _axes(vectors)
    for each in np.unique(kind):  # what tells classes from each other says nothing here
        points[kind == each] -= points[(kind == each) & ~wrong].mean(axis=0) if ((kind == each) & ~wrong).any() else 0
    folds = min(FOLDS, int(wrong.sum()))
    fold = np.empty(len(wrong), dtype=np.int64)
    for value in (True, False):
        rows = rng.permutation(np.flatnonzero(wrong == value))
        fold[rows] = np.arange(len(rows)) % folds
    scores = np.zeros(len(wrong))
    for left_out in range(folds):
        rest, rows = fold != left_out, fold == left_out
        if np.ptp(points[rest], axis=0).any():
            scores[rows] = SVC(class_weight="balanced").fit(points[rest], wrong[rest]).decision_function(points[rows])
    return _area(scores, wrong, kind * folds + fold)  # scores of different machines are not compared


def _axes(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates along the first principal axes, by the products of all pairs: there are few vectors."""
    centred = vectors - vectors.mean(axis=0)
    last = len(vectors) - 1
    values, axes = linalg.eigh(centred @ centred.T, subset_by_index=[max(0, last - AXES + 1), last])
    return np.asarray(axes * np.sqrt(np.maximum(values, 0)))


def _area(scores: NDArray[np.float64], wrong: NDArray[np.bool_], kind: IntArray) -> float:
    """Return the chance that a wrong image has a higher score than another one of its kind; 0.5 where there is none."""
    total, images = 0.0, 0
    for each in np.unique(kind[wrong]):
        members = kind == each
        first = wrong[members]
        n, others = int(first.sum()), int((~first).sum())
        if others:
            total += (rankdata(scores[members])[first].sum() - n * (n + 1) / 2) / others
            images += n
    return total / images if images else 0.5


def _named(explained: Explained, rows: IntArray, told_apart: float) -> Iterator[DoubtfulLabels]:
    """Yield the images of one class by what they look like."""
    names, predicted = explained.class_names, explained.outputs.predicted[rows]
    for other in np.unique(predicted):
        some = rows[predicted == other]
        yield DoubtfulLabels(
            class_name=names[explained.labels[some[0]]],
            looks_like=names[other],
            images=tuple(explained.ids[row] for row in some),
            told_apart=told_apart,
        )
