"""The training loop, with selection of the epoch and resumption after a kill.

It minimises the empirical risk unless it is given another :class:`Objective`: which samples an epoch shows and what a
batch costs is all that group-robust learners change about training.

SGD with momentum and a cosine schedule by epoch (ExMap supplement, section 2.3). Each epoch's order and every random
draw of the model come from the run's seed and the epoch's number, so a run that continues after epoch 4 makes the
same epoch 5 as one that was never stopped. The epoch kept is chosen by worst-*class* validation accuracy (default) or
plain mean accuracy; the paper's choice, accuracy weighted by true groups, would be an oracle. Groups of the validation
split can take the place of its classes, and several such choices can be made from one training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split, batch_slices
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.evaluation import worst_share
from exmap.model.batches import Halved, agreed_size
from exmap.model.classifier import logits_of
from exmap.model.fits import check_trainable
from exmap.model.halving import AtOnce, step_in_parts
from exmap.model.running import (
    evaluation_mode,
    images_at_once,
    model_device,
    model_input,
    ran_out_of_memory,
    run_model,
    way_back,
)
from exmap.model.small_maps import small_maps_as_products
from exmap.records import IntArray, Listener, Progress, silent
from exmap.runtime import child_seed, generator, torch_seed
from exmap.settings import TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Answers", "ChangesImages", "Checkpoint", "EmpiricalRisk", "FitState", "Objective", "fit"]

Row = dict[str, Any]
Weights = dict[str, torch.Tensor]


class Objective(Protocol):
    """What a learner changes about training."""

    one_process: ClassVar[bool]  # whether it keeps track of samples or groups, and so must see every batch whole

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows of the training split that an epoch shows, in order; a row may come more than once."""
        ...

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return what a batch costs: one number to descend.

        Parameters
        ----------
        logits : Tensor of shape (n, K), or whatever the model returns while it trains
        labels : Tensor of int64, shape (n,)
        rows : ndarray of int64, shape (n,)
            Which samples of the training split they are.
        """
        ...


@runtime_checkable
class ChangesImages(Protocol):
    """An objective that also changes what the model is shown."""

    def images(self, batch: NDArray[np.float32], rows: IntArray, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return what the model is shown in place of a batch, before its forward pass.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, C, H, W)
            Images as the model wants them, cropped where the training split crops.
        rows : ndarray of int64, shape (n,)
            Which samples of the training split they are; with several processes, this one's share of the batch.
        rng : numpy.random.Generator
            Of the run's seed, the epoch, the batch and the process: a training that goes on draws the same.

        Returns
        -------
        ndarray of float32, shape (n, C, H, W)
        """
        ...


class Answers(tuple[torch.Tensor, torch.Tensor]):
    """Logits of two networks, each (n, K), for an objective that takes both."""


@dataclass(frozen=True)
class EmpiricalRisk:
    """Every sample once an epoch, and the mean cross-entropy (ERM).

    Attributes
    ----------
    n_samples : int
        Of the training split.
    """

    n_samples: int
    one_process: ClassVar[bool] = False

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return all rows, shuffled."""
        return rng.permutation(self.n_samples)

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the mean cross-entropy of the batch."""
        return nn.functional.cross_entropy(logits, labels)


@dataclass
class FitState:
    """All that a later epoch depends on: finished epochs, weights, momentum, the best epoch so far.

    Attributes
    ----------
    epoch : int
        Number of finished epochs.
    weights, momentum : dict of str to Tensor
        State of the model, and the optimiser's momentum by parameter name.
    best : list of dict of str to Tensor
        For each choice the model's state at its best epoch.
    history : list of list of dict
        For each choice one row per finished epoch: epoch, train_loss, learning_rate, val_mean, val_worst_class (the
        worst group, where the choice is made by groups), score, kept.
    """

    epoch: int
    weights: Weights
    momentum: Weights
    best: list[Weights]
    history: list[list[Row]] = field(default_factory=list)


class Checkpoint(Protocol):
    """Where :func:`fit` leaves its state after each epoch; the caller decides what that is."""

    def load(self) -> FitState | None:
        """Return the last state, or None at the start."""
        ...

    def save(self, state: FitState) -> None:
        """Keep the state."""
        ...


