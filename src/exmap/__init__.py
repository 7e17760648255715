"""exmap: find the shortcuts an image classifier takes, without group labels, and fix it.

The five lines::

    task = exmap.load("cmnist", data_dir="mnist")
    model = exmap.train(task)
    groups = exmap.ExMap(scope="global").infer(model, task.val)
    fixed = exmap.DFR().fit(model, task.val, groups)
    print(exmap.evaluate(fixed, task.test))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exmap.api import GEORGE, ExMap, evaluate, load, train
    from exmap.cluster import embed
    from exmap.config import Settings, load_settings
    from exmap.data import Split, Task, array_split, planted_shortcut
    from exmap.errors import ExMapError
    from exmap.explain import compute_heatmaps
    from exmap.explain.batch import heatmaps
    from exmap.explain.check import check_model
    from exmap.records import Clusters, Groups, GroupTable, Heatmaps, Outputs
    from exmap.report import comparison_figure, embedding_figure, mistakes_figure, save_figure, strategies_figure
    from exmap.retrain import AFR, BPA, DFR, JTT, RWG, SUBG, ClassBalanced, GroupDRO, LfF, Selection

__version__ = "0.1.0"

_HOMES = {
    "exmap.api": ("GEORGE", "ExMap", "evaluate", "load", "train"),
    "exmap.cluster": ("embed",),
    "exmap.config": ("Settings", "load_settings"),
    "exmap.data": ("Split", "Task", "array_split", "planted_shortcut"),
    "exmap.errors": ("ExMapError",),
    "exmap.explain": ("compute_heatmaps",),
    "exmap.explain.batch": ("heatmaps",),
    "exmap.explain.check": ("check_model",),
    "exmap.records": ("Clusters", "GroupTable", "Groups", "Heatmaps", "Outputs"),
    "exmap.report": (
        "comparison_figure",
        "embedding_figure",
        "mistakes_figure",
        "save_figure",
        "strategies_figure",
    ),
    "exmap.retrain": (
        "AFR",
        "BPA",
        "ClassBalanced",
        "DFR",
        "GroupDRO",
        "JTT",
        "LfF",
        "RWG",
        "SUBG",
        "Selection",
    ),
}

__all__ = [
    "AFR",
    "BPA",
    "DFR",
    "GEORGE",
    "JTT",
    "RWG",
    "SUBG",
    "ClassBalanced",
    "Clusters",
    "ExMap",
    "ExMapError",
    "GroupDRO",
    "GroupTable",
    "Groups",
    "Heatmaps",
    "LfF",
    "Outputs",
    "Selection",
    "Settings",
    "Split",
    "Task",
    "array_split",
    "check_model",
    "comparison_figure",
    "compute_heatmaps",
    "embed",
    "embedding_figure",
    "evaluate",
    "heatmaps",
    "load",
    "load_settings",
    "mistakes_figure",
    "planted_shortcut",
    "save_figure",
    "strategies_figure",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that importing exmap itself is quick."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'exmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
