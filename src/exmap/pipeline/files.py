"""Records as files in the folder of a step, and back (``docs/run-folder.md`` says what each file holds)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from exmap.analysis import Fit
from exmap.auto import AutoChoice, Exchanges, Intervention
from exmap.data import Split
from exmap.explain.heatmaps import AllocateOutputs
from exmap.model import load_weights, save_weights
from exmap.pipeline.disk import array_file, arrays_file, save_arrays, save_table, write_json
from exmap.pipeline.kept import kept_array, kept_arrays, kept_json, kept_table, mapped_arrays
from exmap.records import Clusters, Explained, Groups, Heatmaps, Outputs
from exmap.results import AutoRecord, ClassHarm, DoubtfulLabels, PropertyReliance, RepairTrial
from exmap.retrain import Head

__all__ = [
    "heatmap_file",
    "load_choice",
    "load_explained",
    "load_fits",
    "load_groups",
    "load_outputs",
    "outputs_file",
    "save_choice",
    "save_explained",
    "save_fits",
    "save_groups",
    "save_outputs",
]

CHECK = b"exmap.check"  # key in the metadata of heatmaps.parquet
OUTPUTS = "outputs.safetensors"
WEIGHTS = "model{}.safetensors"


def save_outputs(outputs: Outputs, folder: Path) -> None:
    """Write outputs.safetensors: features and logits; what lies in such a file already is copied from there."""
    path, there = folder / OUTPUTS, _file_of(outputs)
    if there is None:
        save_arrays({"features": outputs.features, "logits": outputs.logits}, path)
    elif not (path.is_file() and there.samefile(path)):  # the array names its file from the root on
        shutil.copyfile(there, path)
    else:
        for array in (outputs.features, outputs.logits):
            cast("np.memmap[Any, Any]", array).flush()


def load_outputs(folder: Path, images: int | None = None) -> Outputs:
    """Return features and logits, of so many images, which stay on disk until they are asked for."""
    arrays = mapped_arrays(folder / OUTPUTS, features=(images, None), logits=(images, None))
    return Outputs(arrays["features"], arrays["logits"])


def outputs_file(folder: Path) -> AllocateOutputs:
    """Return what makes outputs.safetensors, mapped into memory, once the shapes of features and logits are known."""

    def allocate(features: tuple[int, ...], logits: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
        arrays = arrays_file(folder / OUTPUTS, {"features": features, "logits": logits})
        return arrays["features"], arrays["logits"]

    return allocate


def _file_of(outputs: Outputs) -> Path | None:
    """Return the file that holds just these features and logits; None where there is none."""
    arrays = (outputs.features, outputs.logits)
    if not all(isinstance(array, np.memmap) and array.filename and array.flags.c_contiguous for array in arrays):
        return None
    paths = {Path(str(cast("np.memmap[Any, Any]", array).filename)) for array in arrays}
    path = paths.pop()
    if paths or path.name != OUTPUTS or not path.is_file():
        return None
    whole = load_outputs(path.parent)
    same = whole.features.shape == outputs.features.shape and whole.logits.shape == outputs.logits.shape
    return path if same else None


def heatmap_file(folder: Path) -> Callable[[tuple[int, ...]], NDArray[np.float32]]:
    """Return what makes heatmaps.npy, mapped into memory, once its shape is known."""
    return lambda shape: array_file(folder / "heatmaps.npy", shape)


def save_explained(maps: Heatmaps, outputs: Outputs, ids: Sequence[str], folder: Path) -> None:
    """Finish heatmaps.npy, and write heatmaps.parquet, a row per image, with channels.npy and outputs.safetensors."""
    if isinstance(maps.values, np.memmap):
        maps.values.flush()
    columns = {
        "id": list(ids),
        "target": maps.target,
        "conservation_error": maps.conservation_error,
        "finite": maps.finite,
        "zero": maps.zero,
    }
    if maps.input_share is not None:
        columns["input_share"] = maps.input_share
    if maps.channels is not None:
        np.save(folder / "channels.npy", maps.channels, allow_pickle=False)
    table = pa.table(columns).replace_schema_metadata({CHECK: json.dumps(dict(maps.check)).encode()})
    save_table(table, folder / "heatmaps.parquet")
    save_outputs(outputs, folder)


def load_explained(split: Split, folder: Path) -> Explained:
    """Return an explained split; the heatmaps' values stay on disk until they are asked for."""
    n, channels = len(split), folder / "channels.npy"
    numbers = {"target": "iu", "conservation_error": "f", "finite": "b", "zero": "b"}
    table = kept_table(folder / "heatmaps.parquet", n, numbers)
    check = (table.schema.metadata or {}).get(CHECK, b"{}")
    maps = Heatmaps(
        kept_array(folder / "heatmaps.npy", (n, None, None, None)),
        target=table["target"].to_numpy(),
        conservation_error=table["conservation_error"].to_numpy(),
        finite=table["finite"].to_numpy(),
        zero=table["zero"].to_numpy(),
        input_share=table["input_share"].to_numpy() if "input_share" in table.column_names else None,
        channels=kept_array(channels, (n, None)) if channels.exists() else None,
        check=json.loads(check),
    )
    return Explained(split.name, split.ids, split.labels, split.class_names, load_outputs(folder, n), maps)


