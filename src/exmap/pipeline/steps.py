"""What the steps compute: functions of records, the same for a run, a bench and an analysis in a notebook."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from exmap.auto import AUTO, AutoChoice, find_candidates
from exmap.data import Split
from exmap.engine import Job, engine_of
from exmap.errors import DataError
from exmap.explain import explain_split, reduce_heatmaps
from exmap.groups import ClassGroups, GroupSource
from exmap.model import collect_outputs, fit, save_weights
from exmap.model.batches import is_first
from exmap.model.training import FileCheckpoint
from exmap.pipeline.disk import write_json
from exmap.pipeline.extraction import compute_split
from exmap.pipeline.files import heatmap_file, outputs_file, save_explained
from exmap.records import Explained, Groups, Listener, Outputs, Progress, silent
from exmap.runtime import child_seed
from exmap.settings import ExplainSettings, RuntimeSettings, TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "chosen_groups",
    "explain_by_shards",
    "explain_share",
    "infer_groups",
    "train_share",
]


class Speed:
    """A listener that passes progress on, and measures how many images a second that was.

    Parameters
    ----------
    listen : Listener
    """

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._heard: list[tuple[float, int]] = []  # first and last: when, and how many images were done

    def __call__(self, progress: Progress) -> None:
        """Note the progress, and pass it on."""
        self._heard = [*self._heard[:1], (time.monotonic(), progress.done)]
        self.listen(progress)

    @property
    def images_per_second(self) -> float:
        """Images per second between the first and the last batch; NaN for fewer than two."""
        if len(self._heard) < 2:
            return math.nan
        (began, first), (ended, last) = self._heard
        return round((last - first) / max(ended - began, 1e-9), 1)


def train_share(
    fabric: Fabric,
    model: nn.Module,
    train: Split,
    val: Split,
    settings: TrainSettings,
    *,
    seed: int,
    folder: Path | None,
    listen: Listener,
) -> dict[str, float]:
    """Train in one of the run's processes; the first writes model.safetensors (the selected epoch) and history.json.

    state.safetensors is there while it trains, and an interrupted training continues from it.
    """
    if folder is None:
        raise ValueError("a classifier is trained into a folder; give one that is trained")
    first = is_first(fabric)
    checkpoint = FileCheckpoint(folder / "state.safetensors")
    speed = Speed(listen if first else silent)
    (history,), (weights,) = fit(
        model, train, val, settings, fabric=fabric, seed=seed, checkpoint=checkpoint, listen=speed
    )
    if first:
        model.load_state_dict(weights)
        write_json(folder / "history.json", history)
        save_weights(model, folder / "model.safetensors")
        checkpoint.path.unlink(missing_ok=True)
    return {"images_per_second": speed.images_per_second}


def explain_share(
    fabric: Fabric,
    model: nn.Module,
    split: Split,
    settings: ExplainSettings,
    *,
    explainer: Any = None,
    folder: Path | None,
    listen: Listener,
) -> tuple[dict[str, float], Explained | None]:
    """Explain a split in one of the run's processes; the first writes, batch by batch, or returns what was found."""
    first = is_first(fabric)
    if folder is not None:  # a model that was given stays where it is
        model = model.to(fabric.device if fabric.device.type != "mps" else "cpu")  # mps has no float64
    speed = Speed(listen if first else silent)
    maps, outputs = explain_split(
        model,
        split,
        settings,
        explainer=explainer,
        allocate=None if folder is None else heatmap_file(folder),
        allocate_outputs=None if folder is None else outputs_file(folder),
        fabric=fabric,
        listen=speed,
    )
    measured = {"images_per_second": speed.images_per_second}
    if not first:
        return measured, None
    if folder is not None:
        save_explained(maps, outputs, split.ids, folder)
        return measured, None
    return measured, Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)


def explain_by_shards(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None,
    runtime: RuntimeSettings,
    *,
    explainer: Any = None,
    folder: Path | None,
    listen: Listener,
) -> tuple[dict[str, float], Explained]:
    """Explain a split, or without settings collect its outputs, shard by shard, on the engine of the settings.

    In a folder, finished shards are kept there until all are, and what was explained is saved.
    """
    engine, speed = engine_of(runtime, move=folder is not None), Speed(listen)
    found = compute_split(
        engine,
        Job.of(model, split, settings, explainer),
        split,
        size=runtime.shard_images,
        folder=None if folder is None else folder / "shards",
        allocate=None if folder is None else heatmap_file(folder),
        allocate_outputs=None if folder is None else outputs_file(folder),
        save=None
        if folder is None or settings is None
        else lambda f: save_explained(f.maps(), f.outputs, f.ids, folder),
        listen=speed,
    )
    return {"images_per_second": speed.images_per_second, **engine.measured}, found


def outputs_share(fabric: Fabric, model: nn.Module, split: Split, *, move: bool, listen: Listener) -> Outputs:
    """Collect what a classifier says of a split in one of the run's processes; the first has all of it."""
    if move:
        model = model.to(fabric.device if fabric.device.type != "mps" else "cpu")
    return collect_outputs(model, split, fabric=fabric, listen=listen if is_first(fabric) else silent)


def infer_groups(source: GroupSource, explained: Explained, given: Mapping[str, Any], *, seed: int) -> Groups:
    """Return the groups that a source infers; its heatmaps are reduced first where it has a `size`.

    Parameters
    ----------
    source : GroupSource
    explained : Explained
    given : mapping
        What the source needs beyond, by name.
    seed : int
    """
    size = getattr(source, "size", None)
    if size is not None and explained.heatmaps is not None:
        values = explained.heatmaps.values
        small = reduce_heatmaps(values, size).reshape(len(values), values.shape[1], size, size)
        explained = replace(explained, heatmaps=replace(explained.heatmaps, values=small))
    return source.infer(explained.with_given(**given), seed=seed)


def chosen_groups(
    choice: AutoChoice, explained: Explained, grouped: str, judged: str, *, seed: int, listen: Listener
) -> Groups:
    """Return the chosen grouping of a split.

    Parameters
    ----------
    choice : AutoChoice
    explained : Explained
        The split: the grouped one, the judged one, or another, whose candidates are then made.
    grouped, judged : str
        Names of the splits that the choice was made for and judged on.

    Raises
    ------
    DataError
        If nothing of the kind can be made of the other split.
    """
    if explained.split == grouped:
        return choice.groups
    if explained.split == judged:
        return replace(choice.judged, source=AUTO)
    name = choice.record.chosen or ClassGroups.name
    known = find_candidates(explained, seed=child_seed(seed, AUTO, explained.split), listen=listen).names()
    if name.startswith("exchange["):  # made of images that were asked: of others, the next best is
        name = next((each.name for each in choice.record.candidates if each.eligible and each.name in known), name)
    if name not in known:
        raise DataError(
            f"the chosen grouping {name} cannot be made of the {explained.split} split, whose candidates are "
            f"{', '.join(sorted(known))}; give one of those as a source of its own"
        )
    return replace(known[name].groups, source=AUTO)
