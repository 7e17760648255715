"""Linear probing, then fine-tuning (Kumar, Raghunathan, Jones, Ma and Liang, ICLR 2022), on balanced groups.

"Fine-tuning can distort pretrained features and underperform out-of-distribution": where the last layer is fitted
first, the features change less when they are trained further. Here both are done on balanced groups, and only the last
blocks are trained further, which costs little: what comes before them is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from exmap.data import Split
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.model.blocks import Blocks, last_blocks
from exmap.model.probe import copied
from exmap.records import Groups, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.balanced import STRENGTHS
from exmap.retrain.head import finite_part
from exmap.retrain.last_layer import DFR
from exmap.retrain.partly import PartlyTrained, from_kept_maps
from exmap.retrain.reweight import RWG
from exmap.retrain.selection import Selection
from exmap.retrain.tuning import Setting, combinations
from exmap.retrain.whole_network import Start
from exmap.runtime import child_seed, make_fabric
from exmap.settings import TrainSettings

__all__ = ["LPFT"]

NAMED = 4  # blocks in a sentence
SMALLER = 0.1  # times the learning rate of the classifier's own training


@LEARNERS.register
@dataclass
class LPFT(RWG):
    """Fit the last layer on balanced groups, then train it and the last blocks further, as RWG does.

    The last layer is :class:`~exmap.retrain.DFR`'s, fitted to features of the images that are trained on. Then samples
    are drawn so that every group is equally likely, and the last blocks (:mod:`exmap.model.blocks`) and the last layer
    descend the mean cross-entropy. All else stays as it is, in evaluation mode.

    The paper trains all of a pretrained network after a logistic regression, without groups, and tunes the learning
    rate of both stages on validation data. Training only some blocks is as in Lee et al., "Surgical fine-tuning
    improves adaptation to distribution shifts" (ICLR 2023).

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`; the learning rate is a tenth of that of `train` unless it
        is given.
    start
        By default the trained classifier.
    blocks : int
        How many of the last blocks are trained further.
    norms : bool
        Whether scales and shifts of normalisation layers are trained in all of the network. Then nothing can be
        computed once, and an epoch costs about as much as one of the classifier's own.
    strengths, tuning_splits, subsamples, smallest_group
        Of the last layer's fit, as for :class:`~exmap.retrain.DFR`.

    Attributes
    ----------
    kept_maps_ : bool
        Whether what the last blocks are given was computed once. Set by :meth:`fit` and :meth:`fit_choices`.

    Notes
    -----
    What the last blocks are given is kept in memory where it fills less than a quarter of what is free, images are not
    cropped at random, there is one process, and it can be proved on the first images that the network may begin there.
    """

    name: ClassVar[str] = "lp_ft"
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1.0, 0.1, 0.01), weight_decay=(1e-4, 1e-2))

    start: Start = field(default="classifier", kw_only=True)
    blocks: PositiveInt = field(default=1, kw_only=True)
    norms: bool = field(default=False, kw_only=True)
    strengths: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = field(default=STRENGTHS, kw_only=True)
    tuning_splits: PositiveInt = field(default=5, kw_only=True)
    subsamples: PositiveInt = field(default=20, kw_only=True)
    smallest_group: PositiveInt = field(default=6, kw_only=True)

    @property
    def training(self) -> TrainSettings:
        """`train` with the learner's own epochs and weight decay, and with its own or a smaller learning rate."""
        found = super().training
        if self.learning_rate is not None:
            return found
        return found.model_copy(update={"learning_rate": SMALLER * found.learning_rate})

    def fit_choices(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        *,
        listen: Listener = silent,
    ) -> list[nn.Module]:
        """Fit the last layer, train the last blocks once and choose an epoch by each selection.

        Parameters
        ----------
        model, split, groups, selections, listen
            As for :meth:`WholeNetwork.fit_choices <exmap.retrain.learner.WholeNetwork.fit_choices>`.

        Raises
        ------
        DataError
            If no linear map makes the logits, and what :class:`~exmap.retrain.DFR` and RWG raise.
        """
        if self.runtime.processes == 1:
            model = copied(model).to(make_fabric(self.runtime).device)
        probed, notes = self._probed(model, split, groups, listen)
        blocks = last_blocks(probed, split.first_images(), self.blocks)
        network = PartlyTrained(probed, blocks, norms=self.norms)
        shown = [split, *(one.split for one in selections[:1])]
        notes += (_sizes(network, blocks),)
        keeps = not self.norms and self.runtime.processes == 1
        kept = from_kept_maps(probed, blocks, shown, listen) if keeps else None
        self.kept_maps_ = kept is not None
        if kept is not None:
            network, shown = kept
            of = shown[-1]
            selections = [replace(one, split=of) if one.split is selections[0].split else one for one in selections]
        trained = super().fit_choices(network, shown[0], groups, selections, listen=listen)
        self.notes_ = tuple(dict.fromkeys((*notes, *self.notes_)))  # both stages say what is in no group
        return [one.put_into(probed) for one in trained if isinstance(one, PartlyTrained)]

    def _probed(
        self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a copy of the model with a last layer fitted to balanced groups, and what is to be said of the fit."""
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


def _sizes(network: PartlyTrained, blocks: Blocks) -> str:
    """Return the sentence about what is trained."""
    trained, total = network.sizes()
    last = [name for name in blocks.last if any(True for _ in network.model.get_submodule(name).parameters())]
    names = ", ".join(last) if len(last) < NAMED else f"{last[0]} to {last[-1]}"
    where = f"{names} and the last layer were" if names else "it alone was, as the network has no block before it,"
    return f"after the last layer was fitted, {where} trained further: {trained:,} of {total:,} weights"
