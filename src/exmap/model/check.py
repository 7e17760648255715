"""Look at a model for seconds before hours of work: what will not do is said in a sentence with the remedy."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError
from exmap.model.classifier import check_differentiable, check_module, is_quantised, logits_of, unwrapped
from exmap.model.ending import read_ending
from exmap.model.replace import Logits
from exmap.model.running import eager, evaluation_mode, exact, model_dtype, model_input, run_model, way_back
from exmap.model.trace import Call, Trace, traced
from exmap.runtime import torch_seed

__all__ = ["check_inputs", "largest_gap", "rounding"]

RANDOM = (
    "dropout",
    "bernoulli",
    "rand",
    "randn",
    "normal",
    "uniform",
    "multinomial",
    "poisson",
    "exponential",
    "rrelu",
)


def check_inputs(
    model: nn.Module,
    images: NDArray[np.float32],
    n_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    *,
    gradient: bool = True,
) -> None:
    """Refuse a model that cannot be worked with on such images; it and the random generators stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
    images : ndarray of float32, shape (n, C, H, W)
        A few; two are run.
    n_classes : int, optional
        Of the data set.
    class_names : sequence of str, optional
    gradient : bool
        Whether the model must have a gradient, as all explanations but occlusion ask.

    Raises
    ------
    DataError
        For a model without gradients (scripted, quantised, or cut off inside), with weights that are not loaded or not
        floating-point, that fails on the images, returns no logits or logits that are not finite, has another number of
        outputs than there are classes, or another output from call to call.
    """
    check_module(model)
    if gradient:
        check_differentiable(model)
    inner = unwrapped(model)
    _check_weights(inner)
    if not gradient and isinstance(inner, torch.jit.ScriptModule):
        return _check_scripted(inner, images, n_classes, class_names)
    trace = traced(inner, images)
    logits = logits_of(trace.output, len(trace.x))
    _check_same(trace, logits)
    _check_finite(trace, logits)
    if n_classes is not None:
        _check_classes(logits.shape[1], n_classes, class_names)
    if gradient:
        _check_gradient(trace, logits)


def _check_scripted(
    model: nn.Module, images: NDArray[np.float32], n_classes: int | None, class_names: Sequence[str] | None
) -> None:
    """Check what can be checked of a model whose operations cannot be seen."""
    x = model_input(model, np.ascontiguousarray(images[:2]))
    with torch.no_grad(), evaluation_mode(model):
        trace = Trace(model, x, run_model(model, x))
    logits = logits_of(trace.output, len(x))
    _check_same(trace, logits)
    _check_finite(trace, logits)
    if n_classes is not None:
        _check_classes(logits.shape[1], n_classes, class_names)


def _check_weights(model: nn.Module) -> None:
    """Refuse weights that are not numbers to compute with."""
    parameters = list(model.named_parameters())
    kinds = {str(p.dtype).removeprefix("torch.") for _, p in parameters}
    if parameters and not any(p.is_floating_point() for _, p in parameters):
        raise DataError(
            f"the model's weights must be floating-point numbers, found {', '.join(sorted(kinds))}; convert it, for "
            "example by model.float()"
        )


def _check_same(trace: Trace, logits: torch.Tensor) -> None:
    """Refuse a model whose outputs change though the images do not."""
    model, x = trace.model, trace.x
    with torch.no_grad(), evaluation_mode(model), eager(model), torch_seed(1):
        np.random.random(7)  # a model may draw from any generator; all are put back
        random.random()
        again = logits_of(run_model(model, x.clone()), len(x))
    gap, allowed = largest_gap(logits, again), rounding(model, logits)
    if gap > allowed:
        raise DataError(
            f"the model must say the same of the same images, but its logits change by up to {gap:.2g} from call to "
            f"call in evaluation mode{_random_part(trace)}; make it depend on self.training (F.dropout(x, p, "
            "self.training)) or leave it out"
        )


def largest_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of logits that are finite in both."""
    gaps = (exact(one) - exact(other)).abs()
    known = gaps[gaps.isfinite()]
    return float(known.max()) if len(known) else 0.0


def rounding(model: nn.Module, logits: torch.Tensor) -> float:
    """Return how much logits may differ by rounding."""
    known = logits.detach()[logits.isfinite()]
    size = float(known.abs().max()) if known.numel() else 0.0
    if is_quantised(model):  # values are rounded to steps that the batch's largest decides
        share = 0.25
    elif torch.finfo(logits.dtype).eps > 1e-5 or model_dtype(model) in (torch.float16, torch.bfloat16):
        share = 0.05
    else:
        share = 1e-3 if logits.device.type == "cpu" else 0.02  # others may multiply in TF32
    return share * (1e-6 + size)


