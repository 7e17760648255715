"""Occlusion: what the explained logit loses without a patch of the image. Needs no gradient, only answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.engine import Relevance
from exmap.explain.gradients import constant_images, whole_number
from exmap.explain.prepared import Prepared, Selection, Target, nan_for, selected
from exmap.model.backbone import evaluation_mode
from exmap.model.classifier import check_differentiable, logits_of
from exmap.model.running import model_dtype
from exmap.registry import EXPLAINERS

__all__ = ["Occlusion", "Predictor"]

SIDES = 7  # patches along a side, by default
Pair = tuple[int, int]
Windows = list[tuple[slice, slice]]

KINDS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


class Predictor:
    """Anything that gives logits of images, as a function of tensors.

    Parameters
    ----------
    model : torch.nn.Module, ONNX Runtime session, or callable
        A callable may take tensors or arrays of float32, shape (n, C, H, W), and may return either, or a list, a
        mapping or an object with such logits. A session's first output is the logits.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.session = callable(getattr(model, "run", None)) and callable(getattr(model, "get_inputs", None))
        if not self.session and not callable(model):
            raise DataError(
                f"the model must be a module, an ONNX Runtime session or a function from images to logits, got "
                f"{type(model).__name__}"
            )
        self.takes_arrays: bool | None = False if isinstance(model, nn.Module) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        with torch.no_grad(), evaluating(self.model):
            output = self._session_output(x) if self.session else self._output(x)
        return logits_of(as_tensors(output), len(x)).to(x.device)

    def _output(self, x: torch.Tensor) -> Any:
        """Call the model with a tensor, or an array if it does not take tensors; the first call tells."""
        if self.takes_arrays:
            return self.model(x.cpu().numpy())
        try:
            output = self.model(x.clone())
            logits_of(as_tensors(output), len(x))
        except Exception as error:
            if self.takes_arrays is None:
                self.takes_arrays = True
                try:
                    return self.model(x.cpu().numpy())
                except Exception:  # said of the tensor
                    self.takes_arrays = None
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"
            raise DataError(
                f"the model failed on images of shape {tuple(x.shape)} and kind {x.dtype} ({said}); give images as it "
                "was trained on, or a function from such images to logits"
            ) from error
        self.takes_arrays = False
        return output

    def _session_output(self, x: torch.Tensor) -> Any:
        """Run an ONNX Runtime session, in batches of its own size where that is fixed."""
        given = self.model.get_inputs()[0]
        images = x.cpu().numpy().astype(KINDS.get(given.type, np.float32))
        size = given.shape[0] if given.shape and isinstance(given.shape[0], int) else len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
        parts = [self.model.run(None, {given.name: padded[i : i + size]})[0] for i in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(images)].astype(np.float32)


