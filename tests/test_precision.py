"""The precision that a device computes in by itself, resolved once and kept with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exmap import precision
from exmap.errors import RunFolderError
from exmap.pipeline.runs import open_run
from exmap.precision import choose_precision, device_name, native_precision, precision_remark, with_kept_precision
from exmap.runtime import make_fabric
from exmap.settings import RuntimeSettings, Settings, change_settings, load_settings, preset_names

ASKED = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what makes this a computer without GPU, whose processor has some instructions."""

    def make(words: str | None, *, says: bool | None = None) -> None:
        precision._instructions.cache_clear()
        monkeypatch.setattr(precision, "_device", lambda: "cpu")
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor : 0\nflags\t\t: {words}\n") if words is not None else info.unlink(missing_ok=True)
        monkeypatch.setattr(precision, "CPU_INFO", info)
        for name in ASKED:
            monkeypatch.setattr(torch.cpu, name, lambda: says, raising=False)

    yield make
    precision._instructions.cache_clear()


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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fpu avx2", "32-true, as this processor has no instructions for bfloat16"),
        ("avx512_bf16 amx_bf16", "bf16-mixed, as this processor has instructions for bfloat16 (AMX)"),
        ("avx512_bf16", "bf16-mixed, as this processor has instructions for bfloat16 (AVX-512)"),
        ("asimd bf16", "32-true, as this processor has instructions for bfloat16 (Arm)"),
    ],
)
def test_the_reason_is_said_and_only_amx_leaves_no_doubt(processor: Any, words: str, wanted: str) -> None:
    processor(words, says=True)
    choice = choose_precision(RuntimeSettings())
    assert (str(choice), choice.certain) == (wanted, "AMX" in wanted or "no instructions" in wanted)
    assert str(choose_precision(RuntimeSettings(precision="16-mixed"))) == "16-mixed, as runtime.precision says"


def test_the_device_is_called_as_its_maker_calls_it(processor: Any) -> None:
    processor("avx2\nmodel name\t: A Processor 9000")
    assert device_name() == device_name("cpu") == "A Processor 9000"
    processor(None)
    assert device_name("cpu")


def test_a_run_that_names_no_precision_is_the_same_run_on_another_machine(processor: Any, tmp_path: Path) -> None:
    wanted = load_settings("cmnist")
    processor("avx512_bf16", says=True)
    run, opened = open_run(tmp_path / "run", wanted)
    assert opened.runtime.precision == (run.settings() or {})["runtime"]["precision"] == "auto"
    (tmp_path / "run" / "train.part").mkdir()
    processor("fpu", says=False)
    assert open_run(tmp_path / "run", change_settings(wanted, ["runtime.threads=3"]))[1].runtime.precision == "auto"
    with pytest.raises(RunFolderError, match="precision"):
        open_run(tmp_path / "run", change_settings(wanted, ["runtime.precision=bf16-mixed"]))


def test_a_folder_that_names_a_precision_keeps_it(tmp_path: Path) -> None:
    wanted = load_settings("cmnist")
    open_run(tmp_path / "run", change_settings(wanted, ["runtime.precision=bf16-mixed"]))  # as earlier versions did
    (tmp_path / "run" / "train.part").mkdir()
    assert open_run(tmp_path / "run", wanted)[1].runtime.precision == "bf16-mixed"
    named = change_settings(wanted, ["runtime.precision=16-mixed"])
    assert with_kept_precision(named, wanted) == named
    assert with_kept_precision(wanted, Settings()) == with_kept_precision(wanted) == wanted
