"""How many images are computed at once, and last layers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_classifiers import IMAGES, Own, numbers, vectors
from safetensors.torch import save_file
from torch import nn

import exmap
from exmap.data import array_split
from exmap.errors import CheckpointError, DataError
from exmap.explain import explain_split
from exmap.model import collect_outputs, find_last_layer, load_weights, replace_head
from exmap.model import running as how
from exmap.model.halving import AtOnce
from exmap.model.running import available_memory, explained_at_once, images_at_once
from exmap.settings import ExplainSettings

LARGE = np.zeros((2, 3, 1024, 1024), dtype=np.float32)


def little(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(how, "available_memory", lambda device=how.CPU: free)


@pytest.mark.parametrize(
    ("free", "wanted"), [(None, 16), (100 * 2**30, 16), (8 * 2**30, 10), (2**30, 1), (2**20, 1), (0, 1)]
)
def test_no_more_is_explained_at_once_than_fills_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int | None, wanted: int
) -> None:
    little(monkeypatch, free)
    assert explained_at_once(224, 224, 100) == wanted
    assert explained_at_once(224, 224, 7) == min(7, wanted)
    assert explained_at_once(4, 4, 100) == (100 if free is None or free > 2**25 else max(1, free // 2 // 128_000))


def test_large_images_are_run_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    split = array_split(LARGE, [0, 1])
    little(monkeypatch, None)
    assert images_at_once(split) == 8
    little(monkeypatch, 4 * 2**30)
    assert images_at_once(split) == 2


def test_a_container_that_may_use_less_says_so(tmp_path: Path) -> None:
    assert how._container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert how._container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert how._container_memory(tmp_path) == 995
    (tmp_path / "memory.current").write_text("2000\n")
    assert how._container_memory(tmp_path) == 0
    free = available_memory()
    assert free is None or free > 0


@pytest.mark.parametrize(("total", "fits"), [(10, 3), (7, 1), (1, 1), (16, 20), (0, 2)])
def test_parts_are_halved_until_they_fit_and_stay_so(total: int, fits: int) -> None:
    tried: list[int] = []

    def compute(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        if tried[-1] > fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return list(range(part.start, part.stop))

    at_once = AtOnce(16)
    assert [row for rows in at_once.parts(total, compute) for row in rows] == list(range(total))
    assert sum(size > fits for size in tried) <= 4
    before = len(tried)
    list(at_once.parts(total, compute))
    assert all(size <= fits for size in tried[before:])


class Hungry(nn.Module):
    """A model that runs out of memory for more than a few images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.body, self.fc = most, vectors(), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.fc(self.body(x))


@pytest.mark.parametrize("most", [2, 3])
def test_a_model_that_runs_out_of_memory_is_given_fewer(most: int) -> None:
    split, model = array_split(IMAGES, np.arange(6) % 3), Hungry(most).eval()
    maps, outputs = explain_split(model, split)
    made = exmap.heatmaps(model, IMAGES)
    enough = Hungry(100).eval()
    enough.load_state_dict(model.state_dict())
    wanted, outputs_wanted = explain_split(enough, split)
    np.testing.assert_allclose(maps.values, wanted.values, atol=1e-5)
    np.testing.assert_allclose(outputs.logits, outputs_wanted.logits, atol=1e-5)
    np.testing.assert_allclose(collect_outputs(model, split).logits, outputs_wanted.logits, atol=1e-5)
    assert made.shape == (6, 3, 16, 16)


def test_the_number_at_once_is_a_setting_of_exmap() -> None:
    split = array_split(IMAGES, np.arange(6) % 3)
    seen: list[int] = []

    def run(own: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return own.fc(own.body(x))

    model = Own(run, body=vectors(), fc=nn.Linear(8, 3)).eval()
    assert exmap.ExMap().batch_size == ExplainSettings().batch_size == 100
    exmap.ExMap(n_clusters=2, batch_size=2).infer(model, split)
    assert max(seen) == 2
    with pytest.raises(exmap.SettingsError, match="batch_size"):
        exmap.ExMap(n_clusters=2, batch_size=0).infer(model, split)
    assert ExplainSettings(batch_size=None).batch_size == 100  # type: ignore[arg-type]


def head(**changed: Any) -> dict[str, Any]:
    return {"weight": np.ones((3, 8), np.float32), "bias": np.zeros(3, np.float32), **changed}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": (
        head(weight=np.full((3, 8), np.nan)),
        "weight of a last layer must be finite, but 24 of 24 numbers are NaN",
    ),
    "infinite": (head(bias=np.array([0, np.inf, 0])), "bias of a last layer must be finite, but 1 of 3"),
    "whole": (head(weight=np.ones((3, 8), np.int64)), "must be floating-point numbers, got int64"),
    "truth": (head(bias=np.ones(3, np.bool_)), "the bias .* got bool"),
    "flat": (head(weight=np.ones(8)), r"must have shape \(K, D\), got \(8,\)"),
    "square bias": (head(bias=np.ones((3, 1))), r"must have shape \(K,\), got \(3, 1\)"),
    "other rows": (head(bias=np.ones(4)), "got 3 rows and 4 biases"),
    "other features": (head(weight=np.ones((3, 9))), r"the model's 8 features, but its weight has shape \(3, 9\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_last_layer_is_not_put_in(kind: str) -> None:
    wrong, words = BAD[kind]
    model = nn.Sequential(vectors(), nn.Linear(8, 3)).eval()
    with pytest.raises(DataError, match=words):
        replace_head(model, find_last_layer(model, IMAGES), wrong["weight"], wrong["bias"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_head_in_whole_numbers_is_not_filled_with_others(dtype: torch.dtype) -> None:
    """The kind of a parameter would cut new weights without a word."""
    kernel = nn.Parameter(torch.tensor(np.arange(24).reshape(3, 8) % 3).to(dtype), requires_grad=False)
    bias = nn.Parameter(torch.arange(3).to(dtype), requires_grad=False)
    body = vectors()
    model = Own(
        lambda own, x: F.linear(own.body(x), own.kernel.float(), own.constant.float()),
        body=body,
        kernel=kernel,
        constant=bias,
        spare=numbers(1),
    ).eval()
    rng = np.random.default_rng(0)
    weight, shift = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    changed = replace_head(model, find_last_layer(model, IMAGES), weight, shift)
    split = array_split(IMAGES, np.arange(6) % 3)
    outputs = collect_outputs(model, split)
    np.testing.assert_allclose(
        collect_outputs(changed, split).logits, outputs.features @ weight.T + shift, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_in_whole_numbers_are_not_cast_when_they_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in before.items()}
    save_file(state, tmp_path / "good.safetensors")
    load_weights(model, tmp_path / "good.safetensors")  # with a counter, which is a whole number
    state["1.weight"] = torch.ones(2, 4, dtype=dtype)
    save_file(state, tmp_path / "bad.safetensors")
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"layer '1.weight' must hold floating-point numbers, but holds {kind}"):
        load_weights(model, tmp_path / "bad.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
