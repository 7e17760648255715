"""A last layer that is fitted once more after a whole network was trained."""

from __future__ import annotations

from torch import nn

from exmap.model import collect_outputs, find_last_layer
from exmap.records import IntArray, Listener, silent
from exmap.retrain.harm import fits_to_parts
from exmap.retrain.last_layer import DFR
from exmap.retrain.learner import own_head
from exmap.retrain.selection import Selection

__all__ = ["predicted_apart", "refit"]


def refit(model: nn.Module, selection: Selection, *, seed: int, listen: Listener = silent) -> nn.Module:
    """Return the network with a last layer fitted to the groups of a selection, by :class:`~exmap.retrain.DFR`.

    A network trained on images that are few, or changed, is often sure of the wrong share of each class; its features
    are better than its last layer.

    Parameters
    ----------
    model : torch.nn.Module
    selection : Selection
        Images that the network was not trained on.
    seed : int
    listen : Listener

    Raises
    ------
    DataError
        If no linear map makes the logits, or a class has no sample in a group.
    """
    return DFR(seed=seed, harm="warn").fit(model, selection.split, selection.groups, listen=listen)


def predicted_apart(model: nn.Module, selection: Selection, *, seed: int, listen: Listener = silent) -> IntArray:
    """Return what a refitted network says of the images its last layer was fitted to, each by layers fitted to others.

    Parameters
    ----------
    model : torch.nn.Module
        As :func:`refit` returned it.
    selection, seed, listen
        As for :func:`refit`.

    Returns
    -------
    ndarray of int64, shape (N,)
        Of images in no group, what the network itself says.
    """
    split, groups = selection.split, selection.groups
    last = find_last_layer(model, split.first_images())
    outputs, learner = collect_outputs(model, split, head=last, listen=listen), DFR(seed=seed, harm="warn")
    own, predicted = own_head(last), outputs.predicted.copy()
    if own is None:
        return predicted
    head = learner.fit_head(outputs.features, split.labels, groups, n_classes=split.n_classes, listen=listen)
    for fitted, rows in fits_to_parts(learner, head, outputs.features, split.labels, groups, own, split.n_classes):
        predicted[rows] = fitted.predict(outputs.features[rows])
    return predicted
