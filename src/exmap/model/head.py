"""The last linear map of any classifier: find it, read what it is given, and replace it in a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, SettingsError, unknown_name
from exmap.model.classifier import logits_of, raw_logits, unwrapped, without_wrappers
from exmap.model.ending import Ending, LastLayer, read_ending
from exmap.model.replace import Logits
from exmap.model.running import run_model
from exmap.model.tail import Tail, pooled
from exmap.model.trace import ModuleCall, Trace, Watch, traced

__all__ = [
    "as_classifier",
    "ending_with",
    "features_and_logits",
    "find_ending",
    "find_head",
    "find_head_or_none",
    "find_last_layer",
    "reader",
]


def find_ending(model: nn.Module, images: NDArray[np.float32]) -> Ending:
    """Run the model on two images and return how it ends: in probabilities or not, and in which linear map.

    Parameters
    ----------
    model : torch.nn.Module
        In any wrapper; stays as it is.
    images : ndarray of float32, shape (n, C, H, W)

    Raises
    ------
    DataError
        If the model fails on the images, or does not return logits.
    """
    return read_ending(traced(unwrapped(model), images))


def ending_with(model: nn.Module, images: NDArray[np.float32], head: str | LastLayer | None) -> Ending:
    """Return how the model ends, with the layer that a user named where one did; see :func:`find_last_layer`."""
    if isinstance(head, LastLayer):
        return Ending(find_ending(model, images).probability, head, "")
    inner = unwrapped(model)
    name = None if head is None else _known_name(inner, without_wrappers(model, head))
    trace = traced(inner, images)
    ending = read_ending(trace)
    if name is None or (ending.layer is not None and ending.layer.name == name):
        return ending
    return Ending(ending.probability, _named_layer(trace, name), "")


def find_last_layer(model: nn.Module, images: NDArray[np.float32], head: str | None = None) -> LastLayer:
    """Return the last linear map of the model.

    Parameters
    ----------
    model : torch.nn.Module
    images : ndarray of float32, shape (n, C, H, W)
        A few images to run the model on.
    head : str, optional
        Name of a layer of the user's choice; by default the map that makes the logits. Where more than a linear map
        follows the named layer, that is left out of what :func:`replace_head` returns.

    Raises
    ------
    DataError
        If the logits are not made by a linear map, or the named layer is not used like one.
    SettingsError
        If there is no module of that name.
    """
    ending = ending_with(model, images, head)
    if ending.layer is None:
        raise DataError(
            f"retraining the last layer needs logits that a linear map makes of features, found logits made by "
            f"{ending.reason}; groups and report work as they are, and for retraining name a layer by head= or give a "
            "model that ends in a linear layer"
        )
    return ending.layer


def find_head(model: nn.Module, images: NDArray[np.float32], head: str | None = None) -> str:
    """Return the name in `model` of the module that makes the logits by a linear map; see :func:`find_last_layer`."""
    return _wrapped_name(model, find_last_layer(model, images, head).name)


def find_head_or_none(model: nn.Module, images: NDArray[np.float32], head: str | None = None) -> str | None:
    """Return what :func:`find_head` does, or None where no linear map makes the logits."""
    if head is not None:
        return find_head(model, images, head)
    layer = find_ending(model, images).layer
    return None if layer is None else _wrapped_name(model, layer.name)


def _wrapped_name(model: nn.Module, name: str) -> str:
    """Return the name in `model` of a module of :func:`unwrapped`."""
    wanted = unwrapped(model).get_submodule(name)
    return next((full for full, module in model.named_modules() if module is wanted), name)


def _known_name(model: nn.Module, head: str) -> str:
    """Return the first name of the module that is called so; refuse the name of no module."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if head not in modules:
        ends = [name for name, module in modules.items() if name and not any(module.children())]
        likely = [name for name in ends if isinstance(modules[name], nn.Linear)] or ends
        raise SettingsError(unknown_name("head", head, likely))
    return next(name for name, module in modules.items() if module is modules[head])


