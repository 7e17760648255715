"""One batch of images explained in one call: a classifier and pixels in, heatmaps out; no labels, no data set."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.engine import Relevance
from exmap.explain.explainers import Explainer, Target, make_explainer
from exmap.explain.rules import Composite
from exmap.model.backbone import model_device
from exmap.model.classifier import check_module
from exmap.model.halving import AtOnce
from exmap.model.running import explained_at_once, model_dtype
from exmap.records import IntArray

__all__ = ["BatchHeatmaps", "heatmaps"]


@dataclass(frozen=True, eq=False, repr=False)
class BatchHeatmaps:
    """Heatmaps of a batch of n images, in units of the explained logit.

    Attributes
    ----------
    values : ndarray of float32, shape (n, C, H, W)
        Signed relevance of each pixel and channel: what speaks for the explained class is positive.
    target : ndarray of int64, shape (n,)
        The explained class; with ``target="margin"`` the predicted one.
    logits : ndarray of float32, shape (n, K)
    explained : ndarray of float64, shape (n,)
        The explained logit, or difference of logits.
    constants : ndarray of float64, shape (n,)
        What is not the pixels' part: relevance of biases and other constants for ``lrp``, the baseline's logit for
        ``integrated_gradients``, so that values and constants sum to `explained`. NaN for explainers without it.
    layers : dict of str to ndarray of float32, shape (n, ...)
        Relevance of the outputs of the modules that were asked for.
    explainer : str
        What made them, for the eye.
    """

    values: NDArray[np.float32]
    target: IntArray
    logits: NDArray[np.float32]
    explained: NDArray[np.float64]
    constants: NDArray[np.float64]
    layers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    explainer: str = ""

    @property
    def input_share(self) -> NDArray[np.float64]:
        """The sum of each image's values as a share of the explained logit, shape (n,); NaN where that is 0."""
        total = self.values.sum(axis=(1, 2, 3), dtype=np.float64)
        explained = self.explained
        share: NDArray[np.float64] = np.full(len(total), np.nan)
        np.divide(total, explained, out=share, where=explained != 0)
        return share

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `values`, (n, C, H, W)."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self.values if dtype is None else self.values.astype(dtype, copy=False)
        if copy is False and values is not self.values:
            raise ValueError("heatmaps of another kind of numbers need a copy")
        return values.copy() if copy and values is self.values else values

    def __repr__(self) -> str:
        n, c, h, w = self.shape
        layers = f", layers {', '.join(self.layers)}" if self.layers else ""
        return f"BatchHeatmaps({n} x {c} x {h} x {w}, by {self.explainer}, {self._share()}{layers})"

    def _share(self) -> str:
        share = self.input_share
        known = share[np.isfinite(share)]
        return f"median input share {np.median(known):.2f}" if len(known) else "no input share"

    def _repr_html_(self) -> str:
        """Return a small table of the first images, for notebooks."""
        titles = ("image", "explained class", "explained", "input share", "smallest", "largest")
        rows = [
            (str(i), str(self.target[i]), *(f"{number:.3g}" for number in numbers_))
            for i, numbers_ in enumerate(
                zip(
                    self.explained[:8],
                    self.input_share[:8],
                    self.values[:8].min(axis=(1, 2, 3)),
                    self.values[:8].max(axis=(1, 2, 3)),
                    strict=True,
                )
            )
        ]
        more = f"<p>and {len(self) - 8} more</p>" if len(self) > 8 else ""
        head = "".join(f"<th>{title}</th>" for title in titles)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def heatmaps(
    model: Any,
    images: ArrayLike | torch.Tensor,
    explainer: str | Any = "lrp",
    target: str | int | ArrayLike | torch.Tensor = "predicted",
    *,
    composite: str | Composite | None = None,
    batch_size: int | None = None,
    layers: Sequence[str] = (),
    **options: Any,
) -> BatchHeatmaps:
    """Explain what a classifier sees in each image of a batch. Needs no labels; changes nothing in the model.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier. For ``occlusion`` also a scripted or quantised module, an ONNX Runtime session, or a function
        from images to logits.
    images : array-like or Tensor of float, shape (n, C, H, W) or (C, H, W)
        Scaled as the model was trained. One image is a batch of one.
    explainer : str or object
        One of :func:`explainer_names`, an explainer of your own, or an object of Captum's such as
        ``captum.attr.Saliency(model)``; see :func:`make_explainer`.
    target : "predicted", "margin", int, or array-like of int, shape (n,)
        The class whose logit is explained; "margin" is the predicted class's logit minus the runner-up's.
    composite : str or Composite, optional
        Rules of ``lrp``; by default those for the model's kind: the paper's symmetric gamma for convolutions.
    batch_size : int, optional
        Images that are explained at once; by default up to 256, fewer of large images, and fewer where memory is short.
    layers : sequence of str
        For ``lrp``: paths of modules whose outputs' relevance is returned, too.
    **options
        Further settings of the explainer, such as ``gamma`` of ``lrp``, ``patch`` of ``occlusion``, ``steps`` of
        ``integrated_gradients`` or ``layer`` of ``grad_cam``.

    Returns
    -------
    BatchHeatmaps

    Raises
    ------
    DataError
        For images that are not floating-point, not finite, none, or of another shape, and for a model that the
        explainer cannot work with.
    SettingsError
        For an unknown explainer, option, composite, layer or target.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2, bias=False))
    >>> made = heatmaps(model, np.ones((5, 3, 2, 2)), composite="epsilon", target=1)
    >>> made
    BatchHeatmaps(5 x 3 x 2 x 2, by lrp, median input share 1.00)
    >>> np.asarray(made).sum(axis=(1, 2, 3)).shape
    (5,)
    """
    given = {key: value for key, value in (("composite", composite), ("layers", layers)) if value}
    if isinstance(model, nn.Module):
        check_module(model)
    made = make_explainer(explainer, **given, **options)
    x = _images(images, model)
    chosen = _target(target, len(x))

    def explained(rows: slice) -> Relevance:
        return made.explain(model, x[rows], chosen[rows] if isinstance(chosen, torch.Tensor) else chosen)

    parts = list(AtOnce(_at_once(x, batch_size)).parts(len(x), explained))
    return _joined(parts, explainer if isinstance(explainer, str) else _name(made))


