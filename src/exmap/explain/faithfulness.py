"""How faithful a heatmap is: what a classifier says as patches are replaced in the order of their relevance.

If relevance is right, replacing the most relevant patches first makes the explained output fall quickly, and replacing
the least relevant first leaves it as it is for long; the area between the two curves says how well a map separates them
(Samek et al., "Evaluating the visualization of what a deep neural network has learned", 2017; Schulz et al.,
"Restricting the flow", 2020). An order without meaning has an area of 0 on average. Where it is known what should
count, the share of positive relevance on it can be measured, too. All functions are pure: arrays or tensors in, arrays
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from exmap.errors import DataError, SettingsError, unknown_name
from exmap.records import IntArray

__all__ = ["Curves", "area_between_curves", "patch_ranks", "perturbation_curves", "share_inside"]

Order = Literal["most_relevant_first", "least_relevant_first"]
Predict = Callable[[torch.Tensor], torch.Tensor]
ORDERS = ("most_relevant_first", "least_relevant_first")
TIES = 0  # seed of the order of patches that are equally relevant


@dataclass(frozen=True)
class Curves:
    """What a classifier says of each image as its patches are replaced, one step after another.

    Attributes
    ----------
    share : ndarray of float64, shape (S,), from 0 to 1
        Share of the patches that are replaced at each step.
    outputs : ndarray of float32, shape (n, S, K)
        All logits at each step.
    target : ndarray of int64, shape (n,)
        The class whose output is followed.
    """

    share: NDArray[np.float64]
    outputs: NDArray[np.float32]
    target: IntArray

    @property
    def logit(self) -> NDArray[np.float32]:
        """The target's logit at each step, shape (n, S)."""
        return self._followed(self.outputs)

    @property
    def probability(self) -> NDArray[np.float32]:
        """The target's softmax probability at each step, shape (n, S)."""
        powers = np.exp(self.outputs - self.outputs.max(axis=2, keepdims=True))
        return self._followed(powers / powers.sum(axis=2, keepdims=True))

    def _followed(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.take_along_axis(values, self.target[:, None, None], axis=2)[:, :, 0]


def perturbation_curves(
    predict: Predict,
    images: ArrayLike | torch.Tensor,
    relevance: ArrayLike | torch.Tensor,
    *,
    patch: int | tuple[int, int] = 4,
    baseline: ArrayLike | torch.Tensor = 0.0,
    order: Order = "most_relevant_first",
    target: ArrayLike | None = None,
    steps: int | None = None,
    batch_size: int = 500,
) -> Curves:
    """Replace patches of images in the order of their relevance, and follow the classifier's outputs.

    Parameters
    ----------
    predict : callable
        From images, a tensor of shape (m, C, H, W), to logits of shape (m, K); a module in evaluation mode is one.
    images : array-like or Tensor, shape (n, C, H, W)
    relevance : array-like or Tensor, shape (n, C, H, W) or (n, H, W)
        Summed over channels and over the pixels of each patch.
    patch : int or (int, int)
        Height and width of a patch in pixels; those at the lower and right edge may be smaller. 1 flips pixels.
    baseline : array-like or Tensor
        What patches are replaced by: anything that can be broadcast to the images, for example a number, a mean image
        of shape (C, H, W), or blurred images of shape (n, C, H, W).
    order : "most_relevant_first" or "least_relevant_first"
        One is the reverse of the other; equally relevant patches are in a random order that is always the same.
    target : array-like of int, shape (n,), optional
        Classes whose output is followed; by default those of the largest logit of the whole images.
    steps : int, optional
        Number of steps from the whole image to one without any of its patches; by default one for each patch.
    batch_size : int
        Images that are predicted at once.

    Raises
    ------
    DataError
        For relevance of another shape than the images, or that is not finite.
    SettingsError
        For an unknown order, or a patch, batch or number of steps below 1.
    """
    if order not in ORDERS:
        raise SettingsError(unknown_name("order", order, ORDERS))
    x = _tensor(images)
    if x.ndim != 4 or not len(x):
        raise DataError(f"images must have shape (n, C, H, W) with at least one image, got {tuple(x.shape)}")
    ranks = patch_ranks(relevance, patch, shape=(len(x), *x.shape[2:]))
    if order == "least_relevant_first":
        ranks = ranks.max() - ranks
    counts = _counts(int(ranks.max()) + 1, steps)
    filling = _tensor(baseline, like=x).expand_as(x)
    outputs = _outputs(predict, x, filling, torch.from_numpy(ranks).to(x.device), counts, _at_least_1(batch_size))
    followed = outputs[:, 0].argmax(axis=1) if target is None else np.broadcast_to(np.asarray(target), len(x))
    return Curves(counts / counts[-1], outputs, np.ascontiguousarray(followed, dtype=np.int64))


def patch_ranks(
    relevance: ArrayLike | torch.Tensor, patch: int | tuple[int, int] = 4, *, shape: tuple[int, ...] | None = None
) -> IntArray:
    """Return for each pixel the place of its patch among the image's patches, 0 for the most relevant one.

    Parameters
    ----------
    relevance : array-like or Tensor, shape (n, C, H, W) or (n, H, W)
    patch : int or (int, int)
    shape : (int, int, int), optional
        The n, H and W that are expected.

    Returns
    -------
    ndarray of int64, shape (n, H, W)

    Examples
    --------
    >>> patch_ranks([[[0.0, 1.0, 3.0, 0.5]]], (1, 2))
    array([[[1, 1, 0, 0]]])
    """
    summed = _by_pixel(relevance)
    if shape is not None and summed.shape != shape:
        raise DataError(f"relevance must have one value per pixel of the images, {shape}, got {summed.shape}")
    if not np.isfinite(summed).all():
        raise DataError("relevance must be finite; leave out images whose map is not")
    height, width = (patch, patch) if isinstance(patch, int) else patch
    n, h, w = summed.shape
    rows, columns = -(-h // _at_least_1(height)), -(-w // _at_least_1(width))
    padded = np.pad(summed, ((0, 0), (0, rows * height - h), (0, columns * width - w)))
    scores = padded.reshape(n, rows, height, columns, width).sum(axis=(2, 4)).reshape(n, rows * columns)
    shuffled = np.random.default_rng(TIES).permutation(scores.shape[1])
    best_first = shuffled[np.argsort(-scores[:, shuffled], axis=1, kind="stable")]
    ranks = np.empty_like(best_first)
    np.put_along_axis(ranks, best_first, np.arange(scores.shape[1])[None], axis=1)
    by_pixel = ranks.reshape(n, rows, columns).repeat(height, axis=1).repeat(width, axis=2)
    return np.ascontiguousarray(by_pixel[:, :h, :w], dtype=np.int64)


def area_between_curves(
    most_relevant_first: ArrayLike, least_relevant_first: ArrayLike, share: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return how far the curve of least relevant patches first lies above that of most relevant first, per image.

    Parameters
    ----------
    most_relevant_first, least_relevant_first : array-like, shape (n, S)
        Of the same images, for example :attr:`Curves.logit`.
    share : array-like, shape (S,), optional
        As in :class:`Curves`; by default steps of equal size.

    Returns
    -------
    ndarray of float64, shape (n,)
        In units of the curves: the mean difference over the steps, by the trapezoidal rule. 0 for an order without
        meaning, more for a faithful one.

    Examples
    --------
    >>> area_between_curves([[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]])
    array([0.5])
    """
    most, least = (np.asarray(curve, dtype=np.float64) for curve in (most_relevant_first, least_relevant_first))
    if most.shape != least.shape or most.ndim != 2:
        raise DataError(f"two curves must both have shape (images, steps), got {most.shape} and {least.shape}")
    at = np.linspace(0, 1, most.shape[1]) if share is None else np.asarray(share, dtype=np.float64)
    gap = least - most
    area: NDArray[np.float64] = ((gap[:, 1:] + gap[:, :-1]) / 2) @ np.diff(at)
    return area


def share_inside(relevance: ArrayLike | torch.Tensor, mask: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """Return the share of each image's positive relevance that lies on a mask.

    Parameters
    ----------
    relevance : array-like or Tensor, shape (n, C, H, W) or (n, H, W)
        Summed over channels; what is then negative does not count.
    mask : array-like or Tensor, shape (n, H, W), in [0, 1]
        What part of each pixel is inside.

    Returns
    -------
    ndarray of float64, shape (n,)
        NaN for an image without positive relevance. The mask's share of the area (``mask.mean(axis=(1, 2))``) is what
        relevance without a preference would have.

    Examples
    --------
    >>> share_inside([[[3.0, 1.0], [-5.0, 0.0]]], [[[True, False], [True, False]]])
    array([0.75])
    """
    positive = np.clip(_by_pixel(relevance), 0, None)
    inside = _array(mask)
    if inside.shape != positive.shape:
        raise DataError(f"a mask must have one value per pixel of the relevance, {positive.shape}, got {inside.shape}")
    total = positive.sum(axis=(1, 2))
    share: NDArray[np.float64] = np.full(len(total), math.nan)
    np.divide((positive * inside).sum(axis=(1, 2)), total, out=share, where=total > 0)
    return share


def _outputs(
    predict: Predict, x: torch.Tensor, filling: torch.Tensor, ranks: torch.Tensor, counts: IntArray, batch_size: int
) -> NDArray[np.float32]:
    """Return the outputs at each step, shape (n, S, K); images and steps are predicted together, some at once."""
    number, steps = len(x), len(counts)
    replaced = torch.from_numpy(counts).to(x.device)
    made: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for first in range(0, number * steps, batch_size):
            pairs = torch.arange(first, min(first + batch_size, number * steps), device=x.device)
            image, step = pairs // steps, pairs % steps
            keep = ranks[image] >= replaced[step, None, None]
            changed = torch.where(keep[:, None], x[image], filling[image])
            made.append(predict(changed).float().cpu().numpy())
    return np.concatenate(made).reshape(number, steps, -1)


def _counts(patches: int, steps: int | None) -> IntArray:
    """Return how many patches are replaced at each step, from none to all."""
    wanted = patches if steps is None else min(_at_least_1(steps), patches)
    return np.round(np.linspace(0, patches, wanted + 1)).astype(np.int64)


def _by_pixel(relevance: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """Return relevance summed over channels, shape (n, H, W)."""
    values = _array(relevance)
    if values.ndim not in (3, 4):
        raise DataError(f"relevance must have shape (n, C, H, W) or (n, H, W), got {values.shape}")
    return values.sum(axis=1) if values.ndim == 4 else values


def _array(values: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _tensor(values: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return a tensor: as it is if it is one, in the type and on the device of `like`, or as float32."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values, dtype=np.float32))
    return tensor if like is None else tensor.to(device=like.device, dtype=like.dtype)


def _at_least_1(number: int) -> int:
    if number < 1:
        raise SettingsError(f"patch, steps and batch size must be at least 1, got {number}")
    return number
