"""Do predictions follow a property? A randomised trial: it is exchanged between images.

An image that is classified right receives a property of two other images: one that the classifier takes for another
class, and one that it takes for the image's own class. Everything else stays as it is. How much further the first moves
the margin towards the other class than the second, as a share of the image's own margin, is what the property is worth
to the classifier.

Null hypothesis, for each property and class: giving images of the class the property of an image that the classifier
takes for another class moves their margin, on average, at most a fifth of itself further than giving them that of an
image it takes for their own. Donors are drawn at random, so the comparison is that of a randomised trial: nothing about
which images are hard can confound it. Where an attribute says nothing of the class, both donors are exchangeable and
the effect is zero, whatever the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from exmap.exchange.looks import Looks
from exmap.exchange.properties import OfRows, Property, paired
from exmap.records import Explained, IntArray
from exmap.results import PropertyReliance
from exmap.runtime import generator

__all__ = ["FEWEST", "Trial", "asked"]

LEVEL = 0.05  # of a reliance
WORTH = 0.2  # share of the margin that a property must move
PAIRS, MOST_PAIRS = 100, 600  # of each class; in all
FEWEST = 20  # images of a class that are classified right, to receive; fewer are no strategy
GIVING = 8  # images that are taken for a class, to give
MOST_CLASSES = 30  # that are tested: those of the most errors


@dataclass(frozen=True, eq=False)
class Trial:
    """Who receives of whom.

    Attributes
    ----------
    explained : Explained
        Labels and logits of N images.
    receivers, others, mates : ndarray of int64, shape (pairs,)
        Rows of images that receive, and of those that give: taken for another class, and for the receiver's own.
    """

    explained: Explained
    receivers: IntArray
    others: IntArray
    mates: IntArray

    @classmethod
    def of(cls, explained: Explained, seed: int) -> Trial | None:
        """Draw the pairs.

        Returns
        -------
        Trial or None
            None where no class has twenty images that are classified right, or all are taken for one class.
        """
        rng, predicted, labels = generator(seed, "exchange"), explained.outputs.predicted, explained.labels
        called = {
            c: rows
            for c in np.unique(predicted[predicted >= 0])
            if len(rows := np.flatnonzero(predicted == c)) >= GIVING
        }
        right = {c: rows[labels[rows] == c] for c, rows in called.items()}
        right = {c: rows for c, rows in right.items() if len(rows) >= FEWEST}
        if len(called) < 2 or not right:
            return None
        errors = {c: float(np.mean(predicted[labels == c] != c)) for c in right}
        tested = sorted(sorted(right, key=lambda c: -errors[c])[:MOST_CLASSES])
        pairs = max(FEWEST, min(PAIRS, MOST_PAIRS // len(tested)))
        drawn: list[tuple[IntArray, IntArray, IntArray]] = []
        for c in tested:
            rows = rng.permutation(right[c])
            rows = np.resize(rows, pairs) if len(rows) < pairs else rows[:pairs]
            elsewhere = [other for other in called if other != c]
            giving = [called[elsewhere[n]] for n in rng.integers(len(elsewhere), size=pairs)]
            others = np.array([rng.choice(rows) for rows in giving], dtype=np.int64)
            drawn.append((rows, others, rng.choice(called[c], size=pairs)))
        return cls(explained, *(np.concatenate(part) for part in zip(*drawn, strict=True)))

    @property
    def classes(self) -> int:
        """Number of classes that are tested."""
        return len(np.unique(self.explained.labels[self.receivers]))

    def reliances(self, looks: Looks, name: str, exchange: Property | OfRows, tests: int) -> Iterator[PropertyReliance]:
        """Yield what each class's images do with the property of others.

        Parameters
        ----------
        looks : Looks
            The images of the explained split, and the classifier.
        name : str
            Of the property.
        exchange : callable, or OfRows of the explained split
        tests : int
            Properties times classes: what p-values are corrected for.
        """
        labels, predicted = self.explained.labels[self.receivers], self.explained.outputs.predicted[self.others]
        pairs = np.arange(len(labels))
        given = [asked(looks, exchange, self.receivers, donors) for donors in (self.others, self.mates)]
        towards = [logits[pairs, predicted] - logits[pairs, labels] for logits in given]
        own = self.explained.outputs.logits[self.receivers]
        margin = (own[pairs, labels] - own[pairs, predicted]).astype(np.float64)
        turned = [logits.argmax(axis=1) == predicted for logits in given]
        for c in np.unique(labels):
            rows = labels == c
            moved = (towards[0][rows] - towards[1][rows]) / max(float(margin[rows].mean()), 1e-12)
            yield _reliance(
                name,
                self.explained.class_names[c],
                moved,
                turned[0][rows],
                turned[1][rows],
                self.receivers[rows],
                tests,
            )


def _reliance(
    name: str,
    class_name: str,
    moved: NDArray[np.float64],
    turned: NDArray[np.bool_],
    control: NDArray[np.bool_],
    receivers: IntArray,
    tests: int,
) -> PropertyReliance:
    """Test one property of one class; an image that received several times counts once, with its mean."""
    _, inverse = np.unique(receivers, return_inverse=True)
    each = np.bincount(inverse, weights=moved) / np.bincount(inverse)
    mean, p_value, low = float(each.mean()), 1.0, float(each.mean())
    if float(each.std()) > 1e-9:
        p_value = float(stats.ttest_1samp(each, WORTH, alternative="greater").pvalue)
        low = float(stats.t.ppf(0.05, len(each) - 1, mean, each.std(ddof=1) / np.sqrt(len(each))))
    elif mean > WORTH:
        p_value = 0.0
    p_value = min(1.0, p_value * tests)
    return PropertyReliance(
        property=name,
        class_name=class_name,
        pairs=len(moved),
        moved=mean,
        moved_low=low,
        turned=float(turned.mean()),
        turned_control=float(control.mean()),
        p_value=p_value,
        relied_on=p_value <= LEVEL,
        why=f"Given the {name} of images that are taken for another class, {turned.mean():.0%} of the {len(moved)} "
        f"images of {class_name} turn to that class, and their margins fall by {mean:.0%} more than with the {name} of "
        f"images that are taken for {class_name}, where {control.mean():.0%} turn.",
    )


def asked(looks: Looks, exchange: Property | OfRows, receivers: IntArray, donors: IntArray) -> NDArray[np.float32]:
    """Return the logits of receivers with the donors' property, in parts that fit the memory."""
    found = []
    for start in range(0, len(receivers), looks.at_once):
        some, others = (rows[start : start + looks.at_once] for rows in (receivers, donors))
        found.append(looks.logits(paired(exchange, some, others)(looks.pixels(some), looks.pixels(others))))
    return np.concatenate(found)
