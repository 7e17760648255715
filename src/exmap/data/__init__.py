"""Data sets: images, labels and ids; the true groups kept aside for evaluation."""

from exmap.data.catalog import build_task, dataset_names
from exmap.data.dataset import ArrayImages, Images, Split, Task, TrueGroups, array_split, batch_slices
from exmap.data.planted import planted_shortcut

__all__ = [
    "ArrayImages",
    "Images",
    "Split",
    "Task",
    "TrueGroups",
    "array_split",
    "batch_slices",
    "build_task",
    "dataset_names",
    "planted_shortcut",
]
