"""The classifier: build or load it, train it, read its features and its last linear layer."""

from exmap.model.backbone import build_model, collect_outputs
from exmap.model.check import check_inputs
from exmap.model.classifier import check_differentiable, logits_of, unwrapped
from exmap.model.ending import LastLayer
from exmap.model.fit import Checkpoint, FitState, fit
from exmap.model.fits import check_fits
from exmap.model.head import (
    as_classifier,
    features_and_logits,
    find_head,
    find_head_or_none,
    find_last_layer,
)
from exmap.model.replace import replace_head
from exmap.model.weights import initial_model, load_weights, save_weights

__all__ = [
    "Checkpoint",
    "FitState",
    "LastLayer",
    "as_classifier",
    "build_model",
    "check_differentiable",
    "check_fits",
    "check_inputs",
    "collect_outputs",
    "features_and_logits",
    "find_head",
    "find_head_or_none",
    "find_last_layer",
    "fit",
    "initial_model",
    "load_weights",
    "logits_of",
    "replace_head",
    "save_weights",
    "unwrapped",
]
