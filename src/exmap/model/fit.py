"""Empirical risk minimisation: the training loop, with selection of the epoch and resumption after a kill.

SGD with momentum and a cosine schedule by epoch (ExMap supplement, section 2.3). Each epoch's order and every random
draw of the model come from the run's seed and the epoch's number, so a run that continues after epoch 4 makes the
same epoch 5 as one that was never stopped. The epoch kept is chosen by worst-*class* validation accuracy (default) or
plain mean accuracy; the paper's choice, accuracy weighted by true groups, would be an oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from exmap.config import TrainSettings
from exmap.data.dataset import Split, batch_slices
from exmap.errors import NumericalError, SettingsError
from exmap.model.backbone import evaluation_mode, images_at_once, to_tensor
from exmap.model.small_maps import small_maps_as_products
from exmap.records import IntArray, Listener, Progress, silent
from exmap.runtime import child_seed, generator, torch_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Checkpoint", "FitState", "fit"]

Row = dict[str, Any]


@dataclass
class FitState:
    """All that a later epoch depends on: finished epochs, weights, momentum, the best epoch so far.

    Attributes
    ----------
    epoch : int
        Number of finished epochs.
    weights, momentum, best : dict of str to Tensor
        State of the model, the optimiser's momentum by parameter name, and the model's state at the best epoch.
    history : list of dict
        One row per finished epoch: epoch, train_loss, learning_rate, val_mean, val_worst_class, kept.
    """

    epoch: int
    weights: dict[str, torch.Tensor]
    momentum: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    history: list[Row] = field(default_factory=list)


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
    val: Split,
    settings: TrainSettings,
    *,
    fabric: Fabric,
    seed: int,
    checkpoint: Checkpoint | None = None,
    listen: Listener = silent,
) -> list[Row]:
    """Train `model` in place and leave it with the weights of the selected epoch.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, C, H, W) to (n, K) logits.
    train, val : Split
        Images and class labels; the true groups are never read.
    settings : TrainSettings
    fabric : Fabric
        Launched; with several processes each takes its share of every batch.
    seed : int
    checkpoint : Checkpoint, optional
    listen : Listener

    Returns
    -------
    list of dict
        One row per epoch, as in :class:`FitState`.

    Raises
    ------
    NumericalError
        If the loss leaves the finite numbers.
    SettingsError
        If a batch is too small to be shared out.
    """
    if settings.batch_size < 2 * fabric.world_size:
        raise SettingsError(
            f"train.batch_size must be at least 2 for each of the {fabric.world_size} processes, got "
            f"{settings.batch_size}; raise it or lower runtime.devices"
        )
    if not settings.epochs:
        return []
    state = checkpoint.load() if checkpoint else None
    if state:
        model.load_state_dict(state.weights)
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
    history: list[Row] = list(state.history) if state else []
    best = state.best if state else {}
    for epoch in range(len(history), settings.epochs):
        rate = settings.learning_rate * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        optimizer.param_groups[0]["lr"] = rate
        with small_maps_as_products(model):
            with torch_seed(child_seed(seed, "epoch", epoch, fabric.global_rank)):
                loss = _train_epoch(wrapped, optimizer, train, settings, fabric, seed, epoch, listen)
            accuracy = _class_accuracy(model, val, images_at_once(val), fabric)
        score = {"worst_class": accuracy.worst, "mean": accuracy.mean, "last": float(epoch)}[settings.select]
        kept = score > max((row["score"] for row in history), default=-math.inf)
        if kept:
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        history.append(
            {
                "epoch": epoch + 1,
                "train_loss": loss,
                "learning_rate": rate,
                "val_mean": accuracy.mean,
                "val_worst_class": accuracy.worst,
                "score": score,
                "kept": kept,
            }
        )
        if checkpoint and fabric.global_rank == 0:
            buffers = {n: optimizer.state[p].get("momentum_buffer") for n, p in zip(names, parameters, strict=True)}
            momentum = {name: buffer for name, buffer in buffers.items() if buffer is not None}
            checkpoint.save(FitState(epoch + 1, model.state_dict(), momentum, best, list(history)))
    model.load_state_dict(best)
    return history


def _train_epoch(
    model: Any,
    optimizer: Any,
    train: Split,
    settings: TrainSettings,
    fabric: Fabric,
    seed: int,
    epoch: int,
    listen: Listener,
) -> float:
    """Take one step per batch and return the mean loss over the epoch's images."""
    model.train()
    order = generator(seed, "order", epoch).permutation(len(train))
    total = torch.zeros((), dtype=torch.float64)
    seen = 0
    batches = _batches(order, settings.batch_size, fabric.world_size)
    shares = [np.array_split(batch, fabric.world_size)[fabric.global_rank] for batch in batches]
    requests = ((s, child_seed(seed, "crops", epoch, n, fabric.global_rank)) for n, s in enumerate(shares))
    for batch, share, images in zip(batches, shares, train.images.stream(requests), strict=True):
        labels = torch.from_numpy(train.labels[share]).to(fabric.device)
        # Processes average their gradients; this weight makes that the mean over the whole batch.
        weight = len(share) * fabric.world_size / len(batch)
        loss = nn.functional.cross_entropy(model(to_tensor(images, fabric.device)), labels) * weight
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        total += loss.detach().cpu() * (len(batch) / fabric.world_size)
        seen += len(batch)
        note = f"epoch {epoch + 1}/{settings.epochs}"
        listen(Progress("train", epoch * len(train) + seen, settings.epochs * len(train), note=note))
    summed: Any = fabric.all_reduce(total, reduce_op="sum")
    mean = float(summed) / seen
    if not math.isfinite(mean):
        raise NumericalError(
            f"the training loss of epoch {epoch + 1} is {mean}; it must be finite: lower train.learning_rate (now "
            f"{settings.learning_rate:g}) or set runtime.precision=32-true"
        )
    return mean


