"""A classifier asked about changed images, in the scale in which one looks at them, whatever its own scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from exmap.data import Images, Split
from exmap.model.classifier import logits_of
from exmap.model.halving import AtOnce
from exmap.model.running import evaluation_mode, images_at_once, model_device, model_input, run_model
from exmap.records import IntArray

__all__ = ["Looks", "Pixels", "Predict", "Scale"]

Pixels = NDArray[np.float32]
Predict = Callable[[Pixels], NDArray[np.float32]]

GLANCE = 14  # pixels a side
SAMPLE = 32  # images from which the scale is read
EXACT = 1e-3  # largest distance of a value from the straight line, in units of the model's input
FLAT = np.float32(1e-6)  # slope below which the classifier's input tells nothing of the value


@dataclass(frozen=True, eq=False)
class Scale:
    """Images with values in about [0, 1], and the way from there to what a classifier takes.

    Attributes
    ----------
    images : Images
    slope, offset : ndarray of float32, shape (C, 1, 1)
        Input of the classifier = slope x value + offset.
    from_pixels : bool
        Whether values are those of `Images.pixels`; otherwise they are the classifier's own input, scaled.
    """

    images: Images
    slope: NDArray[np.float32]
    offset: NDArray[np.float32]
    from_pixels: bool

    @classmethod
    def read(cls, split: Split) -> Scale:
        """Read the scale off the first images of a split."""
        rows = np.arange(min(SAMPLE, len(split)))
        wanted, seen = split.images.batch(rows), split.images.pixels(rows)
        slope, offset, exact = _lines(seen, wanted)
        if exact and (np.abs(slope) < FLAT).any():  # a channel that the model is given as a constant
            exact = False
        if not exact:  # each image was stretched by itself, or the model sees something else
            low = wanted.min(axis=(0, 2, 3), keepdims=True)[0]
            slope = np.maximum(wanted.max(axis=(0, 2, 3), keepdims=True)[0] - low, FLAT)
            offset = low
        return Scale(split.images, slope, offset, exact)

    def pixels(self, rows: IntArray) -> Pixels:
        """Return images, float32, shape (n, C, H, W)."""
        rows = np.asarray(rows, dtype=np.int64)
        return self.images.pixels(rows) if self.from_pixels else self.seen(self.images.batch(rows))

    def seen(self, wanted: Pixels) -> Pixels:
        """Return images that are as the classifier takes them in this scale, shape (n, C, H, W)."""
        return np.asarray((wanted - self.offset) / self.slope, dtype=np.float32)

    def wanted(self, pixels: Pixels) -> Pixels:
        """Return images of this scale as the classifier takes them, shape (n, C, H, W)."""
        return np.ascontiguousarray(pixels * self.slope + self.offset, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Looks(Scale):
    """Images with values in about [0, 1], and a classifier that takes them so.

    Attributes
    ----------
    images, slope, offset, from_pixels
        As for :class:`Scale`.
    predict_input : callable
        From images as the classifier wants them, float32, shape (n, C, H, W), to logits, shape (n, K).
    at_once : int
        Images that are run at once.
    """

    predict_input: Predict
    at_once: int = 250

    @classmethod
    def of(cls, split: Split, model: nn.Module | Predict) -> Looks:
        """Read the scale off the first images of a split.

        Parameters
        ----------
        split : Split
            With images.
        model : torch.nn.Module, or callable
            The classifier, or a function from its input to logits.
        """
        predict = _predictor(model) if isinstance(model, nn.Module) else model
        scale = Scale.read(split)
        return cls(scale.images, scale.slope, scale.offset, scale.from_pixels, predict, images_at_once(split))

    def reduced(self, rows: IntArray) -> Pixels:
        """Return images of at most 14 pixels a side, by area averaging: what is seen at a glance."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels(rows)))
        height, width = (min(GLANCE, side) for side in pixels.shape[2:])
        return np.asarray(functional.adaptive_avg_pool2d(pixels, (height, width)).numpy())

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the logits of such images, shape (n, K)."""
        parts = AtOnce(self.at_once).parts(len(pixels), lambda part: self._logits(pixels[part]))
        return np.concatenate(list(parts))

    def predict(self, pixels: Pixels) -> IntArray:
        """Return the class of each image, shape (n,)."""
        return np.asarray(self.logits(pixels).argmax(axis=1), dtype=np.int64)

    def _logits(self, pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(self.predict_input(self.wanted(pixels)), dtype=np.float32)


def _predictor(model: nn.Module) -> Predict:
    def predict(batch: Pixels) -> NDArray[np.float32]:
        with evaluation_mode(model), torch.no_grad():
            x = model_input(model, batch).to(model_device(model))
            return np.asarray(logits_of(run_model(model, x), len(batch)).float().cpu().numpy())

    return predict


def _lines(seen: Pixels, wanted: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    """Return each channel's straight line from pixels to input, and whether all values lie on them."""
    channels = seen.shape[1]
    slope, offset = np.ones((channels, 1, 1), dtype=np.float32), np.zeros((channels, 1, 1), dtype=np.float32)
    if seen.shape != wanted.shape:
        return slope, offset, False
    for channel in range(channels):
        x, y = seen[:, channel].ravel().astype(np.float64), wanted[:, channel].ravel().astype(np.float64)
        spread = float(np.var(x))
        if spread > 1e-12:
            slope[channel] = np.mean((x - x.mean()) * (y - y.mean())) / spread
        offset[channel] = y.mean() - float(slope[channel, 0, 0]) * x.mean()
    exact = bool(np.abs(seen * slope + offset - wanted).max(initial=0) <= EXACT)
    return slope, offset, exact
