"""A finished run opened for looking at: what its stages left, and its images where they are at hand.

Nothing is computed or written here. What figures and exports need comes from the stages; the data are opened for their
images alone, so that a run whose data moved can still be looked at, without images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import nn

from exmap.artifacts import read_groups, read_heads, read_heatmaps, read_outputs
from exmap.cluster import embed
from exmap.config import Settings, change_settings
from exmap.data import Split, build_task
from exmap.errors import DataError, RunFolderError
from exmap.groups import ExMapGroups, OracleGroups
from exmap.groups.assign import class_names_of
from exmap.model import build_model, load_weights
from exmap.records import Groups, Heatmaps, IntArray, Listener, Outputs, silent
from exmap.retrain import Head
from exmap.runtime import child_seed
from exmap.stages import open_run, oracle_source, stage_names
from exmap.store import RunFolder, read_json

__all__ = ["FinishedRun", "open_finished"]


@dataclass(frozen=True)
class FinishedRun:
    """What a run left for looking at, up to its groups at least.

    Attributes
    ----------
    run : RunFolder
    settings : Settings
    split_name : "val" or "train"
        The grouped split.
    ids : tuple of str, length N
        Of the grouped split.
    labels, predicted, clusters : ndarray of int64, shape (N,)
        Class, predicted class and cluster (-1: none) of each image.
    class_names : tuple of str
    sources : mapping of str to Groups
        Pseudo-groups by the name of their source; ``exmap-edited`` where a person edited them. No true groups.
    oracle : Groups or None
        The true groups, where they are known: for showing them beside the others.
    splits : mapping of str to Split
        ``grouped`` and ``test`` with their images; empty where the data are not at hand.
    no_images : str
        Why they are not at hand.
    """

    run: RunFolder
    settings: Settings
    split_name: str
    ids: tuple[str, ...]
    labels: IntArray
    predicted: IntArray
    clusters: IntArray
    class_names: tuple[str, ...]
    sources: Mapping[str, Groups]
    oracle: Groups | None
    splits: Mapping[str, Split]
    no_images: str

    @property
    def groups(self) -> Groups:
        """The pseudo-groups of ExMap."""
        return self.sources[ExMapGroups.name]

    @cached_property
    def heatmaps(self) -> Heatmaps:
        """Heatmaps of the grouped split; their values stay on disk until they are asked for."""
        return read_heatmaps(self.run.stage("explain"))

    @cached_property
    def coordinates(self) -> NDArray[np.float32]:
        """The heatmaps in the plane, shape (N, 2); NaN where a heatmap is not finite."""
        maps = self.heatmaps
        plane = np.full((len(maps), 2), np.nan, dtype=np.float32)
        plane[maps.finite] = embed(maps.flat()[maps.finite], seed=child_seed(self.settings.seed, "embedding"))
        return plane

    def outputs(self, split: str) -> Outputs:
        """Return the trained classifier's outputs of a split, by its name."""
        return read_outputs(self.run.stage("explain"), split)

    def repaired_head(self) -> Head | None:
        """Return the last layer that was fitted to ExMap's groups, or None before retraining."""
        if not _follows(self.run, "retrain", "cluster"):
            return None
        return read_heads(self.run.stage("retrain") / f"{ExMapGroups.name}.safetensors")[0]

    def model(self, stage: str) -> nn.Module:
        """Return the classifier that a stage left: ``train`` or ``retrain``."""
        model = build_model(self.settings.model, len(self.class_names), seed=0)
        load_weights(model, self.run.stage(stage) / "model.safetensors")
        return model.eval()