def save_groups(groups: Groups, explained: Explained, folder: Path) -> None:
    """Write groups.parquet, a row per image, and groups.json: names, classes, and what the clustering said."""
    clusters = groups.clusters.labels if groups.clusters else np.full(len(groups), -1, dtype=np.int64)
    table = {
        "id": list(explained.ids),
        "class": explained.labels,
        "cluster": clusters,
        "group": groups.index,
        "group_name": [groups.names[g] if g >= 0 else "unassigned" for g in groups.index],
        "predicted": explained.predicted,
        "correct": explained.correct,
    }
    save_table(pa.table(table), folder / "groups.parquet")
    record = {
        "source": groups.source,
        "names": groups.names,
        "counts": groups.counts().tolist(),
        "classes": groups.classes,
        "parts": groups.parts,
        "labels_used": groups.labels_used,
        "scope": groups.clusters.scope if groups.clusters else None,
        "fits": groups.clusters.notes if groups.clusters else (),
    }
    write_json(folder / "groups.json", record)


def load_groups(folder: Path, images: int | None = None) -> Groups:
    """Return the groups of a split, of so many images."""
    record = kept_json(folder / "groups.json")
    table = kept_table(folder / "groups.parquet", images, {"group": "iu", "cluster": "iu"})
    clusters = None
    if record["scope"] is not None:
        clusters = Clusters(table["cluster"].to_numpy(), record["scope"], tuple(record["fits"]))
    return Groups(
        table["group"].to_numpy(),
        tuple(record["names"]),
        record["source"],
        tuple(record["labels_used"]),
        clusters,
        classes=tuple(record["classes"]),
        parts=tuple(record["parts"]),
    )


def save_choice(choice: AutoChoice, explained: Explained, judged: Explained, folder: Path) -> None:
    """Write auto.json, and the chosen groups of the grouped and of the judged split in folders of their own."""
    write_json(folder / "auto.json", choice.record.to_json())
    for name, groups, split in (("groups", choice.groups, explained), ("judged", choice.judged, judged)):
        (folder / name).mkdir(exist_ok=True)
        save_groups(groups, split, folder / name)


def load_choice(folder: Path) -> AutoChoice:
    """Return the choice of a grouping."""
    record = AutoRecord.from_json(kept_json(folder / "auto.json"))
    return AutoChoice(load_groups(folder / "groups"), load_groups(folder / "judged"), record.repaired, record)


def save_exchanges(exchanges: Exchanges, folder: Path) -> None:
    """Write exchange.json, and the votes of properties."""
    write_json(
        folder / "exchange.json",
        {
            "reliances": [each.to_json() for each in exchanges.reliances],
            "reactions": {name: each.to_json() for name, each in exchanges.reactions.items()},
            "warnings": list(exchanges.warnings),
            "mislabelled": None
            if exchanges.mislabelled is None
            else [each.to_json() for each in exchanges.mislabelled],
        },
    )
    save_arrays(dict(exchanges.votes), folder / "votes.safetensors")


