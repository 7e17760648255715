"""Two networks trained together; and XRM's twins (Pezeshki et al., "Discovering environments with XRM", ICML 2024).

Each twin owns a random half of the training split and learns from that half alone. A sample's label is replaced, with a
probability that grows with the confidence of the twin that does not own it, by what that twin predicts: whatever both
can learn from halves of the data, the shortcut, drowns what contradicts it. What either twin gets wrong in the end, by
the original labels, is a *cross-mistake*, on training and validation images alike.

As in the authors' code (github.com/facebookresearch/XRM) the last step's networks are used: there is no early stopping.
The share of flipped labels compares *settings*, not epochs. The loss is the mean over the classes in a batch, where
theirs is the sum, so that a learning rate means what it means for the classifier; and the halves are equal, where
theirs are drawn sample by sample.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.model.backbone import evaluation_mode, images_at_once, model_device, to_tensor
from exmap.model.batches import Halved
from exmap.model.classifier import logits_of
from exmap.model.fit import Answers, Row
from exmap.model.running import run_model
from exmap.model.small_maps import small_maps_as_products
from exmap.model.training import train_choices
from exmap.records import FloatArray, IntArray, Listener, Progress, silent
from exmap.runtime import generator, make_fabric
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["CrossRisk", "Pair", "Twins", "flip_chances", "train_twins"]


class Pair(nn.Module):
    """Two networks that see the same images: both answer while they train, only the second in evaluation."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> Any:
        """Return the logits of both, each (n, K), while training, and else those of the second."""
        if not self.training:
            return self.second(x)
        return Answers(logits_of(run_model(network, x.clone()), len(x)) for network in (self.first, self.second))


@dataclass(frozen=True)
class Twins:
    """What XRM's twins make of the images.

    Attributes
    ----------
    train_predicted, val_predicted : ndarray of int64, shape (N,)
        The prediction of a twin that is mistaken, where there is one: it differs from the label exactly where either
        twin is wrong, which is the paper's cross-mistake. Of two mistakes on a training image the held-out one counts.
    held_out : ndarray of int64, shape (N_train,)
        What the twin that does not own a training image predicts for it.
    owner : ndarray of int64, shape (N_train,)
        0 or 1: the twin whose half holds the image.
    score : float
        Share of training labels flipped in the end, by which the paper chooses among settings; 0 if a class of either
        split has no cross-mistakes, or nothing else.
    history : list of dict
        One row per epoch, as in :func:`exmap.model.fit.fit`, and its `flip_rate`.
    """

    train_predicted: IntArray
    val_predicted: IntArray
    held_out: IntArray
    owner: IntArray
    score: float
    history: list[Row]


