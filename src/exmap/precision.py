"""Which precision a device computes in by itself, and what to say of one that it does not.

Processors without instructions for bfloat16 emulate it, eight times as slowly as they compute in float32. So
``runtime.precision=auto`` is decided by the device, each time a training begins or goes on; what was decided is
recorded, and is no part of what a run is.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from exmap.settings import RuntimeSettings, Settings

__all__ = [
    "Precision",
    "PrecisionChoice",
    "choose_precision",
    "device_name",
    "native_precision",
    "precision_remark",
    "with_kept_precision",
]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {  # for bfloat16: the system's word, what torch is asked, and a name
    "amx_bf16": ("_is_amx_tile_supported", "AMX"),
    "avx512_bf16": ("_is_avx512_bf16_supported", "AVX-512"),
    "bf16": ("", "Arm"),
}


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision to train in.

    Attributes
    ----------
    precision : "32-true", "bf16-mixed" or "16-mixed"
    why : str
        The reason, as the end of a sentence.
    certain : bool
        Whether the device leaves no doubt that this is the quickest; otherwise a few steps should be timed.
    """

    precision: Precision
    why: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.precision}, {self.why}"


def native_precision(accelerator: str = "auto") -> Precision:
    """Return the precision in which training is quickest on a device without losing what float32 has.

    That is ``bf16-mixed`` where the device has instructions for it, ``16-mixed`` on older GPUs with tensor cores, and
    ``32-true`` elsewhere.

    Parameters
    ----------
    accelerator : "auto", "cpu", "cuda" or "mps"
    """
    return _native(accelerator).precision


def choose_precision(runtime: RuntimeSettings) -> PrecisionChoice:
    """Return the precision to train in: the one that is named, or the one that the device computes in by itself."""
    if runtime.precision != "auto":
        return PrecisionChoice(runtime.precision, "as runtime.precision says")
    return _native(runtime.accelerator)


def with_kept_precision(settings: Settings, before: Settings | None = None) -> Settings:
    """Return settings with the precision that a run was made with, where they name none.

    Parameters
    ----------
    settings : Settings
    before : Settings, optional
        Of the run that is continued. It names a precision if its user did, or if it is of a version that wrote down
        what it had decided.
    """
    runtime = settings.runtime
    if runtime.precision != "auto" or before is None or before.runtime.precision == "auto":
        return settings
    kept = runtime.model_copy(update={"precision": before.runtime.precision})
    return settings.model_copy(update={"runtime": kept})


def device_name(accelerator: str = "auto") -> str:
    """Return what the maker calls the device that torch computes on, as far as the system says."""
    device = _device() if accelerator == "auto" else accelerator
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda"
    return _of_processor("model name") or platform.processor() or platform.machine()


def precision_remark(runtime: RuntimeSettings) -> str:
    """Return a sentence where a precision is emulated by the device it is to be used on; empty elsewhere."""
    wanted = runtime.precision
    if wanted not in ("bf16-mixed", "16-mixed"):
        return ""
    device = _device() if runtime.accelerator == "auto" else runtime.accelerator
    native = native_precision(device)
    if device == "mps" or wanted == native or (device == "cuda" and wanted == "16-mixed"):
        return ""
    where = "this processor" if device == "cpu" else "this GPU"
    return (
        f"{where} has no instructions for runtime.precision={wanted} and emulates it, which can take several times as "
        f"long as {native}"
    )


def _device() -> str:
    """Return what torch computes on where that is left to it."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _native(accelerator: str) -> PrecisionChoice:
    device = _device() if accelerator == "auto" else accelerator
    if device == "cuda":
        return _of_gpu()
    if device == "mps":
        return PrecisionChoice("32-true", "as GPUs of Apple train in it")
    found = _instructions()
    if not found:
        return PrecisionChoice("32-true", "as this processor has no instructions for bfloat16")
    why = f"as this processor has instructions for bfloat16 ({found})"
    return PrecisionChoice("32-true" if found == "Arm" else "bf16-mixed", why, certain=found == "AMX")


def _of_gpu() -> PrecisionChoice:
    import torch

    if not torch.cuda.is_available():  # refused once it is used
        return PrecisionChoice("32-true", "as there is no GPU")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return PrecisionChoice("bf16-mixed", "as this GPU computes in bfloat16")
    if torch.cuda.get_device_capability() >= (7, 0):
        return PrecisionChoice("16-mixed", "as the tensor cores of this GPU compute in float16")
    return PrecisionChoice("32-true", "as this GPU has no tensor cores")


@lru_cache(maxsize=1)
def _instructions() -> str:
    """Return the name of the best instructions for bfloat16 that both the system and torch find; empty without any.

    Some of them compute hardly faster than float32 does: AMX alone leaves no doubt.
    """
    import torch

    words = frozenset((_of_processor("flags") or _of_processor("Features")).split())
    for word, (asked, name) in INSTRUCTIONS.items():
        ask = getattr(torch.cpu, asked, None) if asked else None
        if words and word not in words:
            continue
        if bool(ask()) if ask is not None else word in words:
            return name
    return ""


def _of_processor(what: str) -> str:
    """Return what Linux says of the first processor; empty where it says nothing."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")
