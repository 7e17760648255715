"""Group-robust learners. Each takes a model, a split and groups, and returns a model."""

from exmap.retrain.balance import balanced_subset
from exmap.retrain.last_layer import DFR, Head

__all__ = ["DFR", "Head", "balanced_subset"]