def _name(explainer: Explainer) -> str:
    return str(getattr(explainer, "name", type(explainer).__name__))


def _at_once(x: torch.Tensor, batch_size: int | None) -> int:
    """Return how many images are explained at once."""
    if batch_size is None:
        return explained_at_once(x.shape[2], x.shape[3], 256, x.device)
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise SettingsError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return int(batch_size)


def _images(images: Any, model: Any) -> torch.Tensor:
    """Return images as a tensor (n, C, H, W) where the model is, or refuse them."""
    if isinstance(images, torch.Tensor):
        kind, floating = str(images.dtype).removeprefix("torch."), images.is_floating_point()
    else:
        images = _array(images)
        kind, floating = str(images.dtype), images.dtype.kind == "f"
    if not floating:
        raise DataError(
            f"images must be floating-point numbers, scaled as the model was trained, got {kind}; for example divide "
            "by 255, subtract the mean and divide by the standard deviation of training"
        )
    if images.ndim not in (3, 4):
        raise DataError(
            f"images must have shape (n, C, H, W), or (C, H, W) for one, got {tuple(images.shape)}; images without "
            "channels are images[:, None]"
        )
    if 0 in images.shape:
        raise DataError(f"images must be at least one, of at least one pixel, got shape {tuple(images.shape)}")
    double = isinstance(images, torch.Tensor) and images.dtype == torch.float64
    if not isinstance(images, torch.Tensor):
        images = torch.from_numpy(np.array(images, dtype=np.float64 if kind == "float64" else np.float32))
    x: torch.Tensor = images.detach()[None] if images.ndim == 3 else images.detach()
    _check_finite(x)
    return _placed(x, model, double)


def _placed(x: torch.Tensor, model: Any, double: bool) -> torch.Tensor:
    """Return images where the model is, in float64 if it computes in that, or is a function given such a tensor."""
    if not isinstance(model, nn.Module):
        return x.double() if double else x.float()
    kind = torch.float64 if model_dtype(model) == torch.float64 else torch.float32
    return x.to(kind).to(model_device(model))


def _array(images: Any) -> NDArray[Any]:
    try:
        return np.asarray(images)
    except ValueError as error:  # lists of images of several sizes
        raise DataError(
            "images must be one array or tensor of shape (n, C, H, W), found images of several shapes; bring them to "
            "one size"
        ) from error


def _check_finite(x: torch.Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(x).flatten(1).all(dim=1))[:, 0]
    if len(bad):
        raise DataError(
            f"images must be finite, but {len(bad)} of {len(x)} hold NaN or infinity, image {int(bad[0])} first; leave "
            "them out, or look at how they are scaled"
        )


def _target(target: Any, n: int) -> Target:
    """Return the target as explainers take it, or refuse it; only a model tells how many classes there are."""
    allowed = 'target must be "predicted", "margin", a class, or one class for each image'
    if isinstance(target, str):
        if target not in ("predicted", "margin"):
            raise SettingsError(f"{allowed}, got {target!r}")
        return target
    classes = np.asarray(target.detach().cpu() if isinstance(target, torch.Tensor) else target)
    if classes.dtype.kind not in "iu":
        raise SettingsError(f"{allowed}, as whole numbers, got {target!r:.60} of kind {classes.dtype}")
    if classes.ndim == 0:
        return int(classes)
    if classes.shape != (n,):
        raise SettingsError(f"{allowed}, got an array of shape {classes.shape} for {n} image{'s' if n > 1 else ''}")
    return torch.from_numpy(classes.astype(np.int64))


def _joined(parts: list[Relevance], explainer: str) -> BatchHeatmaps:
    """Return the parts of a batch as one record."""

    def whole(name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([_numbers(getattr(part, name), dtype) for part in parts])

    layers = {
        path: np.concatenate([_numbers(part.layers[path], np.float32) for part in parts]) for path in parts[0].layers
    }
    return BatchHeatmaps(
        whole("values", np.float32),
        whole("target", np.int64),
        whole("logits", np.float32),
        whole("explained", np.float64),
        whole("constants", np.float64),
        layers,
        explainer,
    )


def _numbers(tensor: torch.Tensor, dtype: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return np.ascontiguousarray(tensor.numpy(), dtype=dtype)
