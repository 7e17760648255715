"""The stages as rows, and the runner that skips what is finished and makes again what its settings changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exmap.config import Settings, dump_settings
from exmap.data import Task, build_task
from exmap.model import build_model, load_weights, save_weights
from exmap.model.training import FileCheckpoint, train_model
from exmap.records import Listener, silent
from exmap.runtime import child_seed
from exmap.store import RunFolder, StagePart, write_json

PATHS = {"data": ("dir", "download")}  # where things lie is not part of what they are


def identity_of(settings: Settings, sections: tuple[str, ...], task: Task, needs: Mapping[str, str]) -> dict[str, Any]:
    tree = dump_settings(settings)
    chosen = {
        name: {k: v for k, v in tree[name].items() if k not in PATHS.get(name, ())}
        if isinstance(tree[name], dict)
        else tree[name]
        for name in sections
    }
    return {"settings": chosen, "inputs": dict(task.digests), "needs": dict(needs)}


def _train(part, settings, task, run, listen):
    model = build_model(settings.model, task.n_classes, seed=child_seed(settings.seed, "model"))
    if settings.model.weights:
        load_weights(model, settings.model.weights)
    checkpoint = FileCheckpoint(part.path / "state.safetensors")
    history = train_model(model, task.train, task.val, settings.train, settings.runtime,
                          seed=child_seed(settings.seed, "train"), checkpoint=checkpoint, listen=listen)
    write_json(part.path / "history.json", history)
    save_weights(model, part.path / "model.safetensors")
    checkpoint.path.unlink()