def fit(
    model: nn.Module,
    train: Split,
    val: Split | None,
    settings: TrainSettings,
    *,
    fabric: Fabric,
    seed: int,
    objective: Objective | None = None,
    choices: Sequence[IntArray] | None = None,
    checkpoint: Checkpoint | None = None,
    listen: Listener = silent,
) -> tuple[list[list[Row]], list[Weights]]:
    """Train `model` in place.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, C, H, W) to (n, K) logits.
    train, val : Split
        Images and class labels; the true groups are never read. Without a validation split the last epoch is kept.
    settings : TrainSettings
    fabric : Fabric
        Launched; with several processes each takes its share of every batch.
    seed : int
    objective : Objective, optional
        By default the empirical risk.
    choices : sequence of ndarray of int64, shape (N,), optional
        For each choice of an epoch the group of each validation sample (-1 is left out): the worst one's accuracy
        takes the place of the worst class's. By default one choice, by classes.
    checkpoint : Checkpoint, optional
    listen : Listener

    Returns
    -------
    history : list of list of dict
        For each choice one row per epoch, as in :class:`FitState`.
    best : list of dict of str to Tensor
        For each choice the weights of its epoch.

    Raises
    ------
    NumericalError
        If the loss leaves the finite numbers.
    SettingsError, DataError
        If a batch, or the whole split, is too small to be shared out.
    """
    objective = objective or EmpiricalRisk(len(train))
    if choices is None or val is None:
        choices = [np.zeros(0, dtype=np.int64) if val is None else val.labels]
    if settings.batch_size < 2 * fabric.world_size:
        raise SettingsError(
            f"train.batch_size must be at least 2 for each of the {fabric.world_size} processes, got "
            f"{settings.batch_size}; raise it or lower runtime.devices"
        )
    if fabric.world_size > 1 and len(train) < 2 * fabric.world_size:
        raise DataError(
            f"training in {fabric.world_size} processes needs at least 2 images for each, got {len(train)}; lower "
            "runtime.devices"
        )
    check_trainable(model, train)
    if not settings.epochs:
        return [[] for _ in choices], [_copied(model) for _ in choices]
    state = checkpoint.load() if checkpoint else None
    if state:
        model.load_state_dict(state.weights)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # quicker; of another number of dimensions there may be no such format
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    wrapped, optimizer = fabric.setup(model, optimizer)
    parameters = optimizer.param_groups[0]["params"]
    if state:
        for name, parameter in zip(names, parameters, strict=True):
            if name in state.momentum:  # in the parameter's own memory layout: the fused step may pair them by address
                buffer = torch.empty_like(parameter).copy_(state.momentum[name])
                optimizer.state[parameter]["momentum_buffer"] = buffer
    history: list[list[Row]] = [list(rows) for rows in state.history] if state else [[] for _ in choices]
    best: list[Weights] = list(state.best) if state else [{} for _ in choices]
    at_once = AtOnce(2 * settings.batch_size)  # a last batch may be larger than the others
    for epoch in range(len(history[0]), settings.epochs):
        rate = settings.learning_rate * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        optimizer.param_groups[0]["lr"] = rate
        with small_maps_as_products(model), _enough_memory(settings.batch_size):
            with torch_seed(child_seed(seed, "epoch", epoch, fabric.global_rank)):
                loss = _train_epoch(
                    wrapped, optimizer, train, objective, settings, fabric, seed, epoch, at_once, listen
                )
            right = _right(model, val, fabric)
        mean = float(right.mean()) if len(right) else math.nan
        for number, (index, rows) in enumerate(zip(choices, history, strict=True)):
            worst = worst_share(right, index)
            score = {"worst_class": worst, "mean": mean, "last": float(epoch)}[
                settings.select if len(right) else "last"
            ]
            kept = score > max((row["score"] for row in rows), default=-math.inf)
            if kept:
                best[number] = _copied(model)
            rows.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": loss,
                    "learning_rate": rate,
                    "val_mean": mean,
                    "val_worst_class": worst,
                    "score": score,
                    "kept": kept,
                }
            )
        if checkpoint and fabric.global_rank == 0:
            buffers = {n: optimizer.state[p].get("momentum_buffer") for n, p in zip(names, parameters, strict=True)}
            momentum = {name: buffer for name, buffer in buffers.items() if buffer is not None}
            checkpoint.save(FitState(epoch + 1, model.state_dict(), momentum, best, [list(rows) for rows in history]))
    return history, best


