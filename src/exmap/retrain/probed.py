"""A last layer fitted to balanced groups, as part of a longer repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from exmap.data import Split
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.model.probe import copied
from exmap.records import Groups, Listener
from exmap.retrain.balanced import STRENGTHS
from exmap.retrain.head import finite_part
from exmap.retrain.last_layer import DFR
from exmap.retrain.reweight import RWG
from exmap.retrain.whole_network import Start
from exmap.runtime import child_seed, make_fabric

__all__ = ["Probed"]


@dataclass
class Probed(RWG):
    """Base of the learners that also fit the last layer as :class:`~exmap.retrain.DFR` does, to the training images.

    Parameters
    ----------
    start
        By default the trained classifier.
    strengths, tuning_splits, subsamples, smallest_group
        Of the last layer's fit, as for :class:`~exmap.retrain.DFR`.
    """

    start: Start = field(default="classifier", kw_only=True)
    strengths: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = field(default=STRENGTHS, kw_only=True)
    tuning_splits: PositiveInt = field(default=5, kw_only=True)
    subsamples: PositiveInt = field(default=20, kw_only=True)
    smallest_group: PositiveInt = field(default=6, kw_only=True)

    def on_device(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model on the device of the settings; several processes move theirs by themselves."""
        made = copied(model)
        return made.to(make_fabric(self.runtime).device) if self.runtime.processes == 1 else made

    def probed(
        self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a copy of the model with a last layer fitted to balanced groups, and what is to be said of the fit.

        Raises
        ------
        DataError
            If no linear map makes the logits, and what :class:`~exmap.retrain.DFR` raises.
        """
        last = find_last_layer(model, split.first_images())
        features = collect_outputs(model, split, head=last, listen=listen).features
        features, labels, groups, left_out = finite_part(features, split.labels, groups, split.ids)
        learner = DFR(
            self.strengths,
            self.tuning_splits,
            self.subsamples,
            self.smallest_group,
            seed=child_seed(self.seed, "probe"),
        )
        head = learner.fit_head(features, labels, groups, n_classes=split.n_classes, listen=listen)
        return replace_head(model, last, head.weight, head.bias).eval(), (*left_out, *head.notes)
