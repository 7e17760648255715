"""Heatmaps: layer-wise relevance propagation through zennit, reduced to what clustering reads."""

from exmap.explain.gradient import input_gradient_maps
from exmap.explain.heatmaps import compute_heatmaps, explain_split
from exmap.explain.propagate import SymmetricGamma
from exmap.explain.reduce import reduce_heatmaps, reduce_maps
from exmap.explain.rules import composite_names, make_composite

__all__ = [
    "SymmetricGamma",
    "composite_names",
    "compute_heatmaps",
    "explain_split",
    "input_gradient_maps",
    "make_composite",
    "reduce_heatmaps",
    "reduce_maps",
]
