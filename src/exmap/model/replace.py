"""Put another last layer into a copy of a model, whatever kind of layer it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError
from exmap.model.classifier import logits_of, unwrapped, without_wrappers
from exmap.model.ending import LastLayer
from exmap.model.probe import copied, name_in_copy
from exmap.model.tail import Tail, pooled
from exmap.model.trace import ModuleCall, Site, Watch
from exmap.runtime import torch_seed

__all__ = ["Logits", "OtherHead", "replace_head"]

Array = NDArray[np.floating[Any]]
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def replace_head(model: nn.Module, head: str | LastLayer, weight: Array, bias: Array) -> nn.Module:
    """Return a copy of the model with another last layer; the model itself stays as it is.

    The copy's logits are ``features @ weight.T + bias``, with the features of :func:`collect_outputs`. A classifier of
    two classes with one logit keeps one, and gets the difference of the two rows: its two logits are then those up to a
    constant, with the same differences and probabilities.

    Parameters
    ----------
    model : torch.nn.Module
        Without wrappers in the copy: what DataParallel or `torch.compile` holds is copied.
    head : str or LastLayer
        Name of the last layer, as :func:`find_head` returns it; empty if the model is that layer. What
        :func:`find_last_layer` returns also serves where the layer is an operation on a parameter, or where something
        follows the layer: a factor, a constant, a normalisation.
    weight : ndarray of float, shape (K, D)
    bias : ndarray of float, shape (K,)

    Returns
    -------
    torch.nn.Module
        Of the model's own class, on its device and in its kind of numbers. Where that cannot be (an operation without a
        bias, weights computed in forward, a layer that was named though more than a linear map follows) a module that
        runs the copy for its features and returns the logits as a tensor.

    Raises
    ------
    DataError
        If the layer cannot be replaced, or the model not be copied.
    """
    weight, bias = _checked(weight, bias)
    inner = unwrapped(model)
    name = without_wrappers(model, head) if isinstance(head, str) else head.name
    old = inner.get_submodule(name)
    layer = head if isinstance(head, LastLayer) else None
    one = layer.n_logits == 1 if layer is not None else _outputs(old) == 1
    if one and len(weight) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if layer is None and _outputs(old) is None:
        raise DataError(
            f"the module {name!r} of kind {type(old).__name__} cannot be replaced by its name alone; give what "
            "find_last_layer returns"
        )
    width = weight.shape[1] if layer is None else layer.in_features
    if weight.shape[1] != width:
        raise DataError(
            f"a last layer must take the model's {width} features, but its weight has shape {weight.shape}; fit it to "
            "features of this model"
        )
    if layer is not None and (_must_wrap(layer, weight) or layer.kind == "cut" or _whole_numbers(inner, layer)):
        return OtherHead(copied(inner), layer, weight, bias)
    if layer is not None:
        _check_runs(layer)
        weight, bias = before(layer.tail, weight, bias)
        if layer.parameters is not None:
            return _with_parameters(copied(inner), layer.parameters, weight, bias)
    return _with_module(inner, name, layer, weight, bias)


def _checked(weight: Any, bias: Any) -> tuple[Array, Array]:
    """Return the weights of a last layer as arrays, or refuse what is none."""
    arrays = np.asarray(weight), np.asarray(bias)
    for name, array, shape, dimensions in (("weight", arrays[0], "(K, D)", 2), ("bias", arrays[1], "(K,)", 1)):
        if array.dtype.kind != "f":
            raise DataError(
                f"the {name} of a last layer must be floating-point numbers, got {array.dtype}; convert it, if it is "
                "meant as numbers"
            )
        if array.ndim != dimensions:
            raise DataError(f"the {name} of a last layer must have shape {shape}, got {array.shape}; give it so")
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise DataError(
                f"the {name} of a last layer must be finite, but {count} of {array.size} numbers are NaN or infinite; "
                "look at how they were made"
            )
    if len(arrays[0]) != len(arrays[1]):
        raise DataError(
            f"a last layer must have a row of weights and a bias for each class, got {len(arrays[0])} rows and "
            f"{len(arrays[1])} biases; give as many"
        )
    return arrays


def _whole_numbers(model: nn.Module, layer: LastLayer) -> bool:
    """Return whether the layer's own parameters could not hold other weights."""
    if layer.parameters is None:
        return False
    name, _, bias = layer.parameters
    return not (model.get_parameter(name).is_floating_point() and model.get_parameter(bias).is_floating_point())


def _outputs(module: nn.Module) -> int | None:
    """Return how many outputs a layer has by its own word, or None."""
    found = getattr(module, "out_features", getattr(module, "out_channels", None))
    return found if isinstance(found, int) else None


def _must_wrap(layer: LastLayer, weight: Array) -> bool:
    """Return whether no plain layer can stand in place of the old one."""
    tail = layer.tail
    uniform = np.ptp(tail.scale) < 1e-9 and np.ptp(tail.shift) < 1e-9
    other_size = len(weight) != layer.n_logits
    if len(set(tail.outputs.tolist())) < len(tail.outputs):
        return True
    if other_size and not (uniform and np.array_equal(tail.outputs, np.arange(tail.n_outputs))):
        return True
    return layer.kind == "function" and (layer.parameters is None or other_size)


