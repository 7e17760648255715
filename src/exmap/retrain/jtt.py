"""Just train twice: show the errors of a first, short training more often in a second (Liu et al., ICML 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import nn

from exmap.data import Split
from exmap.errors import DataError, SettingsError
from exmap.model.backbone import collect_outputs
from exmap.model.fit import Objective
from exmap.model.training import train_model
from exmap.records import Groups, Listener, Progress
from exmap.registry import LEARNERS
from exmap.retrain.learner import WholeNetwork
from exmap.retrain.reweight import Shuffled
from exmap.runtime import child_seed

__all__ = ["JTT"]


@LEARNERS.register
@dataclass
class JTT(WholeNetwork):
    """Train a copy for a few epochs, then train from the start on a set in which its errors appear many times.

    The fit needs no groups; only the epoch is chosen by those of a selection. The paper tunes the two parameters for
    each data set, by the worst true group of a validation set: 60 epochs and 100 times for Waterbirds, 1 and 50 for
    CelebA, 2 and 4 for MultiNLI, 2 and 6 for CivilComments. It also tunes weight decay (1 for Waterbirds, 0.1 for
    CelebA) and the learning rate (1e-5 for both), of both trainings, as ``tuned`` does here; otherwise both keep the
    settings given. The second has 300 epochs on Waterbirds and 50 on CelebA, from ImageNet weights; here it has as many
    as `train` says, or `steps`, which do not count those of the first. An error appears `up_weight` times an epoch, as
    the paper says; the authors' code adds so many copies to the one that is there.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`. The first training has the same settings except for its
        number of epochs, over which the learning rate falls, and draws of its own.
    identification_epochs : int
        Of the first training, T in the paper.
    up_weight : int
        How many times an epoch shows each error, lambda in the paper; with 1 the second training is ERM.

    Attributes
    ----------
    error_set_ : ndarray of bool, shape (N,)
        What the first training got wrong; with ``tuned`` that of the last combination. Set by :meth:`fit` and
        :meth:`fit_choices`.

    Raises
    ------
    SettingsError
        If a parameter is below 1.
    """

    name: ClassVar[str] = "jtt"
    fits_groups: ClassVar[bool] = False

    identification_epochs: PositiveInt = 1
    up_weight: PositiveInt = 50

    def __post_init__(self) -> None:
        if min(self.identification_epochs, self.up_weight) < 1:
            raise SettingsError(
                "jtt needs identification_epochs and up_weight of at least 1, got "
                f"{self.identification_epochs} and {self.up_weight}; the paper's for CelebA are 1 and 50"
            )
        super().__post_init__()

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return the split with every error `up_weight` times, and the mean cross-entropy; groups are ignored.

        Raises
        ------
        DataError
            If the first training makes no errors.
        """
        self.error_set_ = self._errors(copy.deepcopy(model), split, listen)
        errors, epochs = int(self.error_set_.sum()), self.identification_epochs
        if not errors:
            raise DataError(
                f"jtt needs errors to show more often, but the identification model makes none on split {split.name} "
                f"with identification_epochs={epochs}; lower it or train.learning_rate"
            )
        self.notes_ = (
            *self.notes_,
            f"with identification_epochs={epochs}, {errors} of {len(split)} samples are in the error set: an epoch "
            f"shows each of them {self.up_weight} times",
        )
        return Shuffled(np.repeat(np.arange(len(split)), np.where(self.error_set_, self.up_weight, 1)))

    def _errors(self, model: nn.Module, split: Split, listen: Listener) -> NDArray[np.bool_]:
        """Train the identification model in place and return what it gets wrong."""
        train_model(
            model,
            split,
            None,
            self.training.model_copy(update={"epochs": self.identification_epochs}),
            self.runtime,
            seed=child_seed(self.seed, "identification"),
            listen=partial(_as_identification, listen),
        )
        return np.asarray(collect_outputs(model, split, listen=listen).predicted != split.labels)


def _as_identification(listen: Listener, progress: Progress) -> None:
    """Pass on the first training's progress under a name of its own."""
    listen(replace(progress, task="identify"))
