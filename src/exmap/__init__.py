"""exmap: find the shortcuts an image classifier takes, without group labels, and fix it.

A classifier of your own, in three lines::

    analysis = exmap.analyze(model, images)
    analysis.report("report.html")
    fixed = analysis.repair()

The paper's chain, in five::

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
    from exmap.analysis import Analysis, Fit
    from exmap.api import GEORGE, ExMap, analyze, analyze_in_rounds, evaluate, load, train
    from exmap.auto import AutoChoice
    from exmap.cluster import embed
    from exmap.data import Split, Task, array_split, planted_shortcut
    from exmap.errors import DataError, ExMapError, SettingsError
    from exmap.explain import compute_heatmaps
    from exmap.explain.batch import heatmaps
    from exmap.explain.check import check_model
    from exmap.pipeline.looking import open_analysis
    from exmap.records import Clusters, Explained, Groups, GroupTable, Heatmaps, Outputs, Progress
    from exmap.registry import CLUSTERERS, DATASETS, EXPLAINERS, LEARNERS, MODELS, SOURCES
    from exmap.report import comparison_figure, embedding_figure, mistakes_figure, save_figure, strategies_figure
    from exmap.results import Results, Trust
    from exmap.retrain import (
        AFR,
        BPA,
        DFR,
        DPE,
        JTT,
        LPFT,
        RWG,
        SUBG,
        Cheapest,
        ClassBalanced,
        Exchange,
        GroupDRO,
        LfF,
        NeuronTune,
        Project,
        Selection,
    )
    from exmap.settings import Settings, load_settings

__version__ = "0.2.0"

_HOMES = {
    "exmap.analysis": ("Analysis", "Fit"),
    "exmap.auto": ("AutoChoice",),
    "exmap.api": ("GEORGE", "ExMap", "analyze", "analyze_in_rounds", "evaluate", "load", "train"),
    "exmap.cluster": ("embed",),
    "exmap.data": ("Split", "Task", "array_split", "planted_shortcut"),
    "exmap.errors": ("DataError", "ExMapError", "SettingsError"),
    "exmap.explain": ("compute_heatmaps",),
    "exmap.explain.batch": ("heatmaps",),
    "exmap.explain.check": ("check_model",),
    "exmap.pipeline.looking": ("open_analysis",),
    "exmap.records": ("Clusters", "Explained", "GroupTable", "Groups", "Heatmaps", "Outputs", "Progress"),
    "exmap.registry": ("CLUSTERERS", "DATASETS", "EXPLAINERS", "LEARNERS", "MODELS", "SOURCES"),
    "exmap.report": (
        "comparison_figure",
        "embedding_figure",
        "mistakes_figure",
        "save_figure",
        "strategies_figure",
    ),
    "exmap.results": ("Results", "Trust"),
    "exmap.retrain": (
        "AFR",
        "BPA",
        "Cheapest",
        "ClassBalanced",
        "DFR",
        "DPE",
        "Exchange",
        "GroupDRO",
        "JTT",
        "LPFT",
        "LfF",
        "NeuronTune",
        "Project",
        "RWG",
        "SUBG",
        "Selection",
    ),
    "exmap.settings": ("Settings", "load_settings"),
}

__all__ = [
    "AFR",
    "Analysis",
    "AutoChoice",
    "BPA",
    "CLUSTERERS",
    "Cheapest",
    "ClassBalanced",
    "Clusters",
    "DATASETS",
    "DFR",
    "DPE",
    "DataError",
    "EXPLAINERS",
    "ExMap",
    "ExMapError",
    "Exchange",
    "Explained",
    "Fit",
    "GEORGE",
    "GroupDRO",
    "GroupTable",
    "Groups",
    "Heatmaps",
    "JTT",
    "LEARNERS",
    "LPFT",
    "LfF",
    "MODELS",
    "NeuronTune",
    "Outputs",
    "Progress",
    "Project",
    "RWG",
    "Results",
    "SOURCES",
    "SUBG",
    "Selection",
    "Settings",
    "SettingsError",
    "Split",
    "Task",
    "Trust",
    "analyze",
    "analyze_in_rounds",
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
    "open_analysis",
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
