"""Debiasing by pseudo-attributes: clusters weighed by their loss and their size (BPA; Seo, Lee and Han, CVPR 2022).

A sample of cluster k weighs ``omega_k``, which follows, by momentum, the cluster's mean loss divided by its number of
samples: small clusters and those that the network fails on count more. As in the authors' code
(github.com/skynbe/pseudo-attributes), the mean is over each sample's loss when it was last seen, the weights are
renewed once an epoch (before the first they follow the sizes alone), and a batch is divided by the sum of its weights.
The authors' clusters are those of k-means by cosine distance, 8 in each class, on the features of a classifier trained
before; here they are whatever groups are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from exmap.data import Split
from exmap.model.fit import Objective
from exmap.records import Groups, IntArray, Listener
from exmap.registry import LEARNERS
from exmap.retrain.balance import left_out
from exmap.retrain.learner import WholeNetwork

__all__ = ["BPA", "ClusterRisk"]


@LEARNERS.register
@dataclass
class BPA(WholeNetwork):
    """Cross-entropy with weights by cluster; samples without one are left out.

    The authors' code trains with Adam (on CelebA at a learning rate of 1e-4), by default for 50 epochs; here it is SGD
    for as many epochs as `train` says, or for `steps`: then the weights are renewed where a pass over the samples is
    drawn, and where a part of the steps holds several passes, as often at once.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`WholeNetwork`.
    momentum : float
        How far an epoch moves the weights towards what they follow, in (0, 1].
    """

    momentum: Annotated[float, Field(gt=0, le=1)] = 0.3

    name: ClassVar[str] = "bpa"
    one_process: ClassVar[bool] = True
    own_source: ClassVar[str] = "george[method=kmeans,n_clusters=8]"  # what it clusters where it is given no groups

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return the risk weighed by clusters."""
        assert groups is not None
        self.notes_ = (*self.notes_, *left_out(groups))
        return ClusterRisk(groups.index, self.momentum)


class ClusterRisk:
    """The cross-entropy weighed by cluster.

    Parameters
    ----------
    index : ndarray of int64, shape (N,)
        Cluster of each sample; -1 is left out.
    momentum : float

    Attributes
    ----------
    weights : ndarray of float64, shape (G,)
        Of the clusters; their mean over samples is 1.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, index: IntArray, momentum: float = 0.3) -> None:
        self.index, self.momentum = index, momentum
        self.rows = np.flatnonzero(index >= 0)
        self.counts = np.bincount(index[self.rows])
        self.weights = np.ones(len(self.counts))
        self.losses = np.ones(len(index))  # as last seen; alike in all clusters before the first epoch

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Renew the weights, and return all rows in clusters, shuffled."""
        totals = np.bincount(self.index[self.rows], weights=self.losses[self.rows])
        means = totals / np.maximum(self.counts, 1)
        if means.sum() > 0:
            followed = means / np.maximum(self.counts, 1) * len(self.rows) / means.sum()
            self.weights = (1 - self.momentum) * self.weights + self.momentum * followed
        return rng.permutation(self.rows)

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the weighted mean cross-entropy of the batch, and take note of each sample's."""
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        self.losses[rows] = losses.detach().cpu().numpy()
        weights = torch.from_numpy(self.weights[self.index[rows]]).to(losses)
        return (weights * losses).sum() / weights.sum()
