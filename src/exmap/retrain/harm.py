"""Repair that does no harm: what retraining does to each class, and what becomes of a class that it makes worse.

A class *gets worse* where fewer of its images are right after retraining than before, beyond noise: by McNemar's
exact test on pairs (each image, before and after), one-sided, at 5 %; after retraining an image is predicted by a last
layer that was fitted to others. Where so few of its images were right that the test could not tell even the loss of
all (four or fewer), any loss counts. On images that the classifier was itself trained on it is right by heart, so there
only a loss of more than half counts.

What a class *loses* is counted with each of its groups alike, as its images on a shortcut's usual side are many and are
meant to lose a little; this must be clear (by its standard error, one-sided, at 1 %). A class of fewer
than ten images beside large ones is taken to lose one image more than is seen. A class that loses keeps the
classifier's own decision, unless that costs the worst group more than the class loses: its old row of the last layer is
put on the scale of the new rows (:mod:`exmap.retrain.old_rows`). So does a class without an image to retrain on. Where
fewer than two classes would be left to repair, or a class loses all the same, the whole classifier is left as it is.
All of this, and what a class pays for the worst group, is said first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.groups import ErrorSetGroups
from exmap.records import Groups, IntArray
from exmap.results import ClassHarm
from exmap.retrain.balance import parts_of
from exmap.retrain.head import Head
from exmap.retrain.old_rows import with_old_rows
from exmap.retrain.worse import LEVEL, Comparison, compare_classes
from exmap.runtime import generator

if TYPE_CHECKING:
    from exmap.retrain.learner import LastLayer

__all__ = ["Harm", "Verdict", "fits_to_parts", "judge_head", "judge_network", "parts_of_classes"]

Harm = Literal["keep", "warn"]
"""What becomes of a class that retraining harms: it keeps the classifier's own decision, or it is only said."""

FOLDS = 5
ROUNDS = 40  # of trying what it costs to keep classes
NAMED = 3  # classes in a sentence


@dataclass(frozen=True)
class Verdict:
    """What retraining does to the classes, and what is done about it.

    Attributes
    ----------
    classes : tuple of ClassHarm
        Those that get worse, and those without an image to retrain on.
    kept : tuple of int
        Classes that keep the classifier's own decision.
    left_alone : str
        Why the whole classifier is left as it is; empty where it is not.
    first_line : str
        What must be read before any figure; empty where there is nothing.
    """

    classes: tuple[ClassHarm, ...] = ()
    kept: tuple[int, ...] = ()
    left_alone: str = ""
    first_line: str = ""

    def applied(self, head: Head, own: Head | None, features: NDArray[np.floating]) -> Head:
        """Return a fitted last layer as it is handed over.

        Parameters
        ----------
        head : Head
        own : Head or None
            The classifier's own.
        features : ndarray of float, shape (N, D)
            What the scale of its old rows is found on.
        """
        head = replace(head, notes=(*filter(None, [self.first_line]), *head.notes))
        if own is not None and self.left_alone:
            return replace(head, weight=own.weight, bias=own.bias)
        return head if own is None else with_old_rows(head, own, self.kept, features)


