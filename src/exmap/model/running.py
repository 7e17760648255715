"""How a model is run: in evaluation mode, eagerly, on its own device and in its own kind of numbers."""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import DataError, ExMapError
from exmap.runtime import lost_another, processes_here

__all__ = [
    "available_memory",
    "eager",
    "evaluation_mode",
    "exact",
    "explained_at_once",
    "images_at_once",
    "model_device",
    "model_dtype",
    "model_input",
    "ran_out_of_memory",
    "run_model",
    "surroundings",
    "to_tensor",
    "way_back",
]

CPU = torch.device("cpu")
EXPLAIN_BYTES = 8_000  # that explaining an image takes, per pixel: ResNet-50 takes about 5,500
RUN_BYTES = 1_000  # that running one without gradients takes, per pixel


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block; all is as it was before on leaving.

    That is each module's own mode, buffers that the model writes to when it runs, the generators of random numbers, and
    torch's default kind of numbers.
    """
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta and not buffer.is_inference() and buffer.layout == torch.strided
    ]
    with suppress(NotImplementedError):  # torch.export fixes the mode when it exports, and forbids eval()
        model.eval()
    try:
        with surroundings():
            yield
    finally:
        for module, mode in modes.items():
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if buffer.grad_fn is not None:  # what was added to it depended on the images
                    buffer.detach_()
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def surroundings() -> Iterator[None]:
    """Leave generators of random numbers, torch's default kind of numbers and its gradients' switch as they were."""
    numbers, legacy, plain = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if on_cuda else []
    kind, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.random.set_rng_state(numbers)
        np.random.set_state(legacy)
        random.setstate(plain)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        if torch.get_default_dtype() != kind:
            torch.set_default_dtype(kind)
        if torch.is_grad_enabled() != gradients:
            torch.set_grad_enabled(gradients)


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Let all parts of the model run as plain Python in this thread inside the block, where operations can be seen.

    What `torch.compile` has compiled runs as what it was made from; what is inside a DataParallel runs on one device.
    Nothing is imported where nothing was compiled.
    """
    parallel = [(module, module.device_ids) for module in model.modules() if isinstance(module, nn.DataParallel)]
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    for module, _ in parallel:
        module.device_ids = []
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module, devices in parallel:
            module.device_ids = devices


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters, or of its buffers where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the kind of numbers the model takes: that of its first floating-point parameter or buffer, or float32."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, on the CPU where its device has no such numbers (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def images_at_once(split: Split, device: torch.device = CPU) -> int:
    """Return how many images are run at once without gradients: 500, or fewer large ones, or where memory is short."""
    _, height, width = split.images.shape
    by_size = min(500, max(8, 64 * 224**2 // (height * width)))
    return _by_memory(by_size, RUN_BYTES * height * width, device)


def explained_at_once(height: int, width: int, most: int, device: torch.device = CPU) -> int:
    """Return how many images of a size are explained at once: 16 of 224 pixels, and fewer where memory is short."""
    by_size = min(most, max(4, 16 * 224**2 // (height * width)))
    return _by_memory(by_size, EXPLAIN_BYTES * height * width, device)


def _by_memory(most: int, each: int, device: torch.device) -> int:
    """Return how many things of so many bytes are made at once: no more than fill half of the memory that is free.

    Processes that compute on one host share that half; each has a GPU of its own.
    """
    memory, sharing = available_memory(device), 1 if device.type == "cuda" else processes_here()
    return most if memory is None else max(1, min(most, memory // 2 // each // sharing))


def available_memory(device: torch.device = CPU) -> int | None:
    """Return how many bytes of a device's memory programs can still have; None where the system does not say."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    known = [free for free in (_free_memory(Path("/proc/meminfo")), _container_memory()) if free is not None]
    return min(known, default=None)


def _free_memory(path: Path) -> int | None:
    """Return the memory of the machine that is free."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _container_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what is left of the memory that a container may use; None where there is no such limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = (int((root / name).read_text(encoding="ascii")) for name in (limit, used))
            return max(0, allowed - taken) if allowed < 2**60 else None
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def to_tensor(batch: NDArray[np.float32], device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a batch of images as a channels-last tensor on `device`, by default of float32."""
    return torch.from_numpy(batch).to(device, dtype).contiguous(memory_format=torch.channels_last)


def model_input(model: nn.Module, batch: NDArray[np.float32]) -> torch.Tensor:
    """Return a batch of images as the model takes it: on its device, in its kind of numbers, in a layout it can view.

    Channels-last is quicker, but a model that flattens its maps by `view` cannot be given it.
    """
    x = to_tensor(batch, model_device(model), model_dtype(model))
    return x if _takes_channels_last(model, x) else x.contiguous()


_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()  # found out once for each model


def _takes_channels_last(model: nn.Module, x: torch.Tensor) -> bool:
    """Return whether the model runs on channels-last images, by running it on the first."""
    if len(x) == 0:
        return True
    if model not in _LAYOUTS:
        try:
            with torch.no_grad(), evaluation_mode(model):
                model(x[:1])
            _LAYOUTS[model] = True
        except RuntimeError as error:
            _LAYOUTS[model] = "view size is not compatible" not in str(error)
        except Exception:  # any other fault of the model comes again, where it can be reported
            _LAYOUTS[model] = True
    return _LAYOUTS[model]


def run_model(model: nn.Module, x: torch.Tensor, remedy: str | None = None) -> object:
    """Return what the model makes of images; where it fails, say so in a sentence.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor, shape (n, C, H, W)
    remedy : str, optional
        What to do where it fails, if not what concerns the images.

    Raises
    ------
    DataError
        If the model raises: with the first line of its error and the shape it was given.
    """
    try:
        return model(x)
    except ExMapError:  # of a part of exmap's own
        raise
    except Exception as error:
        if ran_out_of_memory(error) or lost_another(error):  # no fault of the model
            raise
        raise DataError(_failed(model, x, error, remedy)) from error


@contextmanager
def way_back(otherwise: str = ", or choose explainer='occlusion'") -> Iterator[None]:
    """Let what fails while gradients are computed inside the block be said in a sentence.

    Parameters
    ----------
    otherwise : str
        What else can be done than mend the model.

    Raises
    ------
    DataError
        If a model overwrites what its gradient needs, computes parts of itself again, or a hook of its own raises.
    """
    try:
        yield
    except ExMapError:
        raise
    except Exception as error:
        if ran_out_of_memory(error) or lost_another(error):
            raise
        if "modified by an inplace operation" in str(error):
            raise DataError(
                "the model overwrites values that its own gradient needs, so that there is none; use an operation that "
                f"is not in place there{otherwise}"
            ) from error
        if "checkpoint" in f"{type(error)} {error}".lower():
            raise DataError(
                "a model that computes parts of itself again on the way back (torch.utils.checkpoint) must do so as it "
                f"did before, which failed ({_said(error)}); switch gradient checkpointing off{otherwise}"
            ) from error
        raise DataError(
            f"the model failed while gradients were computed ({_said(error)}); look at hooks and functions of its own "
            f"that run on the way back{otherwise}"
        ) from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was not enough memory; on a processor torch has no kind of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("out of memory", "can't allocate memory")
    )


def _said(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _failed(model: nn.Module, x: torch.Tensor, error: Exception, remedy: str | None) -> str:
    """Return the sentence for a model that raised an error, with a remedy that fits."""
    said = _said(error)
    channels = x.shape[1]
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    wanted = next((m.in_channels for m in convolutions), channels)
    if remedy is None and wanted != channels:
        remedy = (
            f"give images with {wanted} channel{'s' if wanted > 1 else ''}, as its first convolution takes, or a model "
            f"for {channels}"
        )
    remedy = remedy or "give images of the size and number of channels that the model was trained on"
    return f"the model failed on images of shape {tuple(x.shape)} and kind {x.dtype} ({said}); {remedy}"
