"""Linear probing, then fine-tuning (Kumar, Raghunathan, Jones, Ma and Liang, ICLR 2022), on balanced groups.

"Fine-tuning can distort pretrained features and underperform out-of-distribution": where the last layer is fitted
first, the features change less when they are trained further. Here both are done on balanced groups, and only the last
blocks are trained further, which costs little: what comes before them is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import PositiveInt
from torch import nn

from exmap.data import Split
from exmap.model.blocks import Blocks, last_blocks
from exmap.records import Groups, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.partly import PartlyTrained, from_kept_maps
from exmap.retrain.probed import Probed
from exmap.retrain.selection import Selection
from exmap.retrain.tuning import Setting, combinations
from exmap.settings import TrainSettings

__all__ = ["LPFT", "LastBlocks"]

NAMED = 4  # blocks in a sentence
SMALLER = 0.1  # times the learning rate of the classifier's own training


@dataclass
class LastBlocks(Probed):
    """Base of the learners that fit the last layer on balanced groups, then train the last blocks further.

    Parameters
    ----------
    blocks : int
        How many of the last blocks are trained further.

    Attributes
    ----------
    kept_maps_ : bool
        Whether what the last blocks are given was computed once. Set by :meth:`fit` and :meth:`fit_choices`.

    Notes
    -----
    What the last blocks are given is kept in memory where it fills less than a quarter of what is free, images are not
    cropped at random, there is one process, and it can be proved on the first images that the network may begin there.
    """

    blocks: PositiveInt = field(default=1, kw_only=True)

    @property
    def keeps_maps(self) -> bool:
        """Whether nothing before the last blocks is trained."""
        return True

    def partly(self, model: nn.Module, blocks: Blocks) -> PartlyTrained:
        """Return a copy of a model of which the last blocks and the last layer are trained."""
        return PartlyTrained(model, blocks)

    def said(self, network: PartlyTrained, blocks: Blocks) -> str:
        """Return the sentence about what is trained."""
        trained, total = network.sizes()
        names = named_blocks(network, blocks)
        where = f"{names} and the last layer were" if names else "it alone was, as the network has no block before it,"
        return f"after the last layer was fitted, {where} trained further: {trained:,} of {total:,} weights"

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
        probed, notes = self.probed(self.on_device(model), split, groups, listen)
        blocks = last_blocks(probed, split.first_images(), self.blocks)
        network = self.partly(probed, blocks)
        shown = [split, *(one.split for one in selections[:1])]
        notes += (self.said(network, blocks),)
        keeps = self.keeps_maps and self.runtime.processes == 1
        kept = from_kept_maps(probed, blocks, shown, listen) if keeps else None
        self.kept_maps_ = kept is not None
        if kept is not None:
            network, shown = kept
            of = shown[-1]
            selections = [replace(one, split=of) if one.split is selections[0].split else one for one in selections]
        trained = super().fit_choices(network, shown[0], groups, selections, listen=listen)
        self.notes_ = tuple(dict.fromkeys((*notes, *self.notes_)))  # both stages say what is in no group
        return [one.put_into(probed) for one in trained if isinstance(one, PartlyTrained)]


@LEARNERS.register
@dataclass
class LPFT(LastBlocks):
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

    norms: bool = field(default=False, kw_only=True)

    @property
    def training(self) -> TrainSettings:
        """`train` with the learner's own epochs and weight decay, and with its own or a smaller learning rate."""
        found = super().training
        if self.learning_rate is not None:
            return found
        return found.model_copy(update={"learning_rate": SMALLER * found.learning_rate})

    @property
    def keeps_maps(self) -> bool:
        """Whether nothing before the last blocks is trained."""
        return not self.norms

    def partly(self, model: nn.Module, blocks: Blocks) -> PartlyTrained:
        """Return a copy of a model of which the last blocks and the last layer, and normalisations, are trained."""
        return PartlyTrained(model, blocks, norms=self.norms)


def named_blocks(network: PartlyTrained, blocks: Blocks) -> str:
    """Return the names of the last blocks that hold weights; empty where there is none."""
    last = [name for name in blocks.last if any(True for _ in network.model.get_submodule(name).parameters())]
    return ", ".join(last) if len(last) < NAMED else f"{last[0]} to {last[-1]}"
