"""A classifier in a TorchScript file: its last layer as a layer of torch, where one can be found."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exmap.errors import DataError
from exmap.importing import first_line
from exmap.model.classifier import logits_of
from exmap.model.named.chosen import ChosenOutputs
from exmap.model.named.onnx_file import chosen, class_names, refuse_weights, transform
from exmap.model.named.words import Builder, Facts, quiet
from exmap.runtime import torch_seed
from exmap.settings import ModelSettings
from exmap.trusted import refuse_to_call

__all__ = ["ScriptedClassifier", "builder", "class_names", "facts", "open_script", "set_layer", "transform"]

SIDES = (224, 32, 64, 28, 96, 128, 160, 192, 256, 299, 384, 16, 512)  # tried in turn: a script does not say its own
LINEAR = ("Linear", "NonDynamicallyQuantizableLinear")
CLOSE = 1e-4


class ScriptedClassifier(nn.Module):
    """A classifier whose features a TorchScript program computes, and whose last layer is a ``torch.nn.Linear``.

    It has no gradients that exmap can follow, and is copied and pickled with its program. The last layer is the one
    that, taken for the identity, makes the program return numbers of which that layer makes its logits. Where there is
    none, the module gives the program's logits.

    Parameters
    ----------
    path : Path
    """

    gradient_free = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        script = open_script(path)
        self.path, self.side, self.channels, self.layer = path, *_split(script)
        self._script = (script,)  # in a tuple: its parameters are not this module's
        if self.layer:
            weight, bias = parameters_of(script, self.layer)
            with torch_seed(0):
                self.head = nn.Linear(weight.shape[1], len(weight), bias=bias is not None)
            with torch.no_grad():
                self.head.weight.copy_(weight)
                if bias is not None:
                    self.head.bias.copy_(bias)
            set_identity(script, self.layer)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        with torch.no_grad():
            made = self._script[0](x.detach().float().cpu())
        if not self.layer:
            return logits_of(made, len(x)).to(x.device)
        head = self.head
        logits: torch.Tensor = head(made.to(x.device, head.weight.dtype))
        return logits

    def __getstate__(self) -> dict[str, Any]:
        file = io.BytesIO()
        with quiet():
            torch.jit.save(self._script[0], file)
        return {**self.__dict__, "_script": file.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        program = state.pop("_script")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        with quiet():
            self._script = (_load(io.BytesIO(program)),)

    @property
    def n_outputs(self) -> int | None:
        """How many outputs there are, where the last layer was found."""
        return self.head.out_features if self.layer else None


def open_script(path: Path) -> Any:
    """Return the program in a file, in evaluation mode.

    Raises
    ------
    DataError
        If the file cannot be read, or is no program.
    """
    if not path.is_file():
        raise DataError(f"the TorchScript file {path} does not exist; give an existing file")
    try:
        with quiet():
            return _load(str(path))
    except Exception as error:
        raise DataError(
            f"{path} must be a file that torch.jit.save wrote, but cannot be read ({first_line(error)}); of weights "
            "alone name the model by another word, and give them by --weights"
        ) from error


def _load(file: Any) -> Any:
    return torch.jit.load(file, map_location="cpu").eval()  # type: ignore[no-untyped-call]


def _layer(script: Any, name: str) -> Any:
    return dict(script.named_modules())[name]


def parameters_of(script: Any, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias of a layer of a program."""
    layer = _layer(script, name)
    bias = getattr(layer, "bias", None)
    return layer.weight.detach().clone(), None if bias is None else bias.detach().clone()


def set_identity(script: Any, name: str) -> None:
    """Let a linear layer of a program return what it is given."""
    width = _layer(script, name).weight.shape[1]
    _set(_layer(script, name), torch.eye(width), torch.zeros(width))


def set_layer(script: Any, name: str, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    """Return a program with another weight and bias in a linear layer; where it has no bias, one that adds it."""
    if getattr(_layer(script, name), "bias", None) is not None:
        _set(_layer(script, name), weight, bias)
        return script
    set_identity(script, name)
    with torch_seed(0):
        last = nn.Linear(weight.shape[1], len(weight))
    _set(last, weight, bias)
    with quiet():
        return torch.jit.script(nn.Sequential(script, last))


def _set(layer: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    if getattr(layer, "bias", None) is not None:
        layer.bias = nn.Parameter(bias.to(kind), requires_grad=False)


def _split(script: Any) -> tuple[int | None, int | None, str]:
    """Return side and channels of images that the program runs on, and the name of its last layer, if that is found."""
    channels = _channels(script)
    for side in SIDES:
        x = torch.rand(2, channels or 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                logits = script(x)
        except Exception:  # images of another size
            continue
        return side, channels, _last_layer(script, x, logits)
    return None, channels, ""


def _channels(script: Any) -> int | None:
    """Return the channels that the first convolution takes."""
    kernels = (p for p in script.parameters() if p.ndim == 4)
    first = next(kernels, None)
    return int(first.shape[1]) if first is not None and first.shape[1] in (1, 3, 4) else None


def _last_layer(script: Any, x: torch.Tensor, logits: Any) -> str:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        return ""
    linear: list[str] = [n for n, m in script.named_modules() if getattr(m, "original_name", "") in LINEAR and n]
    for name in reversed(linear):
        weight, bias = parameters_of(script, name)
        if len(weight) != logits.shape[1]:
            continue
        with quiet():
            other = copy.deepcopy(script)
        try:
            with torch.no_grad():
                set_identity(other, name)
                features = other(x)
                again = nn.functional.linear(features, weight, bias)
        except Exception:  # what follows the layer wants its number of classes
            continue
        if again.shape == logits.shape and (again - logits).abs().max() <= CLOSE * (1 + logits.abs().max()):
            return name
    return ""


def builder(name: str) -> Builder:
    """Return the function that opens the file; refuse one that is not there."""
    if not Path(name).is_file():
        raise DataError(f"the TorchScript file {name} does not exist; give an existing file")

    def build(settings: ModelSettings, n_classes: int | None) -> nn.Module:
        refuse_to_call(f"torchscript:{name}")  # its program may write files
        refuse_weights(settings, "a TorchScript file")
        model = ScriptedClassifier(Path(name))
        return chosen(model, settings, n_classes, model.n_outputs, name)

    return build


def facts(name: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    inner = model.model if isinstance(model, ChosenOutputs) else model
    assert isinstance(inner, ScriptedClassifier)
    return Facts(f"the TorchScript file {name}", inner.side, inner.channels)