def judge_head(
    learner: LastLayer,
    head: Head,
    features: NDArray[np.floating],
    labels: IntArray,
    groups: Groups | None,
    *,
    own: Head | None,
    class_names: Sequence[str],
    by_heart: bool = False,
) -> Verdict:
    """State what a fitted last layer does to the classes, by layers that are fitted to parts of the images.

    Parameters
    ----------
    learner : LastLayer
        What fitted it.
    head : Head
        As fitted to all images.
    features : ndarray of float, shape (N, D)
        Finite.
    labels : ndarray of int64, shape (N,)
    groups : Groups or None
        One per image; an index of -1 is unassigned.
    own : Head or None
        The classifier's own last layer; without it only classes without images are told.
    class_names : sequence of str
    by_heart : bool
        Whether the classifier was trained on these images.
    """
    size = len(class_names)
    if groups is not None and len(groups) != len(labels):  # of a learner that does not look at them
        groups = None
    used = labels if groups is None or not learner.fits_groups else labels[groups.index >= 0]
    absent = frozenset(np.setdiff1d(np.arange(size), used).tolist())
    if own is None or own.weight.shape != head.weight.shape:
        return _verdict({k: ClassHarm.without_images(class_names[k]) for k in absent})
    index = labels if groups is None else parts_of_classes(groups)
    fits = list(fits_to_parts(learner, head, features, labels, groups, own, size))
    rows = np.concatenate([part for _, part in fits]) if fits else np.arange(0)
    before = own.predict(features)

    def keeping(kept: frozenset[int]) -> Comparison:
        """Compare where some classes keep the old decision; with all but one of them, the rest does, too."""
        after = before.copy()
        for fitted, part in fits if size - len(kept) > 1 else ():
            after[part] = with_old_rows(fitted, own, kept, features).predict(features[part])
        return compare_classes(before[rows], after[rows], labels[rows], index[rows], size, by_heart=by_heart)

    keeps = learner.harm == "keep"
    last, harmed, alone = _harmed(keeping, absent if keeps else frozenset(), size)
    found = {k: ClassHarm.without_images(class_names[k], kept=keeps) for k in absent - harmed.keys()}
    found |= _cost(last, class_names, harmed.keys())
    for k, seen in harmed.items():
        found[k] = seen.of_class(k, class_names[k], harmed=bool(seen.worse[k]), kept=keeps)
    return _verdict(found, last, alone=keeps and alone)


def parts_of_classes(groups: Groups) -> IntArray:
    """Return the group of each image where the groups of a class count alike.

    None does if they are the classifier's errors: retraining gains in what is wrong, whatever it does to the class.
    """
    made_of_errors = groups.source == ErrorSetGroups.name
    return np.full_like(groups.index, -1) if made_of_errors else groups.index


def _harmed(
    keeping: Callable[[frozenset[int]], Comparison], absent: frozenset[int], size: int
) -> tuple[Comparison, dict[int, Comparison], bool]:
    """Find the classes that are to keep the old decision.

    Returns
    -------
    Comparison
        Where they keep it.
    dict of int to Comparison
        These classes, each with the comparison in which it lost.
    bool
        Whether the whole classifier is to be left as it is.
    """
    kept, paid, harmed, one_by_one = absent, frozenset[int](), dict[int, Comparison](), False
    now = keeping(kept)
    for _ in range(ROUNDS):
        losing = {k: loss for k, loss in now.losing().items() if k not in kept | paid}
        if not losing:
            break
        most = max(losing.values())
        more = frozenset(k for k, loss in losing.items() if loss >= (most if one_by_one else most / 2))
        other = keeping(kept | more)
        if now.worst_after - other.worst_after < min(losing[k] for k in more):
            harmed |= dict.fromkeys(more, now)
            kept, now, one_by_one = kept | more, other, False
        elif one_by_one or len(more) == 1:
            paid, one_by_one = paid | more, False
        else:
            one_by_one = True
    # Where any loss counts because images are few, a class that keeps its decision may be unlucky.
    still = [loss for k, loss in now.losing().items() if k in harmed and now.p_value[k] <= LEVEL]
    useless = max(still, default=0.0) > max(now.worst_after - now.worst_before, 0.0)
    return now, harmed, size - len(kept) < 2 or useless


def judge_network(
    before: IntArray,
    after: IntArray,
    labels: IntArray,
    index: IntArray,
    class_names: Sequence[str],
    *,
    harm: Harm = "keep",
) -> Verdict:
    """State what training a whole network again does to the classes of images that neither was trained on.

    A network has no row for a class, so the classifier is left as it is where any class loses more than the worst group
    gains. One that was hardly better than chance, as before its training, has nothing to lose.

    Parameters
    ----------
    before, after, labels, index : ndarray of int64, shape (N,)
        What both predict, classes and groups.
    class_names : sequence of str
    harm : {"keep", "warn"}
    """
    size = len(class_names)
    now = compare_classes(before, after, labels, index, size)
    seen = now.images > 0
    if now.before[seen].mean() <= (now.after[seen].mean() + 1 / size) / 2:
        return Verdict()
    gain = max(now.worst_after - now.worst_before, 0.0)
    harmed = {k for k, loss in now.losing().items() if loss > gain}
    found = _cost(now, class_names, harmed)
    found |= {k: now.of_class(k, class_names[k], harmed=bool(now.worse[k]), kept=harm == "keep") for k in harmed}
    return _verdict(found, now, alone=harm == "keep" and bool(harmed))