class CrossRisk:
    """XRM's objective: each twin's class-balanced cross-entropy on its half, under labels that the other twin flips.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,), in [0, n_classes)
        Of the training split; stay as they are.
    n_classes : int
    seed : int
        Of the halves and the flips.

    Attributes
    ----------
    owner : ndarray of int64, shape (N,)
        0 or 1: the twin that learns from the sample.
    labels : ndarray of int64, shape (N,)
        As flipped up to now.
    flip_rates : list of float
        Share of labels that are not the original ones, at the end of each epoch.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, labels: IntArray, n_classes: int, *, seed: int) -> None:
        self.original, self.labels, self.n_classes = labels, labels.copy(), n_classes
        self.owner: IntArray = generator(seed, "halves").permutation(len(labels)) % 2
        self.flips = generator(seed, "flips")
        self.flip_rates: list[float] = []

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return all rows, shuffled."""
        self.flip_rates.append(0.0)
        return rng.permutation(len(self.labels))

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the mean over classes of the mean loss of the owners' logits; then flip labels.

        Parameters
        ----------
        logits : pair of Tensor of shape (n, K)
        labels : Tensor of int64, shape (n,)
            Only says where to compute; the labels learned from are those flipped up to now.
        rows : ndarray of int64, shape (n,)
        """
        first, second = logits
        firsts = torch.from_numpy(self.owner[rows] == 0).to(first.device)[:, None]
        current = torch.from_numpy(self.labels[rows]).to(labels.device)
        losses = nn.functional.cross_entropy(torch.where(firsts, first, second), current, reduction="none")
        weights = 1 / torch.bincount(current, minlength=self.n_classes)[current].float()
        self._flip(torch.where(firsts, second, first).detach(), rows)
        return (weights * losses).sum() / weights.sum()

    def _flip(self, logits: torch.Tensor, rows: IntArray) -> None:
        """Replace labels by the held-out predictions, the more often the surer these are."""
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
        flipped = self.flips.random(len(rows)) < flip_chances(confidence.cpu().numpy(), self.n_classes)
        self.labels[rows] = np.where(flipped, predicted.cpu().numpy(), self.labels[rows])
        self.flip_rates[-1] = float((self.labels != self.original).mean())


def flip_chances(confidence: FloatArray, n_classes: int) -> FloatArray:
    """Return the probability that a label gives way to a held-out prediction.

    Parameters
    ----------
    confidence : ndarray of float, shape (n,), in [1 / n_classes, 1]
        Largest probability of the twin that does not own the sample.
    n_classes : int

    Examples
    --------
    >>> flip_chances(np.array([0.5, 0.75, 1.0]), 2)
    array([0. , 0.5, 1. ])
    """
    return (confidence - 1 / n_classes) * n_classes / (n_classes - 1)


def train_twins(
    model: nn.Module,
    train: Split,
    val: Split,
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    seed: int,
    listen: Listener = silent,
) -> Twins:
    """Train XRM's twins and return what they predict.

    Parameters
    ----------
    model : torch.nn.Module
        Both twins start from its weights, as they do in the authors' runs with pretrained networks; what sets them
        apart is their halves. It must not have been trained on these images. It stays as it is.
    train, val : Split
        Images and class labels; the twins learn from `train` alone.
    settings : TrainSettings
        The last epoch is used, whatever ``select`` says.
    runtime : RuntimeSettings
        One process.
    seed : int
    listen : Listener

    Raises
    ------
    NumericalError
        If the loss leaves the finite numbers.
    """
    pair = Pair(copy.deepcopy(model), copy.deepcopy(model))
    objective = CrossRisk(train.labels, train.n_classes, seed=seed)
    (history,), _ = train_choices(
        pair, train, None, settings, runtime, seed=seed, objective=objective, listen=listen
    )  # in one process, so the pair and the objective are those that were trained
    both, of_val = (_predictions(pair, split, runtime, listen) for split in (train, val))
    columns = np.arange(len(train))
    held_in, held_out = both[objective.owner, columns], both[1 - objective.owner, columns]
    train_predicted = _mistaken(held_out, held_in, train.labels)
    val_predicted = _mistaken(of_val[0], of_val[1], val.labels)
    split_up = all(
        _splits_every_class(split.labels, predicted != split.labels)
        for split, predicted in ((train, train_predicted), (val, val_predicted))
    )
    rates = objective.flip_rates
    return Twins(
        train_predicted,
        val_predicted,
        held_out,
        objective.owner,
        rates[-1] if rates and split_up else 0.0,
        [{**row, "flip_rate": rate} for row, rate in zip(history, rates, strict=True)],
    )


def _predictions(pair: Pair, split: Split, runtime: RuntimeSettings, listen: Listener) -> IntArray:
    """Return the class that each twin gives each image, shape (2, N)."""
    predicted = np.empty((2, len(split)), dtype=np.int64)
    device = model_device(pair)
    fabric = make_fabric(runtime)

    def classes(_: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        batch = to_tensor(images, device)
        twins = (pair.first, pair.second)
        return [logits_of(run_model(twin, batch.clone()), len(batch)).argmax(dim=1) for twin in twins]

    compute = Halved(classes, images_at_once(split, device))
    with torch.inference_mode(), evaluation_mode(pair), small_maps_as_products(pair), fabric.autocast():
        for part, images in split.batches(images_at_once(split, device)):
            for twin, found in enumerate(compute(part, images)):
                predicted[twin, part] = found.cpu().numpy()
            listen(Progress(f"twins ({split.name})", part.stop, len(split)))
    return predicted


def _mistaken(one: IntArray, other: IntArray, labels: IntArray) -> IntArray:
    """Return the predictions of `one` where they are wrong, and else those of the `other`."""
    return np.where(one != labels, one, other)


def _splits_every_class(labels: IntArray, wrong: NDArray[np.bool_]) -> bool:
    """Return whether every class in `labels` has mistakes and others."""
    return all(0 < wrong[labels == label].mean() < 1 for label in np.unique(labels))