def _check_runs(layer: LastLayer) -> None:
    """Refuse a layer that also makes the features."""
    if layer.runs > 1:
        raise DataError(
            f"the last layer {layer.name!r} must run once, but it runs {layer.runs} times in forward, so that other "
            "weights would change the features, too; give the model a last layer of its own"
        )


def before(tail: Tail, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Return weight and bias of the map, given those of the logits that the tail makes of it."""
    if len(weight) != len(tail.scale):  # the same for all classes: see _must_wrap
        return weight / tail.scale[0], (bias - tail.shift[0]) / tail.scale[0]
    whole, constant = np.zeros((tail.n_outputs, weight.shape[1])), np.zeros(tail.n_outputs)
    whole[tail.outputs] = weight / tail.scale[:, None]
    constant[tail.outputs] = (bias - tail.shift) / tail.scale
    return whole, constant


def _with_parameters(copy: nn.Module, names: tuple[str, bool, str], weight: Array, bias: Array) -> nn.Module:
    """Fill the parameters of a copy that an operation in its forward uses."""
    name, transposed, bias_name = names
    with torch.no_grad():
        kept = copy.get_parameter(name_in_copy(name))
        kept.copy_(torch.from_numpy(np.ascontiguousarray(weight.T if transposed else weight)).reshape(kept.shape))
        copy.get_parameter(name_in_copy(bias_name)).copy_(torch.from_numpy(np.asarray(bias)))
    return copy


def _with_module(inner: nn.Module, name: str, layer: LastLayer | None, weight: Array, bias: Array) -> nn.Module:
    """Return a copy with a plain layer at the place of the old one, at all places where the same module is."""
    old = inner.get_submodule(name)
    example = next((p for p in (*old.parameters(), *inner.parameters()) if p.is_floating_point()), torch.empty(0))
    kernel = [kept for key, kept in old.named_parameters() if key == "weight"]
    is_convolution = isinstance(old, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    dimensions = 2
    if is_convolution or (layer is not None and layer.kind == "convolution"):
        kind = next((n for n, made in CONVOLUTIONS.items() if isinstance(old, made)), 4)
        dimensions = kernel[0].ndim if kernel and kernel[0].ndim > 2 else kind
    new = plain_layer(weight, bias, example, dimensions).train(old.training)
    if not name:
        return new
    copy = copied(inner)
    wanted = copy.get_submodule(name_in_copy(name))
    for module in list(copy.modules()):
        for leaf, child in list(module._modules.items()):
            if child is wanted:
                module._modules[leaf] = new
    return copy


def plain_layer(weight: Array, bias: Array, example: torch.Tensor, dimensions: int = 2) -> nn.Module:
    """Return a linear layer, or a 1 x 1 convolution, with given weights, like `example` in device and numbers."""
    out, width = weight.shape
    with torch_seed(0):  # the random weights it starts with are replaced
        if dimensions == 2:
            made: nn.Module = nn.Linear(width, out, device=example.device, dtype=example.dtype)
        else:
            made = CONVOLUTIONS[dimensions](width, out, 1, device=example.device, dtype=example.dtype)
    with torch.no_grad():
        kept = made.get_parameter("weight")
        kept.copy_(torch.from_numpy(np.array(weight)).reshape(kept.shape))
        made.get_parameter("bias").copy_(torch.from_numpy(np.array(bias)))
    return made


class Logits(nn.Module):
    """A model whose output is the tensor of its logits, before softmax or sigmoid.

    Parameters
    ----------
    model : torch.nn.Module
    probability : Site, optional
        The operation that makes probabilities of the logits.
    """

    def __init__(self, model: nn.Module, probability: Site | None = None) -> None:
        super().__init__()
        self.model, self.probability = model, probability
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        if self.probability is None:
            return logits_of(self.model(x), len(x))
        watch = Watch(self.probability)
        with watch:
            self.model(x)
        return logits_of(watch.get(self.probability), len(x))


class OtherHead(nn.Module):
    """A model run for its features, and a linear layer that makes logits of them in place of its own ending.

    Parameters
    ----------
    model : torch.nn.Module
    layer : LastLayer
        Whose input are the features.
    weight : ndarray of float, shape (K, D)
    bias : ndarray of float, shape (K,)
    """

    def __init__(self, model: nn.Module, layer: LastLayer, weight: Array, bias: Array) -> None:
        super().__init__()
        example = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.model, self.head = model, plain_layer(weight, bias, example)
        self.name, self.run, self.axis = name_in_copy(layer.name), layer.run, layer.axis
        self.positions = layer.tail.positions
        self.site: Site | None = layer.site
        self.training = model.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        features = pooled(self._given(x), self.axis, self.positions)
        logits: torch.Tensor = self.head(features.to(self.head.get_parameter("weight").dtype))
        return logits

    def _given(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the old last layer is given."""
        if self.site is not None:
            watch = Watch(self.site)
            with watch:
                self.model(x)
            return watch.get(self.site)
        seen: list[torch.Tensor | None] = []

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(ModuleCall("", module, args, kwargs, None, 0).given)

        hook = self.model.get_submodule(self.name).register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.model(x)
        finally:
            hook.remove()
        found = seen[self.run]
        assert isinstance(found, torch.Tensor)
        return found
