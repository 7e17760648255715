"""What a classifier may be and may return: one form of logits, whatever wraps the model and its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from exmap.errors import DataError

__all__ = [
    "check_differentiable",
    "check_module",
    "is_quantised",
    "logits_of",
    "raw_logits",
    "unwrapped",
    "without_wrappers",
]

ELSEWHERE = {"onnx", "onnxruntime", "tensorflow", "keras", "jax", "jaxlib", "flax", "openvino", "tensorrt"}
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.")
WRAPPERS = ("_orig_mod.", "module.", "_forward_module.")


def logits_of(output: Any, n_images: int | None = None) -> torch.Tensor:
    """Return the logits in what a model returned, as one row per image and one column per class.

    Parameters
    ----------
    output : Tensor, tuple, list, mapping, or object with `logits`
        A single logit per image, of shape (n, 1) or (n,), is that of class 1 against class 0. Dimensions of size 1
        after the first are left out.
    n_images : int, optional
        How many images the model was given. It tells one image of K classes from K images of one logit.

    Returns
    -------
    Tensor, shape (n, K)
        Differentiable. One logit z becomes (-z / 2, z / 2), whose softmax is the sigmoid of z.

    Raises
    ------
    DataError
        If there is no such tensor, or several, or it has another number of rows than there were images.

    Examples
    --------
    >>> logits_of({"logits": torch.tensor([[1.0], [-3.0]])})
    tensor([[-0.5000,  0.5000],
            [ 1.5000, -1.5000]])
    """
    raw = raw_logits(output, n_images)
    if n_images == 1 and (raw.ndim == 0 or raw.shape[0] != 1):
        raw = raw.unsqueeze(0)  # the model squeezed the dimension of the images away, too
    raw = raw.flatten(1) if raw.ndim > 1 else raw.unsqueeze(1)
    return torch.cat([-raw / 2, raw / 2], dim=1) if raw.shape[1] == 1 else raw


def raw_logits(output: Any, n_images: int | None = None) -> torch.Tensor:
    """Return the tensor of logits in what a model returned, in the shape it has there; see :func:`logits_of`."""
    found = dict(_named(output))
    usable = {name: tensor for name, tensor in found.items() if _like_logits(tensor, n_images)}
    if isinstance(output, torch.Tensor) or len(usable) < 2:
        chosen = usable
    else:
        several = {name: tensor for name, tensor in usable.items() if _width(tensor) > 1}
        chosen = several or usable
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    shapes = ", ".join(f"{name} {tuple(t.shape)} of {t.dtype}".strip() for name, t in found.items())
    what = f"{type(output).__name__} of {shapes}" if found else type(output).__name__
    first = output[0] if isinstance(output, (list, tuple)) and output else output
    if isinstance(first, Mapping) and "boxes" in first:
        what = "boxes of a detection model"
    if isinstance(output, torch.Tensor):
        sparse = "" if output.layout == torch.strided else "sparse "
        what = f"a {sparse}tensor of shape {tuple(output.shape)} and kind {output.dtype}"
    given = "" if n_images is None else f" for {n_images} images"
    if len(chosen) > 1:
        raise DataError(
            f"the model must return one tensor of logits, found {what}{given}, of which {len(chosen)} could be the "
            "logits; wrap the model so that it returns them alone, or under the name logits"
        )
    raise DataError(
        f"the model must return logits, floating-point numbers of shape (n, n_classes), or (n,) for two classes; found "
        f"{what}{given}. Wrap the model so that it returns one number per image and class, before softmax and argmax"
    )


def _named(output: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that may be the logits, with what they are called."""
    if isinstance(output, torch.Tensor):
        yield "", output
        return
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if named is not None:
        for name, tensor in _named(named):
            yield f"logits{name}", tensor
    elif isinstance(output, Mapping):
        yield from ((str(key), value) for key, value in output.items() if isinstance(value, torch.Tensor))
    elif isinstance(output, (tuple, list)):
        if len(output) == 1:
            yield from _named(output[0])
            return
        for number, value in enumerate(output):
            tensor = getattr(value, "logits", value)
            if isinstance(tensor, torch.Tensor):
                yield f"[{number}]", tensor


def _like_logits(tensor: torch.Tensor, n_images: int | None) -> bool:
    """Return whether a tensor can be one row of logits per image."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.layout != torch.strided:
        return False
    if n_images == 1 and tensor.ndim <= 1:
        return True
    if tensor.ndim == 0 or (n_images is not None and tensor.shape[0] != n_images):
        return False
    return sum(size > 1 for size in tensor.shape[1:]) <= 1


def _width(tensor: torch.Tensor) -> int:
    """Return the number of logits per image."""
    return tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim > 1 else 1


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, DataParallel, DDP, Fabric and averages of weights (EMA, SWA).

    The model that is given stays as it is. A wrapper with a forward of its own that is not known here, such as those of
    peft, is a module like any other.
    """
    while True:
        inner = _inner(model)
        if inner is None:
            return model
        model = inner