def evaluating(model: Any) -> AbstractContextManager[None]:
    """Return a block in which a module is in evaluation mode, if it is one that has modes: frozen ones have none."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    has_modes = isinstance(model, nn.Module) and all(hasattr(module, "training") for module in modules)
    return evaluation_mode(model) if has_modes else nullcontext()


def as_tensors(output: Any) -> Any:
    """Return what a model returned with its arrays as tensors."""
    if isinstance(output, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(output))
    if isinstance(output, (list, tuple)):
        return [as_tensors(part) for part in output]
    if isinstance(output, Mapping):
        return {name: as_tensors(part) for name, part in output.items()}
    return output


@EXPLAINERS.register(name="occlusion")
@dataclass
class Occlusion:
    """Occlusion (Zeiler and Fergus, 2014): how much the explained logit drops when a patch is covered.

    The drop is spread evenly over the patch's pixels and channels; where patches overlap, their pixels get the mean.
    Without overlap relevance sums to the sum of all drops, for a linear model that is logit(x) - logit(baseline).

    The model may be any :class:`Predictor`: a module, scripted or quantised, too, an ONNX Runtime session, a function.
    Of those that torch cannot look into, what they return is explained: for probabilities, a drop of probability.
    The class, and the runner-up of a margin, are those of the whole image. Dynamically quantised layers scale by the
    batch they see; there, ``at_once=1`` makes an image's map the same alone and in a batch.

    Parameters
    ----------
    patch : int or (int, int), optional
        Height and width in pixels; by default a seventh of each side. At the lower and right edge it may be less.
    stride : int or (int, int), optional
        From patch to patch; by default that of the patch, so that they do not overlap. At most the patch.
    baseline : "mean", float or array-like
        What covers a patch: each image's own mean colour, or a number or image as in :class:`IntegratedGradients`.
    at_once : int, optional
        Images that are run at once; by default 500, or fewer of large images.
    """

    patch: int | Pair | None = None
    stride: int | Pair | None = None
    baseline: str | float | ArrayLike | torch.Tensor = "mean"
    at_once: int | None = None
    needs_gradient: ClassVar[bool] = False
    _prepared: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)
    _predictor: Predictor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("patch", "stride", "at_once"):
            value = getattr(self, name)
            for part in value if isinstance(value, (tuple, list)) else () if value is None else (value,):
                whole_number(name, part)
            if isinstance(value, (tuple, list)) and len(value) != 2:
                raise SettingsError(f"{name} must be one number or a height and a width, got {value!r}")
        if isinstance(self.baseline, str) and self.baseline != "mean":
            raise SettingsError(f'baseline must be "mean", a number or an image, got {self.baseline!r}')

    def explain(self, model: Any, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        with torch.inference_mode(False), torch.no_grad():
            logits, x = self.logits(model, x)
            assert self._predictor is not None
            selection = selected(logits, target)
            values = self._values(self._predictor, x, selection)
        return Relevance(values, logits, selection.target, selection.explained, nan_for(values))

    def logits(self, model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of images, shape (n, K), and the images in the model's kind of numbers."""
        with torch.inference_mode(False), torch.no_grad():
            predict, x = self._ready(model, x.clone() if x.is_inference() else x.detach())
            return torch.cat([predict(part) for part in torch.split(x, self._rows(x))]), x

    def _ready(self, model: Any, x: torch.Tensor) -> tuple[Predictor, torch.Tensor]:
        """Return the model as a function of tensors, and images in its kind of numbers."""
        if isinstance(model, nn.Module):
            if is_open(model):
                model, _ = self._prepared.of(model, x)
            x = x.to(model_dtype(model))
        elif x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        if self._predictor is None or self._predictor.model is not model:
            self._predictor = Predictor(model)
        return self._predictor, x

    def _rows(self, x: torch.Tensor) -> int:
        return self.at_once or min(500, max(8, 64 * 224**2 // (x.shape[2] * x.shape[3])))

    def _values(self, predict: Predictor, x: torch.Tensor, selection: Selection) -> torch.Tensor:
        """Return the drops of the explained logit, spread over pixels."""
        filling = (
            x.mean(dim=(2, 3), keepdim=True) if isinstance(self.baseline, str) else constant_images(self.baseline, x)
        )
        filling = filling.expand_as(x)
        windows = self._windows(int(x.shape[2]), int(x.shape[3]))
        n, drops = len(x), []
        for pairs in torch.split(torch.arange(n * len(windows)), self._rows(x)):
            images = pairs % n  # windows outside, images inside
            changed = x[images.to(x.device)]
            for row, (pair, image) in enumerate(zip(pairs.tolist(), images.tolist(), strict=True)):
                rows, columns = windows[pair // n]
                changed[row, :, rows, columns] = filling[image, :, rows, columns]
            images = images.to(x.device)
            drops.append(selection.explained[images] - selection.of(predict(changed), images))
        return spread(torch.cat(drops).view(len(windows), n), windows, x)

    def _windows(self, height: int, width: int) -> Windows:
        """Return the patches of an image, the last of each row and column cut off at the edge."""
        default = max(1, round(height / SIDES)), max(1, round(width / SIDES))
        patch = default if self.patch is None else pair(self.patch)
        stride = patch if self.stride is None else pair(self.stride)
        if stride[0] > patch[0] or stride[1] > patch[1]:
            raise SettingsError(f"stride must be at most the patch, {patch}, or pixels are left out, got {stride}")
        rows, columns = (starts(*sizes) for sizes in zip((height, width), patch, stride, strict=True))
        return [(slice(r, r + patch[0]), slice(c, c + patch[1])) for r in rows for c in columns]


def pair(value: int | Pair) -> Pair:
    """Return a height and a width."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def starts(side: int, patch: int, stride: int) -> range:
    """Return where patches begin, up to the first that reaches the edge."""
    return range(0, max(side - patch, 0) + stride, stride)


def spread(drops: torch.Tensor, windows: Windows, x: torch.Tensor) -> torch.Tensor:
    """Return drops, shape (W, n), as relevance of pixels: the mean over the patches that hold one."""
    values = torch.zeros_like(x)
    count = x.new_zeros(x.shape[2:])
    for drop, (rows, columns) in zip(drops, windows, strict=True):
        place = values[:, :, rows, columns]
        place += (drop / place[0].numel())[:, None, None, None]
        count[rows, columns] += 1
    return values / count


def is_open(model: nn.Module) -> bool:
    """Return whether torch can look into a module, to find the logits before a softmax."""
    try:
        check_differentiable(model)
    except DataError:
        return False
    return True