def fits_to_parts(
    learner: LastLayer,
    head: Head,
    features: NDArray[np.floating],
    labels: IntArray,
    groups: Groups | None,
    own: Head,
    n_classes: int,
) -> Iterator[tuple[Head, IntArray]]:
    """Yield last layers that are fitted to all images but some, with the rows of these."""
    lighter = learner.for_parts(head, groups, FOLDS)
    for rows in parts_of(labels, groups, FOLDS, generator(learner.seed, "harm")):
        others = np.setdiff1d(np.arange(len(labels)), rows)
        given = None if groups is None else replace(groups, index=groups.index[others], clusters=None)
        try:
            yield lighter.fit_head(features[others], labels[others], given, n_classes=n_classes, head=own), rows
        except DataError:  # too little is left to fit anything to
            continue


def _cost(last: Comparison, class_names: Sequence[str], harmed: Collection[int]) -> dict[int, ClassHarm]:
    """Return the other classes that get worse."""
    others = [int(k) for k in np.flatnonzero(last.worse) if k not in harmed]
    return {k: last.of_class(k, class_names[k], harmed=False, kept=False) for k in others}


def _verdict(found: Mapping[int, ClassHarm], last: Comparison | None = None, *, alone: bool = False) -> Verdict:
    """Return the verdict in words."""
    classes = tuple(found[k] for k in sorted(found))
    harmed = [each for each in classes if each.harmed]
    if alone:
        worse = harmed or [each for each in classes if each.images]
        why = (
            f"retraining makes {_each(worse)} worse"
            if harmed
            else f"too few images are of {_named(worse)} to retrain on"
        )
        return Verdict(
            tuple(each.changed(kept=True) for each in classes), (), why, f"The classifier is left as it is: {why}."
        )
    said = []
    if harmed:
        done = _keep(harmed) if harmed[0].kept else "and is handed over anyway"
        said.append(f"Retraining makes {_each(harmed)} worse, {done}.")
    if rare := [each for each in classes if each.images and each.kept and not each.harmed]:
        said.append(f"{_named(rare)[:1].upper()}{_named(rare)[1:]} {_has(rare)} too few images to tell, {_keep(rare)}.")
    if cost := [each for each in classes if each.images and not each.kept and not each.harmed]:
        gains = last is not None and last.worst_after > last.worst_before
        said.append(f"Retraining costs {_each(cost)}{', while the worst group improves' if gains else ''}.")
    if absent := [each for each in classes if not each.images]:
        done = _keep(absent) if absent[0].kept else "so it may never be predicted"
        said.append(f"No image to retrain on is of {_named(absent)}, {done}.")
    return Verdict(classes, tuple(k for k in sorted(found) if found[k].kept), "", " ".join(said))


def _has(classes: Sequence[ClassHarm]) -> str:
    return "has" if len(classes) == 1 else "have"


def _keep(classes: Sequence[ClassHarm]) -> str:
    return f"so {'it keeps' if len(classes) == 1 else 'they keep'} the classifier's own decision"


def _each(classes: Sequence[ClassHarm]) -> str:
    """Return classes with what becomes of them; those that lose most first."""
    rows = sorted(classes, key=lambda each: each.after - each.before)
    return _named(rows, [f" ({_percent(e.before)} to {_percent(e.after)} of {e.images:,} images)" for e in rows])


def _named(classes: Sequence[ClassHarm], beside: Sequence[str] = ()) -> str:
    """Return classes as a part of a sentence, the first few of many."""
    words = [f"{each.class_name!r}{more}" for each, more in zip(classes, beside or [""] * len(classes), strict=True)]
    words = words[:NAMED]
    if len(classes) > NAMED:
        words.append(f"{len(classes) - NAMED:,} more")
    return f"class{'es' * (len(classes) > 1)} {' and '.join(filter(None, (', '.join(words[:-1]), words[-1])))}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