def _inner(model: nn.Module) -> nn.Module | None:
    """Return what a known wrapper holds, or None."""
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return compiled
    module = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        return None
    known = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    without_forward = type(model).forward is nn.Module.forward  # such as timm's ModelEmaV2
    if isinstance(model, known) or without_forward or type(model).__name__ == "_FabricModule":
        return module
    return None


def without_wrappers(model: nn.Module, name: str) -> str:
    """Return the name of a module of `model` as it is called inside :func:`unwrapped`."""
    inner = _inner(model)
    while inner is not None:
        prefix = next((p for p in WRAPPERS if f"{name}.".startswith(p)), "")
        name, inner = name[len(prefix) :] if prefix != f"{name}." else "", _inner(inner)
    return name


def check_module(model: Any) -> None:
    """Refuse what is no classifier of torch that was built and has its weights.

    Raises
    ------
    DataError
        With what it is, and what to give instead.
    """
    if isinstance(model, nn.Module):
        if absent := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
            raise DataError(
                f"the model's weights must be loaded, but {absent[0]!r} is on the meta device, without values; load "
                "the weights before"
            )
        return
    if isinstance(model, type):
        what, remedy = f"the class {model.__name__}", "build it, and load its weights"
    elif isinstance(model, str):
        what, remedy = f"the text {model!r:.60}", "build that model, or name it to exmap audit --model"
    elif isinstance(model, torch.jit.ScriptFunction) or callable(model):
        what, remedy = (
            f"a function ({getattr(model, '__name__', type(model).__name__)})",
            "call it in a module's forward",
        )
    elif isinstance(model, Mapping):
        what, remedy = f"a {type(model).__name__}", "build the model, and give it these weights by load_state_dict"
    else:
        what, remedy = type(model).__name__, "give the model itself"
    raise DataError(f"the model must be a torch.nn.Module that was built and has its weights, got {what}; {remedy}")


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model counts in whole numbers somewhere, or may do so unseen, in a file of another library."""
    return bool(getattr(model, "gradient_free", False)) or _quantised(model) is not None


def check_differentiable(model: Any) -> None:
    """Refuse what has no gradients: scripted, quantised and foreign models.

    Raises
    ------
    DataError
        With what the model is, and what to give instead.
    """
    package = type(model).__module__.partition(".")[0]
    if package in ELSEWHERE or (not isinstance(model, nn.Module) and not callable(model)):
        raise DataError(
            f"a model of {package} ({type(model).__name__}) has no gradients that torch can follow; give the torch "
            "model it was exported from, or choose explainer='occlusion' with a function from images to logits"
        )
    if getattr(model, "gradient_free", False):
        raise DataError(
            "a model in a file (onnx:, torchscript:) has no gradients that torch can follow; give the torch model it "
            "was exported from, or choose explain.explainer=occlusion"
        )
    if (scripted := _scripted(model)) is not None:
        raise DataError(
            f"a scripted model (torch.jit.script or trace{scripted}) does not show its operations; give the model "
            "it was scripted from, or choose explainer='occlusion'"
        )
    if not isinstance(model, nn.Module):
        raise DataError(
            f"the model must be a torch.nn.Module for explanations by gradients, got {type(model).__name__}; put it "
            "into a module, or choose explainer='occlusion'"
        )
    if (found := _quantised(model)) is not None:
        raise DataError(
            f"a quantised model ({found}) has no gradients; give the floating-point model it was quantised from, or "
            "choose explainer='occlusion'"
        )


def _scripted(model: Any) -> str | None:
    """Return where a model is scripted, for a sentence: nothing where it is so as a whole. None where it is not."""
    if isinstance(model, torch.jit.ScriptFunction):
        return ""
    modules = unwrapped(model).named_modules() if isinstance(model, nn.Module) else ()
    found = next((name for name, module in modules if isinstance(module, torch.jit.ScriptModule)), None)
    return f", its module {found!r}" if found else found


def _quantised(model: nn.Module) -> str | None:
    """Return the kind of the first quantised layer or tensor."""
    for module in model.modules():
        if f"{type(module).__module__}.".startswith(QUANTISED):
            return type(module).__name__
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_quantized or f"{type(tensor).__module__}.".startswith(QUANTISED):
            return str(tensor.dtype) if tensor.is_quantized else type(tensor).__name__
    return None
