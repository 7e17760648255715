"""Readers of files of weights, of results and of finished steps."""

from __future__ import annotations

import json
import random
import shutil

from damage import damage_bytes
from materials import Materials, pick
from reader import emptied, written
from torch import nn

from exmap.model.weights_file import WeightsFile
from exmap.pipeline.looking import open_analysis
from exmap.results import Results

__all__ = ["judge_results", "judge_step", "judge_weights"]


def judge_weights(made: Materials, number: int) -> list[str]:
    rng = random.Random(number)
    source = rng.choice(("model.safetensors", "model.pt", "checkpoint.pt"))
    path = made.weights / source
    model = small_net()
    data, how = damage_bytes(path.read_bytes(), path.suffix, rng)
    found = WeightsFile.read(written(data, f"w{path.suffix}"), model)
    state = found.state_for(model)
    bad = [name for name, value in state.items() if value.shape != model.state_dict()[name].shape]
    return [f"accepted: {bad} ({how})"] if bad else []


def small_net() -> nn.Module:
    model = nn.Module()
    model.features = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.fc = nn.Linear(4, 2)
    return model


def judge_results(made: Materials, number: int) -> list[str]:
    rng = random.Random(number)
    data, _ = damage_bytes((made.run / "results.json").read_bytes(), ".json", rng)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return []
    results = Results.from_json(tree)
    again = Results.from_json(json.loads(json.dumps(results.to_json(), allow_nan=False)))
    repr(results)
    results.to_frame()
    return [] if again == results else ["written and read it is another"]


def judge_step(made: Materials, number: int) -> list[str]:
    """A damaged file of a finished step is named where it is read, or not needed."""
    rng = random.Random(number)
    with emptied("step") as root:
        run = root / "run"
        shutil.copytree(made.run, run)
        path = pick(rng, run)
        data, how = damage_bytes(path.read_bytes(), path.suffix, rng)
        path.write_bytes(data)
        analysis = open_analysis(run)
        explained = analysis.explained
        lengths = {len(explained.ids), len(explained.labels), len(explained.outputs.logits)}
        if explained.heatmaps is not None:
            lengths.add(len(explained.heatmaps.values))
        lengths |= {len(groups.index) for groups in analysis.groups.values()}
        return [f"lengths {lengths} after {path.relative_to(run)} {how}"] if len(lengths) > 1 else []
