"""The precision that a device computes in by itself, resolved once and kept with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exmap import precision
from exmap.pipeline.runs import open_run
from exmap.precision import native_precision, precision_remark, with_precision
from exmap.runtime import make_fabric
from exmap.settings import RuntimeSettings, Settings, change_settings, load_settings, preset_names

ASKED = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what makes this a computer without GPU, whose processor has some instructions."""

    def make(words: str | None, *, says: bool | None = None) -> None:
        precision._processor_has_bfloat16.cache_clear()
        monkeypatch.setattr(precision, "_device", lambda: "cpu")
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor : 0\nflags\t\t: {words}\n") if words is not None else info.unlink(missing_ok=True)
        monkeypatch.setattr(precision, "CPU_INFO", info)
        for name in ASKED:
            monkeypatch.setattr(torch.cpu, name, lambda: says, raising=False)

    yield make
    precision._processor_has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("words", "says", "wanted"),
    [
        ("fpu sse avx2", True, "32-true"),
        ("avx512f avx512_bf16", True, "bf16-mixed"),
        ("amx_bf16 amx_tile", True, "bf16-mixed"),
        ("amx_bf16 amx_tile", False, "32-true"),  # switched off for this process
        (None, True, "bf16-mixed"),
        (None, False, "32-true"),
    ],
)
def test_processors_train_in_bfloat16_only_with_instructions_for_it(
    processor: Any, words: str | None, says: bool, wanted: str
) -> None:
    processor(words, says=says)
    assert native_precision() == native_precision("cpu") == wanted
    assert native_precision("mps") == "32-true"
    remark = precision_remark(RuntimeSettings(precision="bf16-mixed"))
    assert (remark == "") == (wanted == "bf16-mixed")
    assert "emulates it" in remark or not remark
    assert precision_remark(RuntimeSettings()) == precision_remark(RuntimeSettings(precision="32-true")) == ""


@pytest.mark.parametrize(
    ("bfloat16", "capability", "wanted"),
    [(True, (9, 0), "bf16-mixed"), (False, (7, 5), "16-mixed"), (False, (6, 1), "32-true")],
)
def test_gpus_train_in_what_they_have(
    monkeypatch: pytest.MonkeyPatch, bfloat16: bool, capability: tuple[int, int], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert native_precision() == wanted
    assert ("this GPU" in precision_remark(RuntimeSettings(precision="bf16-mixed"))) == (not bfloat16)


def test_auto_is_the_default_of_settings_and_presets() -> None:
    assert {name: load_settings(name).runtime.precision for name in preset_names()} == {
        name: "32-true" if name == "digits" else "auto" for name in preset_names()
    }
    assert make_fabric(RuntimeSettings(accelerator="cpu"))._precision.precision == native_precision("cpu")


def test_a_run_keeps_the_precision_it_was_begun_with(processor: Any, tmp_path: Path) -> None:
    wanted = load_settings("cmnist")
    processor("avx512_bf16", says=True)
    run, opened = open_run(tmp_path / "run", wanted)
    assert opened.runtime.precision == run.settings()["runtime"]["precision"] == "bf16-mixed"
    (tmp_path / "run" / "train.part").mkdir()
    processor("fpu", says=False)
    assert open_run(tmp_path / "run", wanted)[1] == opened
    assert with_precision(wanted).runtime.precision == "32-true"
    assert with_precision(wanted, opened).runtime.precision == "bf16-mixed"
    assert (
        with_precision(change_settings(wanted, ["runtime.precision=16-mixed"]), opened).runtime.precision == "16-mixed"
    )
    assert with_precision(Settings(), Settings()).runtime.precision == "32-true"