@contextmanager
def _enough_memory(batch_size: int) -> Iterator[None]:
    """State what to do where memory runs out inside the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise SettingsError(
            f"memory must suffice for training on {batch_size} images at a time, but ran out; lower train.batch_size, "
            "or images.resize"
        ) from error


def _logits(model: nn.Module, x: torch.Tensor) -> Any:
    """Return the logits of a batch, shape (n, K), or what a pair of networks returns while it trains."""
    output = run_model(model, x)
    return output if isinstance(output, Answers) else logits_of(output, len(x))


def _copied(model: nn.Module) -> Weights:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _train_epoch(
    model: Any,
    optimizer: Any,
    train: Split,
    objective: Objective,
    settings: TrainSettings,
    fabric: Fabric,
    seed: int,
    epoch: int,
    at_once: AtOnce,
    listen: Listener,
) -> float:
    """Take one step per batch and return the mean loss over the epoch's images."""
    model.train()
    order = objective.order(epoch, generator(seed, "order", epoch))
    total = torch.zeros((), dtype=torch.float64)
    seen = 0
    batches = _batches(order, settings.batch_size, fabric.world_size)
    shares = [np.array_split(batch, fabric.world_size)[fabric.global_rank] for batch in batches]
    requests = ((s, child_seed(seed, "crops", epoch, n, fabric.global_rank)) for n, s in enumerate(shares))
    changes = objective if isinstance(objective, ChangesImages) else None
    shown = zip(batches, shares, train.images.stream(requests), strict=True)
    for number, (batch, share, images) in enumerate(shown):
        if changes is not None:
            images = changes.images(images, share, generator(seed, "images", epoch, number, fabric.global_rank))
        labels = torch.from_numpy(train.labels[share]).to(fabric.device)
        # Processes average their gradients; this weight makes that the mean over the whole batch.
        weight = len(share) * fabric.world_size / len(batch)
        optimizer.zero_grad()
        most = at_once.most
        cost = partial(_cost, objective, labels, share, weight)
        loss = _add_gradients(model, images, cost, fabric, at_once)
        optimizer.step()
        total += loss.cpu() * (len(batch) / fabric.world_size)
        seen += len(batch)
        note = f"epoch {epoch + 1}/{settings.epochs}"
        if at_once.most < settings.batch_size:
            note += f", {at_once.most} images at a time, as memory ran out"
        done, of_all = epoch * len(order) + seen, settings.epochs * len(order)
        listen(Progress("train", done, of_all, note=note, at_once=at_once.most < most))
    summed: Any = fabric.all_reduce(total, reduce_op="sum")
    mean = float(summed) / seen
    if not math.isfinite(mean):
        raise NumericalError(
            f"the training loss of epoch {epoch + 1} is {mean}; it must be finite: lower train.learning_rate (now "
            f"{settings.learning_rate:g}) or set runtime.precision=32-true"
        )
    return mean


def _cost(objective: Objective, labels: torch.Tensor, rows: IntArray, weight: float, logits: Any) -> torch.Tensor:
    """Return this process's part of what a batch costs."""
    return objective.loss(logits, labels, rows) * weight


def _add_gradients(
    model: Any, images: NDArray[np.float32], cost: Callable[[Any], torch.Tensor], fabric: Fabric, at_once: AtOnce
) -> torch.Tensor:
    """Return what a batch costs, after adding its gradients; one process alone takes parts where memory runs out."""

    def run(part: slice) -> Any:
        return _logits(model, model_input(model, images[part]))

    def backward(number: torch.Tensor) -> None:
        if not number.requires_grad:
            raise DataError(
                "the model must be trainable, but its logits do not depend on its weights through gradients; look in "
                "forward for detach, .data, no_grad or numpy"
            )
        with way_back(otherwise=""):
            fabric.backward(number)

    if fabric.world_size == 1:
        return step_in_parts(at_once, len(images), run=run, loss=cost, backward=backward, model=model)
    loss = cost(run(slice(0, len(images))))
    backward(loss)
    return loss.detach()


def _batches(order: IntArray, size: int, processes: int) -> list[IntArray]:
    """Cut an epoch's order into batches; a last one too small for batch normalisation joins the one before."""
    batches = [order[part] for part in batch_slices(len(order), size)]
    if len(batches) > 1 and len(batches[-1]) < max(size // 4, 2 * processes):
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])
    return batches


def _right(model: nn.Module, split: Split | None, fabric: Fabric) -> NDArray[np.bool_]:
    """Return which images are classified right, shape (N,); each process takes every world_size-th batch.

    The bare model is run, since a process may have one batch more than another, and the wrapper waits for all.
    """
    if fabric.world_size > 1:  # running statistics differ by the last batch; those of the first process are saved
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    if split is None:
        return np.zeros(0, dtype=np.bool_)
    right = torch.zeros(len(split), dtype=torch.float32)

    def predicted(_: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        return [_logits(model, model_input(model, images)).argmax(dim=1).cpu()]

    with torch.inference_mode(), evaluation_mode(model), fabric.autocast():
        size = agreed_size(images_at_once(split, model_device(model)), fabric)
        compute = Halved(predicted, size)
        parts = list(batch_slices(len(split), size))[fabric.global_rank :: fabric.world_size]
        rows = ((np.arange(part.start, part.stop, dtype=np.int64), None) for part in parts)
        for part, images in zip(parts, split.images.stream(rows), strict=True):
            (found,) = compute(part, images)
            right[part] = torch.from_numpy((found.numpy() == split.labels[part]).astype(np.float32))
    summed: Any = fabric.all_reduce(right, reduce_op="sum")
    return np.asarray(summed.cpu().numpy() > 0)
