"""What do predictions follow? Every property is exchanged between images, and those that are followed vote.

The trial is that of :mod:`exmap.exchange.trial`. A property that predictions follow also *votes*: what it adds to each
class's logit in images of other objects. Votes take no label. Images whose property votes for another class than their
own go against the shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from exmap.auto.intervene import Intervention
from exmap.exchange import PROPERTIES, Looks, Pixels, Predict, Property, Trial, asked
from exmap.exchange.trial import FEWEST
from exmap.records import Explained, IntArray, Listener, Progress, silent
from exmap.results import DoubtfulLabels, PropertyReliance
from exmap.runtime import generator

__all__ = ["Exchanges", "measure_exchanges"]

VOTES, FEWEST_VOTES = 4, 2  # receivers of each image's property
MOST_VOTES = 12_000


@dataclass(frozen=True, eq=False)
class Exchanges:
    """What was measured.

    Attributes
    ----------
    reliances : tuple of PropertyReliance
        By property and class.
    votes : mapping of str to ndarray of float32, shape (N, K)
        Of each property that some class relies on; NaN for images that were not asked.
    reactions : mapping of str to Intervention
        By class: what the images that go against its property do when they get the property of the others.
    warnings : tuple of str
        Of :mod:`exmap.auto.warning`, a sentence each.
    mislabelled : tuple of DoubtfulLabels, or None
        Of :mod:`exmap.auto.mislabelled`, with pixels; None where nobody looked.
    """

    reliances: tuple[PropertyReliance, ...] = ()
    votes: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reactions: dict[str, Intervention] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    mislabelled: tuple[DoubtfulLabels, ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether there was anything to exchange."""
        return bool(self.reliances)

    def rows(self, rows: IntArray) -> Exchanges:
        """Return the same with the votes of some of the images."""
        return replace(self, votes={name: votes[rows] for name, votes in self.votes.items()})

    def of(self, class_name: str) -> list[PropertyReliance]:
        """Return what was measured of a class, by property."""
        return [each for each in self.reliances if each.class_name == class_name]

    def against(self, prop: str, labels: IntArray) -> IntArray:
        """Return 1 for each image whose property votes for another class than its own, 0 for others, -1 unasked."""
        votes = self.votes[prop]
        known = np.isfinite(votes).all(axis=1)
        voted = np.where(known, np.nan_to_num(votes).argmax(axis=1) != labels, -1)
        return np.asarray(voted, dtype=np.int64)


def measure_exchanges(looks: Looks, explained: Explained, *, seed: int, listen: Listener = silent) -> Exchanges:
    """Exchange every property, and let those that predictions follow vote.

    Parameters
    ----------
    looks : Looks
        The images of the explained split, and the classifier.
    explained : Explained
        Labels and logits of the same N images.
    seed : int
    listen : Listener

    Returns
    -------
    Exchanges
        Without reliances where no class has twenty images that are classified right, or all are taken for one class.
    """
    trial = Trial.of(explained, seed)
    if trial is None:
        return Exchanges()
    reliances: list[PropertyReliance] = []
    votes: dict[str, NDArray[np.float32]] = {}
    tests = len(PROPERTIES) * trial.classes
    predict = _Counted(looks.predict_input, 2 * len(trial.receivers) * len(PROPERTIES), listen)
    looks = replace(looks, predict_input=predict)
    for name, exchange in PROPERTIES.items():
        predict.note = name
        found = list(trial.reliances(looks, name, exchange, tests))
        reliances += found
        if any(each.relied_on for each in found):
            votes[name] = _votes(looks, explained, exchange, seed, predict)
    return Exchanges(tuple(reliances), votes)


class _Counted:
    """A classifier that says how many changed images it was asked about, of how many.

    Parameters
    ----------
    predict : callable
        From images as the classifier wants them to logits.
    total : int
        Images that it will be asked about; more where properties vote.
    listen : Listener
    """

    def __init__(self, predict: Predict, total: int, listen: Listener) -> None:
        self.predict, self.total, self.listen = predict, total, listen
        self.done, self.note = 0, ""

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the logits of images."""
        logits = self.predict(pixels)
        self.done += len(pixels)
        self.listen(Progress("exchange", self.done, self.total, "images", self.note))
        return logits


def _votes(looks: Looks, explained: Explained, exchange: Property, seed: int, predict: _Counted) -> NDArray[np.float32]:
    """Return what each image's property adds to the logits of images of other objects, shape (N, K)."""
    rng, n, labels = generator(seed, "exchange", "votes"), len(explained), explained.labels
    right = [np.flatnonzero(explained.correct & (labels == c)) for c in range(len(explained.class_names))]
    usable = [c for c, rows in enumerate(right) if len(rows) >= FEWEST]
    times = int(np.clip(MOST_VOTES // n, FEWEST_VOTES, VOTES))
    donors = np.sort(rng.permutation(n)[: MOST_VOTES // times]).astype(np.int64)
    donors = donors[explained.outputs.predicted[donors] >= 0]  # others have no logits, nor has what they give
    total = np.zeros((len(donors), len(explained.class_names)))
    predict.total += times * len(donors)
    for _ in range(times):
        classes = rng.choice(usable, len(donors))
        receivers = np.array([rng.choice(right[c]) for c in classes], dtype=np.int64)
        added = asked(looks, exchange, receivers, donors) - explained.outputs.logits[receivers]
        added = added - added.mean(axis=1, keepdims=True)
        for c in usable:  # what any donor does to receivers of this class says nothing of the donor
            rows = classes == c
            added[rows] -= added[rows].mean(axis=0) if rows.any() else 0
        total += added / times
    votes = np.full((n, total.shape[1]), np.nan, dtype=np.float32)
    votes[donors] = total
    return votes