def _named_layer(trace: Trace, head: str) -> LastLayer:
    """Return the layer that a user named, though it does not make the logits by itself."""
    calls = [one for one in trace.modules if one.name == head]
    if not calls:
        raise DataError(f"the module {head!r} must run when the model does, but it does not; name another by head=")
    found = calls[-1]
    given, made = found.given, found.output
    if given is None or not isinstance(made, torch.Tensor) or not given.is_floating_point() or given.ndim < 2:
        raise DataError(
            f"the module {head!r} must take and return a tensor of features, but it does not; name a linear layer or a "
            "convolution by head="
        )
    axis = 1 if given.ndim > 3 or isinstance(found.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else -1
    width, count = given.shape[axis], given.numel() // (len(given) * given.shape[axis])
    n_classes = raw_logits(trace.output, len(trace.x)).numel() // len(trace.x)
    tail = Tail((1 / count,) * count, np.ones(n_classes), np.zeros(n_classes), np.arange(n_classes), n_classes)
    weight = np.zeros((n_classes, width), dtype=np.float32)
    return LastLayer(head, "cut", weight, weight[:, 0], tail, axis, found.number, len(calls))


@contextmanager
def reader(model: nn.Module, ending: Ending) -> Iterator[Any]:
    """Give a function from images to features and logits inside the block; the model's hooks are removed on leaving.

    Parameters
    ----------
    model : torch.nn.Module
        That :func:`find_ending` was given; in evaluation mode.
    ending : Ending
        With another `layer` than it has where a user named one.

    Yields
    ------
    callable
        From a tensor (n, C, H, W) to features (n, D), in float32 at least, and logits (n, K), before any softmax. The
        features are what the last linear map is given, averaged over positions where the model does so after it.
        Without a last linear map they are the logits.
    """
    inner, layer = unwrapped(model), ending.layer
    seen: list[torch.Tensor] = []
    sites = [] if ending.probability is None else [ending.probability]
    if layer is not None and layer.site is not None:
        sites.append(layer.site)

    def read(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.clear()
        watch = Watch(*sites)
        with ExitStack() as stack:
            if sites:
                stack.enter_context(watch)
            output = run_model(inner, x)
        found = output if ending.probability is None else watch.get(ending.probability)
        logits = logits_of(found, len(x))
        if layer is None:
            return logits, logits
        given = seen[layer.run] if layer.site is None else watch.get(layer.site)
        return pooled(given, layer.axis, layer.tail.positions), logits

    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        given = ModuleCall("", _module, args, kwargs, None, 0).given
        assert given is not None
        seen.append(given)

    with ExitStack() as stack:
        if layer is not None and layer.site is None:
            hook = inner.get_submodule(layer.name).register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(hook.remove)
        yield read


def features_and_logits(
    model: nn.Module, x: torch.Tensor, head: str | LastLayer | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features and the logits of one batch of images; for many batches use :func:`reader`.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor, shape (n, C, H, W)
        On the model's device and in its kind of numbers.
    head : str or LastLayer, optional
        By default the last linear map.
    """
    images = np.asarray(x[:2].detach().float().cpu().numpy())
    with reader(model, ending_with(model, images, head)) as read:
        features, logits = read(x)
    return features, logits


def as_classifier(model: nn.Module, images: NDArray[np.float32]) -> nn.Module:
    """Return a module that gives logits (n, K) before any softmax, whatever the model returns and is wrapped in.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights are shared, not copied.
    images : ndarray of float32, shape (n, C, H, W)
        A few images, to see how the model ends.

    Returns
    -------
    torch.nn.Module
        The unwrapped model itself where it returns such logits; else a module that holds it as `model`.

    Raises
    ------
    DataError
        If the model fails on the images, or does not return logits.
    """
    inner = unwrapped(model)
    trace = traced(inner, images)
    probability = read_ending(trace).probability
    output = trace.output
    if probability is None and isinstance(output, torch.Tensor) and output.ndim == 2 and output.shape[1] > 1:
        return inner
    return Logits(inner, probability)
