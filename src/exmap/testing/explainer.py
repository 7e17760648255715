"""What every explainer keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from exmap.errors import SettingsError
from exmap.explain import Relevance, make_explainer
from exmap.registry import EXPLAINERS
from exmap.testing.common import check_options, found, must, nothing_drawn, planted, small_model, untouched

__all__ = ["check_explainer"]


def check_explainer(explainer: str | type, **options: Any) -> None:
    """Check an explainer on a small network and four images.

    Parameters
    ----------
    explainer : str or class
        A registered name, a dotted path ``package.module:Class``, or a class that can be imported.
    **options
        Its options.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.
    """
    name, kind = found(EXPLAINERS, explainer)
    check_options(EXPLAINERS, name, options)
    what = f"the explainer {name}"
    needs = getattr(kind, "needs_gradient", True)
    must(isinstance(needs, bool), f"{name}.needs_gradient must be True or False, got {needs!r}")
    model, images = small_model(), torch.from_numpy(planted().val.images.batch(np.arange(4)))
    with untouched(what, model), nothing_drawn(what):
        made = make_explainer(name, **options).explain(model, images, "predicted")
    with torch.no_grad():
        logits = small_model().eval()(images)
    _check_relevance(what, made, images, logits)
    again = make_explainer(name, **options).explain(model, images, "predicted")
    must(torch.equal(again.values, made.values), f"{what} must give the same bits each time, but did not")
    _check_targets(what, name, options, images, logits)
    try:
        make_explainer(name, **options).explain(model, images, 3)
    except SettingsError:
        return
    raise AssertionError(f"{what} must refuse a class that the model does not have with a SettingsError, but went on")


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-3, atol=1e-5)


def _check_relevance(what: str, made: Any, images: torch.Tensor, logits: torch.Tensor) -> None:
    must(isinstance(made, Relevance), f"{what} must return an exmap.explain.Relevance, got {made!r:.60}")
    values = made.values
    must(
        values.shape == images.shape,
        f"{what} must give relevance of the images' shape {tuple(images.shape)}, got {tuple(values.shape)}",
    )
    must(values.dtype == torch.float32, f"{what} must give relevance in float32, got {values.dtype}")
    must(torch.isfinite(values).all(), f"{what} must give finite relevance, but some is NaN or infinite")
    must(not values.requires_grad, f"{what} must give relevance without a gradient of its own; detach it")
    must(
        _close(made.logits, logits),
        f"{what} must give the model's logits in evaluation mode, but gave others",
    )
    must(
        torch.equal(made.target, logits.argmax(dim=1)),
        f"{what} must explain the predicted class where target is 'predicted', but explained others",
    )
    must(
        _close(made.explained, logits.amax(dim=1)),
        f"{what} must give the logit that is explained, but gave something else",
    )
    must(
        made.constants.shape == (len(images),), f"{what} must give constants of shape ({len(images)},), NaN if unknown"
    )


def _check_targets(what: str, name: str, options: dict[str, Any], images: torch.Tensor, logits: torch.Tensor) -> None:
    """Check other targets, and an image alone against the same one in a batch."""
    model, explainer = small_model(), make_explainer(name, **options)
    best = logits.topk(2, dim=1).values
    margin = explainer.explain(model, images, "margin")
    must(
        _close(margin.explained, best[:, 0] - best[:, 1]),
        f"{what} must explain the predicted class against the runner-up where target is 'margin'",
    )
    classes = torch.tensor([0, 2, 1, 0])
    several = explainer.explain(model, images, classes)
    must(torch.equal(several.target, classes), f"{what} must take a class for each image, but explained others")
    for i, label in enumerate(classes.tolist()):
        alone = explainer.explain(model, images[i : i + 1], label)
        must(
            _close(alone.values, several.values[i : i + 1]),
            f"{what} must explain an image alone as it does in a batch, but image {i} differs",
        )