def load_exchanges(folder: Path) -> Exchanges:
    """Return what was measured by exchanges of properties."""
    record = kept_json(folder / "exchange.json")
    doubtful = record.get("mislabelled")  # absent in earlier runs
    return Exchanges(
        tuple(PropertyReliance.from_json(each) for each in record["reliances"]),
        kept_arrays(folder / "votes.safetensors"),
        {name: Intervention.from_json(each) for name, each in record["reactions"].items()},
        tuple(record["warnings"]),
        None if doubtful is None else tuple(DoubtfulLabels.from_json(each) for each in doubtful),
    )


def save_fits(fits: Mapping[str, Fit], folder: Path) -> None:
    """Write fit.json, predicted.safetensors, and the heads or the weights of the network that was fitted.

    Parameters
    ----------
    fits : mapping of str to Fit
        By method. Several methods come of one training where they differ in what its epoch is chosen by.
    folder : Path
    """
    notes: dict[str, Any] = {}
    for number, (method, fit) in enumerate(fits.items()):
        save_arrays({"predicted": fit.predicted}, folder / f"predicted{_number(number)}.safetensors")
        if fit.heads:
            save_arrays(
                {f"{i}.{key}": getattr(head, key) for i, head in enumerate(fit.heads) for key in ("weight", "bias")},
                folder / f"heads{_number(number)}.safetensors",
            )
        if fit.network is not None:
            save_weights(fit.network, folder / WEIGHTS.format(_number(number)))
        notes[method] = {
            "number": number,
            "notes": list(fit.notes),
            "epoch": fit.epoch,
            "left_alone": fit.left_alone,
            "harm": [each.to_json() for each in fit.harm],
            "first_line": fit.first_line,
            "seconds": fit.seconds,
            "repairs": [each.to_json() for each in fit.repairs],
            "heads": [
                {"strength": h.strength, "tuning": h.tuning, "notes": h.notes, "chosen": h.chosen} for h in fit.heads
            ],
        }
    write_json(folder / "fit.json", notes)


def load_fits(folder: Path, network: Callable[[], nn.Module], images: int | None = None) -> dict[str, Fit]:
    """Return fits by method.

    Parameters
    ----------
    folder : Path
    network : callable
        Returns the classifier without weights, for those of whole networks.
    images : int, optional
        How many test images they must be of.
    """
    fits = {}
    for method, note in kept_json(folder / "fit.json").items():
        number = _number(note["number"])
        heads: list[Head] = []
        if note["heads"]:
            arrays = kept_arrays(folder / f"heads{number}.safetensors")
            heads = [_head(arrays, i, row) for i, row in enumerate(note["heads"])]
        weights, model = folder / WEIGHTS.format(number), None
        if weights.exists() and not heads:
            model = network()
            load_weights(model, weights)
            model.eval()
        predicted = kept_arrays(folder / f"predicted{number}.safetensors", predicted=(None, images))["predicted"]
        fits[method] = Fit(
            predicted,
            tuple(heads),
            model,
            tuple(note["notes"]),
            epoch=note["epoch"],
            left_alone=note["left_alone"],
            harm=tuple(ClassHarm.from_json(each, where=folder / "fit.json") for each in note.get("harm", ())),
            first_line=note.get("first_line", ""),
            seconds=note["seconds"],
            repairs=tuple(RepairTrial.from_json(each, where=folder / "fit.json") for each in note.get("repairs", ())),
        )
    return fits


def _head(arrays: Mapping[str, NDArray[np.float32]], number: int, note: Mapping[str, Any]) -> Head:
    return Head(
        arrays[f"{number}.weight"],
        arrays[f"{number}.bias"],
        note["strength"],
        note["tuning"],
        tuple(note["notes"]),
        note["chosen"],
    )


def _number(number: int) -> str:
    """Return what tells the files of several fits apart; nothing for the first."""
    return f"-{number}" if number else ""
