"""How a model is run: in evaluation mode, eagerly, on its own device and in its own kind of numbers."""

from __future__ import annotations

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

__all__ = [
    "available_memory",
    "eager",
    "evaluation_mode",
    "explained_at_once",
    "explained_by_size",
    "images_at_once",
    "model_device",
    "model_dtype",
    "model_input",
    "run_model",
    "to_tensor",
]

BYTES_PER_PIXEL = 8_000  # that explaining an image takes, per pixel: ResNet-50 takes about 5,500


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block, and each back into its own mode on leaving."""
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    with suppress(NotImplementedError):  # torch.export fixes the mode when it exports, and forbids eval()
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            if module.training != mode:
                module.training = mode


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


def images_at_once(split: Split) -> int:
    """Return how many images are run at once without gradients: 500, or fewer large ones."""
    _, height, width = split.images.shape
    return min(500, max(8, 64 * 224**2 // (height * width)))


def explained_at_once(split: Split) -> int:
    """Return how many images are explained at once: 100, or fewer large ones, and fewer where memory is short."""
    _, height, width = split.images.shape
    by_size = explained_by_size(height, width, 100)
    memory = available_memory()
    return by_size if memory is None else max(1, min(by_size, memory // 2 // (BYTES_PER_PIXEL * height * width)))


def explained_by_size(height: int, width: int, most: int) -> int:
    """Return how many images of a size are explained at once where memory suffices: 16 of 224 pixels."""
    return min(most, max(4, 16 * 224**2 // (height * width)))


def available_memory() -> int | None:
    """Return how many bytes of memory programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


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
            with torch.no_grad(), evaluation_mode(model), torch.random.fork_rng(devices=[]):
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
        raise DataError(_failed(model, x, error, remedy)) from error


def _failed(model: nn.Module, x: torch.Tensor, error: Exception, remedy: str | None) -> str:
    """Return the sentence for a model that raised an error, with a remedy that fits."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
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
