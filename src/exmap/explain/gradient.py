"""Plain input times gradient: the simplest heatmap, as a yardstick for the relevance rules."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.config import ExplainSettings
from exmap.data.dataset import Split, batch_slices
from exmap.explain.heatmaps import given_target
from exmap.explain.reduce import reduce_maps
from exmap.model.backbone import model_device, to_tensor
from exmap.records import IntArray, Listener, Progress, silent

__all__ = ["input_gradient_maps"]


def input_gradient_maps(
    model: nn.Module,
    split: Split,
    rows: IntArray,
    settings: ExplainSettings | None = None,
    *,
    listen: Listener = silent,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return input times gradient of the explained class's logit, reduced and scaled as heatmaps are.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, C, H, W) to (n, K) logits; stays as it is.
    split : Split
    rows : ndarray of int64, shape (n,)
        The images to explain.
    settings : ExplainSettings, optional
        Target, size and size of a batch; there is no composite.
    listen : Listener

    Returns
    -------
    maps : ndarray of float32, shape (n, C * h * w), in [-1, 1]
        Zero where the gradient was not finite.
    finite : ndarray of bool, shape (n,)
    """
    settings = settings or ExplainSettings()
    given = given_target(settings, split.labels)
    channels, height, width = split.images.shape
    side = (height, width) if settings.size is None else (settings.size, settings.size)
    values = np.empty((len(rows), channels * side[0] * side[1]), dtype=np.float32)
    finite = np.empty(len(rows), dtype=np.bool_)
    device = model_device(model)
    with torch.inference_mode(False), torch.enable_grad():
        for part in batch_slices(len(rows), settings.batch_size):
            x = to_tensor(split.images.batch(rows[part]), device).requires_grad_()
            logits = model(x)
            chosen = logits.argmax(dim=1) if given is None else torch.from_numpy(given[rows[part]]).to(logits.device)
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), x)
            maps, is_finite, _ = reduce_maps((x * gradient).detach().float(), settings.size)
            values[part] = maps.flatten(1).cpu().numpy()
            finite[part] = is_finite.cpu().numpy()
            listen(Progress("input x gradient", part.stop, len(rows)))
    return values, finite