def _batches(order: IntArray, size: int, processes: int) -> list[IntArray]:
    """Cut an epoch's order into batches; a last one too small for batch normalisation joins the one before."""
    batches = [order[part] for part in batch_slices(len(order), size)]
    if len(batches) > 1 and len(batches[-1]) < max(size // 4, 2 * processes):
        last = batches.pop()
        batches[-1] = np.concatenate([batches[-1], last])
    return batches


@dataclass(frozen=True)
class _Accuracy:
    mean: float
    worst: float


def _class_accuracy(model: nn.Module, split: Split, size: int, fabric: Fabric) -> _Accuracy:
    """Return mean and worst-class accuracy; each process takes every world_size-th batch.

    The bare model is run, since a process may have one batch more than another, and the wrapper waits for all.
    """
    if fabric.world_size > 1:  # running statistics differ by the last batch; those of the first process are saved
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    right = torch.zeros(split.n_classes, dtype=torch.float64)
    with torch.inference_mode(), evaluation_mode(model), fabric.autocast():
        parts = list(batch_slices(len(split), size))[fabric.global_rank :: fabric.world_size]
        rows = ((np.arange(part.start, part.stop, dtype=np.int64), None) for part in parts)
        for part, images in zip(parts, split.images.stream(rows), strict=True):
            predicted = model(to_tensor(images, fabric.device)).argmax(dim=1).cpu().numpy()
            hits = split.labels[part][predicted == split.labels[part]]
            right += torch.from_numpy(np.bincount(hits, minlength=split.n_classes))
    summed: Any = fabric.all_reduce(right, reduce_op="sum")
    right = summed.cpu()
    count = np.bincount(split.labels, minlength=split.n_classes)
    present = count > 0
    return _Accuracy(float(right.sum()) / len(split), float((right.numpy()[present] / count[present]).min()))