def _random_part(trace: Trace) -> str:
    """Return where random numbers are drawn, for a sentence."""
    drawn = [call for call in trace.calls if call.name.startswith(RANDOM) and _draws(call)]
    if not drawn:
        return ""
    where = f" in module {drawn[0].module!r}" if drawn[0].module else ""
    return f", by the operation {drawn[0].name}{where}"


def _draws(call: Call) -> bool:
    """Return whether an operation with a random name changed anything: dropout in evaluation mode does not."""
    if "dropout" not in call.name:
        return True
    return not (isinstance(call.output, torch.Tensor) and torch.equal(call.output, call.operands[0][0]))


def _check_finite(trace: Trace, logits: torch.Tensor) -> None:
    """Refuse logits that are no numbers, and say where they come from."""
    finite = logits.isfinite()
    if finite.all():
        return
    bad = int((~finite.all(dim=1)).sum())
    tensors = [
        (n, t) for n, t in (*trace.model.named_parameters(), *trace.model.named_buffers()) if t.dtype.is_floating_point
    ]
    wrong = next((name for name, tensor in tensors if not tensor.isfinite().all()), None)
    first = next((call for call in trace.calls if call.data and _spoiled(call)), None)
    if wrong is not None:
        cause = f"the weights {wrong!r} hold NaN or infinity; load other weights"
    elif not trace.x.isfinite().all():
        cause = "the images hold NaN or infinity; look at how they are read and normalised"
    elif first is not None:
        where = f" in module {first.module!r}" if first.module else ""
        cause = (
            f"the operation {first.name}{where} makes them first; look there, or use model.float() if it is in 16 bits"
        )
    else:
        cause = "look at its weights, and at how the images are normalised"
    raise DataError(f"the model's logits must be finite, but those of {bad} of {len(logits)} images are not: {cause}")


def _spoiled(call: Call) -> bool:
    """Return whether an operation made numbers that are not finite."""
    tensors = call.output if isinstance(call.output, (tuple, list)) else [call.output]
    return any(isinstance(t, torch.Tensor) and t.is_floating_point() and bool(t.isnan().any()) for t in tensors)


def _check_classes(found: int, n_classes: int, class_names: Sequence[str] | None) -> None:
    """Refuse a model with another number of outputs than the data set has classes."""
    if found == n_classes:
        return
    shown = [str(name) for name in (class_names or ())[:4]]
    names = f" ({', '.join(shown)}{', ...' if class_names and len(class_names) > 4 else ''})" if shown else ""
    if found > n_classes:
        remedy = (
            f"which ones? Name {n_classes} of the outputs by number, in the order of the classes (--outputs 5,7 on the "
            "command line, outputs=[5, 7] in exmap.analyze, else model(x)[:, [5, 7]]), or give it a last layer of "
            f"{n_classes} outputs and train that"
        )
    else:
        remedy = f"give a model with {n_classes} outputs, or a data set of the {found} classes it was trained on"
    raise DataError(f"the model outputs {found} classes, the data set has {n_classes}{names}: {remedy}")


def _slope(top: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of the images, or refuse a model that overwrites what it needs."""
    with way_back():
        return torch.autograd.grad(top, x, allow_unused=True)[0]


def _check_gradient(trace: Trace, logits: torch.Tensor) -> None:
    """Refuse a model that does not tell the images' gradient."""
    remedy = "look in forward for detach, .data, no_grad, numpy, rounding or argmax, or choose explainer='occlusion'"
    model = trace.model
    classifier = Logits(model, read_ending(trace).probability)
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model), eager(model):
        x = trace.x.clone().requires_grad_()
        made = logits_of(run_model(classifier, x.clone(), remedy), len(x))
        top = made.gather(1, made.detach().argmax(dim=1, keepdim=True)).sum()
        slope = _slope(top, x) if top.requires_grad else None
    if slope is None:
        raise DataError(f"the model's logits must depend on the images through gradients, but they do not; {remedy}")
    differ = not torch.equal(logits[0], logits[1])
    if differ and not bool(slope.any()):
        raise DataError(
            f"the model's logits differ between images while their gradient is zero everywhere, so no explanation can "
            f"follow it; {remedy}"
        )
