"""Repair by normalisation layers: their statistics from balanced groups, their scales and shifts trained there.

Statistics of batch normalisation are of the images that a classifier was trained on, so of large groups above all. Li
et al. ("Revisiting batch normalization for practical domain adaptation", 2016) take them from the images that a network
is to work on. Frankle, Schwab and Morcos (ICLR 2021) find that scales and shifts alone, a few weights in a thousand,
can learn much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from exmap.data import Split
from exmap.data.dataset import batch_slices
from exmap.errors import SettingsError
from exmap.model.blocks import Blocks, last_blocks
from exmap.model.running import eager, model_input, run_model, surroundings
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.registry import LEARNERS
from exmap.retrain.balance import left_out
from exmap.retrain.partly import PartlyTrained, scales_and_shifts
from exmap.retrain.probed import Probed
from exmap.retrain.reweight import balanced_draws, checked_rows
from exmap.retrain.selection import Selection
from exmap.runtime import generator

__all__ = ["Norms", "estimate_statistics"]

BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@LEARNERS.register
@dataclass
class Norms(Probed):
    """Change nothing but normalisation layers and the last layer, for any number of classes and groups.

    First the running statistics of batch normalisation are re-estimated from images drawn so that every group is
    equally likely, as many as are in a group. Then scales and shifts of all normalisation layers, and the last layer,
    descend the mean cross-entropy of such draws; everything is in evaluation mode. In the end the last layer is
    fitted again, as :class:`~exmap.retrain.DFR` does, to features of the images that are trained on.

    Parameters
    ----------
    train, runtime, seed, pooled
        As for :class:`~exmap.retrain.RWG`.
    start
        By default the trained classifier.
    statistics : bool
        Whether statistics are re-estimated. Networks without batch normalisation have none.
    scales : bool
        Whether scales and shifts are trained. Without it this costs one pass over the images and a last layer, and
        there is no epoch to choose.
    strengths, tuning_splits, subsamples, smallest_group
        Of the last layer's fit, as for :class:`~exmap.retrain.DFR`.

    Raises
    ------
    SettingsError
        If neither statistics nor scales are to change.
    """

    name: ClassVar[str] = "norms"

    statistics: bool = field(default=True, kw_only=True)
    scales: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.statistics or self.scales):
            raise SettingsError(
                "norms must change statistics or scales, got statistics=False and scales=False; set one of them to "
                "true, or choose dfr, which retrains the last layer alone"
            )
        super().__post_init__()

    def fit_choices(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        *,
        listen: Listener = silent,
    ) -> list[nn.Module]:
        """Change normalisation layers, choose an epoch by each selection, and fit a last layer to each.

        Parameters
        ----------
        model, split, groups, selections, listen
            As for :meth:`WholeNetwork.fit_choices <exmap.retrain.learner.WholeNetwork.fit_choices>`.

        Raises
        ------
        DataError
            If no linear map makes the logits, and what :class:`~exmap.retrain.DFR` and RWG raise.
        """
        self.check_given(split, groups, selections)
        assert groups is not None
        model = self.on_device(model).eval()
        notes: list[str] = [self._estimated(model, split, groups, listen)] if self.statistics else []
        head = last_blocks(model, split.first_images()).head
        network = PartlyTrained(model, Blocks((), (), head), norms=True)
        if not self.scales:
            self.notes_, self.choice_notes_, self.trials_ = left_out(groups), [], []
            trained = [model] * max(len(selections), 1)
            self.history_ = [[] for _ in trained]
        else:
            number = sum(model.get_parameter(name).numel() for name in scales_and_shifts(model))
            notes.append(f"{number:,} scales and shifts of normalisation layers were trained")
            found = super().fit_choices(network, split, groups, selections, listen=listen)
            trained = [one.put_into(model) for one in found if isinstance(one, PartlyTrained)]
        fitted = [self.probed(one, split, groups, listen) for one in trained]
        of_head = [note for _, said in fitted[:1] for note in said]  # the same of every choice
        self.notes_ = tuple(dict.fromkeys((*notes, *self.notes_, *of_head)))
        return [one for one, _ in fitted]

    def _estimated(self, model: nn.Module, split: Split, groups: Groups, listen: Listener) -> str:
        """Re-estimate the statistics, and return a note on it."""
        drawn = balanced_draws(groups, self.pooled)
        checked_rows(self.name, split, drawn.rows, self.runtime.devices)
        rows = drawn.order(0, generator(self.seed, "statistics"))
        layers = estimate_statistics(model, split, rows, batch_size=self.train.batch_size, listen=listen)
        if not layers:
            return "the network has no batch normalisation with running statistics, so none were re-estimated"
        draws = f"{len(rows):,} balanced draws"
        return f"running statistics of {layers} normalisation layers were re-estimated from {draws}"


def estimate_statistics(
    model: nn.Module, split: Split, rows: IntArray, *, batch_size: int, listen: Listener = silent
) -> int:
    """Re-estimate the running statistics of batch normalisation: means over batches, all else in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; its statistics are changed in place.
    split : Split
    rows : ndarray of int64, shape (n,)
        Images that they are taken from, in this order.
    batch_size : int
    listen : Listener

    Returns
    -------
    int
        Number of layers that have such statistics.

    Raises
    ------
    DataError
        If the model fails on a batch.
    """
    layers = [each for each in model.modules() if isinstance(each, BatchNorm) and each.running_mean is not None]
    if not layers:
        return 0
    with torch.no_grad(), surroundings(), eager(model), _learning(layers):
        for part in batch_slices(len(rows), batch_size):
            if len(rows[part]) > 1:  # one image by itself has no variance
                run_model(model, model_input(model, split.images.batch(rows[part])))
            listen(Progress(f"statistics ({split.name})", min(part.stop, len(rows)), len(rows)))
    return len(layers)


@contextmanager
def _learning(layers: Sequence[Any]) -> Iterator[None]:
    """Let batch normalisation forget its statistics, and take the mean over what it sees inside the block."""
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.training = True
    try:
        yield
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum
            layer.training = False
