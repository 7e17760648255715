"""The one check of a classifier against a split: before any work, and of every batch while it is run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import DataError
from exmap.model.check import check_inputs, largest_gap, rounding
from exmap.model.classifier import check_module, logits_of, unwrapped
from exmap.model.head import find_ending
from exmap.model.running import eager, evaluation_mode, model_input, run_model
from exmap.model.trace import traced

__all__ = ["AnswerCheck", "check_fits", "check_trainable"]

NAMED = 3  # images in a sentence


def check_fits(model: nn.Module, split: Split, *, gradient: bool = False) -> None:
    """Refuse a classifier that cannot be worked with on a split, before any work: what all who run one call first.

    Parameters
    ----------
    model : torch.nn.Module
    split : Split
        The first two images that hold numbers are run.
    gradient : bool
        Whether the model must have a gradient, as all explanations but occlusion ask.

    Raises
    ------
    DataError
        As :func:`check_inputs` does, and for a model that says something else of an image beside others.
    """
    check_module(model)
    if len(split):
        images = split.first_images()
        check_inputs(model, images, split.n_classes, split.class_names, gradient=gradient)
        _check_alone(model, images)


class AnswerCheck:
    """What a classifier says of a split, looked at batch by batch while it is computed.

    Parameters
    ----------
    model : torch.nn.Module
    split : Split
    first : Tensor, shape (m, K)
        Logits of the first images (:meth:`~exmap.data.Split.first_rows`), run by themselves: of a batch they must be
        the same.
    finite : bool
        Whether all images with finite pixels must have finite logits.
    """

    def __init__(self, model: nn.Module, split: Split, first: torch.Tensor, *, finite: bool = True) -> None:
        self.model, self.split, self.finite = model, split, finite
        self.rows, self.first = split.first_rows(), first.detach()

    def __call__(self, part: slice, images: NDArray[np.float32], logits: torch.Tensor) -> None:
        """Refuse the logits of a batch that are no answers.

        Images with pixels that are not finite numbers may have logits that are not: :attr:`Outputs.predicted` is -1.

        Raises
        ------
        DataError
            For logits of finite images that are not finite, as many per image as before, and the same whatever other
            images are in the batch.
        """
        width = self.first.shape[1]
        if logits.shape[1] != width:
            raise DataError(
                f"the model must return as many logits for every batch, but it returned {width} for each of the first "
                f"{len(self.first)} images and {logits.shape[1]} for each of {len(logits)}; look in forward for a "
                "shape that depends on the number of images"
            )
        known = logits.detach().isfinite().all(dim=1).cpu().numpy()
        bad = np.flatnonzero(~known)
        bad = bad[np.isfinite(images[bad]).all(axis=(1, 2, 3))]
        if len(bad) and self.finite:
            raise DataError(self._not_finite(part, bad))
        here = [(n, row - part.start) for n, row in enumerate(self.rows.tolist()) if part.start <= row < part.stop]
        if here:
            alone, together = (np.array(each, dtype=np.int64) for each in zip(*here, strict=True))
            gap = largest_gap(self.first[alone].to(logits), logits.detach()[together])
            if gap > rounding(self.model, self.first):
                raise DataError(_depends_on_others(gap, _batch_part(self.model, images)))

    def whole(self, logits: NDArray[np.floating]) -> None:
        """Refuse the logits of all images where they are one probability each, made unseen.

        Raises
        ------
        DataError
            For a single output between 0 and 1 that comes near both: as a logit, it would be class 1 for every image.
        """
        if logits.shape[1] != 2 or not len(logits) or not np.array_equal(logits[:, 0], -logits[:, 1]):
            return
        single = 2 * logits[:, 1]
        if single.min() >= 0 and single.max() <= 1 and single.min() < 0.1 and single.max() > 0.9:
            raise DataError(
                f"the model's only output must be a logit, whose sign tells the class, but those of all "
                f"{len(logits):,} images of split {self.split.name} lie between {single.min():.2g} and "
                f"{single.max():.2g}, like probabilities; return the logit, or a probability for each class"
            )

    def _not_finite(self, part: slice, bad: NDArray[np.int64]) -> str:
        """Return the sentence for finite images whose logits are not."""
        names = ", ".join(self.split.ids[part.start + row] for row in bad[:NAMED].tolist())
        return (
            f"the model's logits must be finite, but those of {len(bad):,} of the first {part.stop:,} images of split "
            f"{self.split.name} are NaN or infinite ({names}{', ...' if len(bad) > NAMED else ''}) while their pixels "
            "are not; leave them out, or look at the model on them (model.float() if it is in 16 bits)"
        )


def check_trainable(model: nn.Module, train: Split) -> None:
    """Refuse a classifier that cannot be trained on a split, before it is.

    Raises
    ------
    DataError
        As :func:`exmap.model.check_fits` does, and for a model whose weights are all held fixed, or that returns
        probabilities, whose cross-entropy would be another.
    """
    check_fits(model, train)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DataError("the model must have weights to train, but none requires a gradient; set requires_grad_(True)")
    made = find_ending(model, train.first_images()).probability if len(train) else None
    if made is not None and made.name != "log_softmax":
        raise DataError(
            f"to be trained, the model must return logits, but it returns what {made.name} makes of them; leave that "
            "out of its forward"
        )


def _check_alone(model: nn.Module, images: NDArray[np.float32]) -> None:
    """Refuse a model whose outputs for an image change with the images beside it."""
    model = unwrapped(model)
    with torch.no_grad(), evaluation_mode(model), eager(model):
        x = model_input(model, np.ascontiguousarray(images[:2]))
        beside = logits_of(run_model(model, x.clone()), len(x))[:1]
        try:
            alone = logits_of(run_model(model, x[:1].clone()), 1)
        except DataError:  # one image by itself need not be possible
            return
    gap = largest_gap(beside, alone) if beside.shape == alone.shape else torch.inf
    if gap > rounding(model, beside):
        raise DataError(_depends_on_others(gap, _batch_part(model, images)))


def _depends_on_others(gap: float, where: str) -> str:
    """Return the sentence for a model that mixes the images of a batch."""
    return (
        f"the model must say the same of an image whatever images are beside it in a batch, but its logits change by "
        f"up to {gap:.2g}{where}; use what was learned in training (batch normalisation with running statistics, in "
        "evaluation mode), and nothing that is reckoned over a batch"
    )


def _batch_part(model: nn.Module, images: NDArray[np.float32]) -> str:
    """Return the first operation that makes another row of an image beside others than alone, for a sentence."""
    try:
        beside, alone = (traced(unwrapped(model), np.ascontiguousarray(rows)) for rows in (images[:2], images[:1]))
    except (DataError, RuntimeError):
        return ""
    for call, other in zip(beside.calls, alone.calls, strict=False):
        made, again = call.output, other.output
        if call.name != other.name or not isinstance(made, torch.Tensor) or not isinstance(again, torch.Tensor):
            continue
        if not call.data or made.shape != again.shape or made.ndim == 0 or not made.is_floating_point():
            continue
        if largest_gap(made[:1], again[:1]) > 1e-3 * (1e-6 + float(made.abs().max())):
            return f", first in the operation {call.name}" + (f" in module {call.module!r}" if call.module else "")
    return ""
