"""The records that travel between steps: frozen, checked on construction, and free of torch.

Shapes are given as N samples, C channels, H x W pixels, K classes, D features and G groups. A group or cluster
of -1 means "unassigned"; an empty group's accuracy is NaN, never 0.
"""

from exmap.records.base import FloatArray, IntArray, Listener, Progress, silent
from exmap.records.explained import Explained, Heatmaps, Outputs, predicted_class
from exmap.records.groups import Clusters, Groups, GroupTable

__all__ = [
    "Clusters",
    "Explained",
    "FloatArray",
    "GroupTable",
    "Groups",
    "Heatmaps",
    "IntArray",
    "Listener",
    "Outputs",
    "Progress",
    "predicted_class",
    "silent",
]