def open_finished(path: Path, *, data_dir: Path | None = None, listen: Listener = silent) -> FinishedRun:
    """Open a run folder whose groups are made; its settings stay as they are.

    Parameters
    ----------
    path : Path
    data_dir : Path, optional
        Where the data lie now; by default where the run found them.
    listen : Listener

    Raises
    ------
    RunFolderError
        If there is no run, if its groups are not finished, or if they are of another classifier than the one there.
    """
    run, settings = open_run(path)
    settings = change_settings(settings, data__dir=data_dir)
    _check_stages(run)
    table = pq.read_table(run.stage("cluster") / f"{ExMapGroups.name}.parquet")
    ids, labels = tuple(table["id"].to_pylist()), table["class"].to_numpy()
    notes = read_json(run.stage("cluster") / "clusters.json")
    sources = {name: read_groups(run.stage("cluster"), name) for name in notes if name != OracleGroups.name}
    made = [name for name in stage_names()[stage_names().index("cluster") :] if run.record(name) is not None]
    edit = made[: made.index("edit") + 1] if {"retrain", "edit"} <= set(made) else []
    if edit and all(_follows(run, name, before) for before, name in pairwise(edit)):
        edited = read_json(run.stage("edit") / "clusters.json")
        sources |= {name: read_groups(run.stage("edit"), name) for name in edited}
    oracle = read_groups(run.stage("cluster"), OracleGroups.name) if OracleGroups.name in notes else None
    split_name = _identity(run, "explain")["settings"].get("groups.split", "val")
    splits, reason = _splits(run, settings, split_name, ids, listen)
    if splits and oracle is None:
        oracle = _known_groups(splits["grouped"])
    return FinishedRun(
        run=run,
        settings=settings,
        split_name=split_name,
        ids=ids,
        labels=labels,
        predicted=table["predicted"].to_numpy(),
        clusters=table["cluster"].to_numpy(),
        class_names=splits["test"].class_names
        if splits
        else class_names_of(sources[ExMapGroups.name], labels, int(labels.max(initial=-1)) + 1),
        sources=sources,
        oracle=oracle,
        splits=splits,
        no_images=reason,
    )


def _check_stages(run: RunFolder) -> None:
    """Refuse a run whose groups are not made, or were made from what has been replaced since."""
    names = stage_names()[: stage_names().index("cluster") + 1]
    finish = f"finish it with exmap evaluate {run.path}"
    if missing := next((name for name in names if run.record(name) is None), None):
        raise RunFolderError(f"{run.path} is not finished: its stage {missing} is missing; {finish}")
    for before, name in pairwise(names):
        if not _follows(run, name, before):
            raise RunFolderError(
                f"{run.path} is not finished: its stage {name} was made from what has been replaced since; {finish}"
            )


def _follows(run: RunFolder, name: str, before: str) -> bool:
    """Say whether a stage is there, and was made from what the stage before it left."""
    record = run.record(before)
    if record is None or run.record(name) is None:
        return False
    return bool(_identity(run, name).get("before") == record["identity"])


def _identity(run: RunFolder, name: str) -> dict[str, Any]:
    identity: dict[str, Any] = read_json(run.stage(name) / "identity.json") or {"settings": {}}
    return identity


def _splits(
    run: RunFolder, settings: Settings, name: str, ids: tuple[str, ...], listen: Listener
) -> tuple[dict[str, Split], str]:
    """Return the grouped and the test split, or none and why they are not at hand."""
    try:
        task = build_task(settings.data, settings.images, listen=listen)
    except (DataError, OSError) as error:
        return {}, f"the data are not at hand ({error}); say where they are with --data-dir"
    given = _identity(run, "train").get("before", {})
    grouped = task.train if name == "train" else task.val
    if given.get("inputs") != dict(task.digests) or grouped.ids != ids:
        return {}, "the data found are not those the run was made from; say where those are with --data-dir"
    return {"grouped": grouped, "test": task.test}, ""


def _known_groups(split: Split) -> Groups | None:
    try:
        source = oracle_source(split)
    except DataError:  # it has none
        return None
    assert isinstance(source, OracleGroups)
    return Groups(source.index, source.names, source.name, ("true groups",))
