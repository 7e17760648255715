"""Heatmaps: relevance propagation by operation, reduced to what clustering reads."""

from exmap.explain.batch import BatchHeatmaps
from exmap.explain.engine import Relevance, propagate
from exmap.explain.explainers import explainer_names, make_explainer
from exmap.explain.heatmaps import compute_heatmaps, explain_split
from exmap.explain.reduce import reduce_heatmaps, reduce_maps
from exmap.explain.rules import composite_names, make_composite

__all__ = [
    "BatchHeatmaps",
    "Relevance",
    "composite_names",
    "compute_heatmaps",
    "explain_split",
    "explainer_names",
    "make_composite",
    "make_explainer",
    "propagate",
    "reduce_heatmaps",
    "reduce_maps",
]
