"""Which precision a device computes in by itself, and what to say of one that it does not.

Processors without instructions for bfloat16 emulate it, eight times as slowly as they compute in float32. So
``runtime.precision=auto`` is resolved once, where a run begins, and the run keeps what it was.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from exmap.settings import RuntimeSettings, Settings

__all__ = ["native_precision", "precision_remark", "with_precision"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
CPU_INFO = Path("/proc/cpuinfo")
CPU_WORDS = ("amx_bf16", "avx512_bf16")  # instructions for bfloat16


def native_precision(accelerator: str = "auto") -> Precision:
    """Return the precision in which training is quickest on a device without losing what float32 has.

    That is ``bf16-mixed`` where the device has instructions for it, ``16-mixed`` on older GPUs with tensor cores, and
    ``32-true`` elsewhere.

    Parameters
    ----------
    accelerator : "auto", "cpu", "cuda" or "mps"
    """
    device = _device() if accelerator == "auto" else accelerator
    if device == "cuda":
        return _of_gpu()
    return "bf16-mixed" if device == "cpu" and _processor_has_bfloat16() else "32-true"


def with_precision(settings: Settings, before: Settings | None = None) -> Settings:
    """Return settings whose precision is one, and not ``auto``.

    Parameters
    ----------
    settings : Settings
    before : Settings, optional
        Of the run that is continued: its precision is kept, wherever it was begun.
    """
    runtime = settings.runtime
    if runtime.precision != "auto":
        return settings
    kept = "auto" if before is None else before.runtime.precision
    precision = native_precision(runtime.accelerator) if kept == "auto" else kept
    return settings.model_copy(update={"runtime": runtime.model_copy(update={"precision": precision})})


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


def _of_gpu() -> Precision:
    import torch

    if not torch.cuda.is_available():  # refused once it is used
        return "32-true"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "16-mixed" if torch.cuda.get_device_capability() >= (7, 0) else "32-true"


@lru_cache(maxsize=1)
def _processor_has_bfloat16() -> bool:
    """Return whether both the system and torch find instructions for bfloat16, as far as each of them says."""
    import torch

    words = _processor_words()
    if words and not words.intersection(CPU_WORDS):
        return False
    asked = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    said = [bool(ask()) for ask in asked if ask is not None]
    return any(said) if said else bool(words)


def _processor_words() -> frozenset[str]:
    """Return what the processor can do, in Linux's words; empty where the system does not say."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
