"""torchvision's classifiers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from exmap.errors import CheckpointError, SettingsError
from exmap.importing import first_line, unknown_among_many
from exmap.model.named.words import Builder, Facts, check_outputs, names_at, quiet, with_rows
from exmap.settings import ModelSettings

__all__ = ["builder", "class_names", "facts", "transform", "whole_model"]

WIDTH = 1000  # ImageNet's classes, which the library's own weights have
IN_TRAINING = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def builder(name: str) -> Builder:
    """Return the function that builds a model; refuse an unknown name."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        if name in models.list_models():
            raise SettingsError(
                f"an image classifier is needed, and torchvision's {name} finds objects, segments images or is for "
                "videos; give a model of torchvision.models.list_models(module=torchvision.models)"
            )
        raise SettingsError(
            unknown_among_many("model of torchvision", name, known, "torchvision.models.list_models() names all")
        )

    def build(settings: ModelSettings, n_classes: int, image_size: int | None = None) -> nn.Module:
        extra: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
        if name in IN_TRAINING:  # what is only used in training is not needed, and many files lack it
            extra |= {"aux_logits": False, "init_weights": settings.weights is None}
        try:
            with quiet():
                model: nn.Module = models.get_model(name, weights=None, num_classes=n_classes, **extra)
        except TypeError as error:
            raise SettingsError(
                f"torchvision's {name} could not be built ({first_line(error)}); leave model.image_size out"
            ) from error
        if name in IN_TRAINING:
            model.unneeded_weights = IN_TRAINING[name]  # type: ignore[assignment]
        if settings.pretrained:
            _load(model, name, settings.outputs, n_classes)
        return model

    return build


def _load(model: nn.Module, name: str, outputs: Sequence[int], n_classes: int) -> None:
    """Load the library's own weights: with its outputs where these are wanted, else all but the last layer."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a damaged file: each has its own kind
        raise CheckpointError(
            f"torchvision's weights of {name} could not be loaded ({first_line(error)}); put {weights.url} where "
            "torch.hub.get_dir() says, into checkpoints/, or give a file of weights and no model.pretrained"
        ) from error
    if outputs:
        check_outputs(outputs, None, WIDTH)
    with_rows(model, state, outputs, but_last=not outputs and n_classes != WIDTH)


def whole_model(name: str, settings: ModelSettings) -> nn.Module:
    """Return the model with all outputs and the library's own weights."""
    return builder(name)(settings, WIDTH)


def transform(name: str, settings: ModelSettings) -> Any:
    """Return what the library's own weights of the model want done to images."""
    from torchvision import models

    return models.get_model_weights(name).DEFAULT.transforms()


def class_names(name: str, settings: ModelSettings) -> tuple[str, ...] | None:
    """Return ImageNet's names of the chosen outputs; None where the model is not known to have ImageNet's."""
    from torchvision import models

    if not settings.outputs or max(settings.outputs) >= WIDTH:
        return None
    return names_at(models.get_model_weights(name).DEFAULT.meta.get("categories"), settings.outputs)


def facts(name: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    return Facts(f"torchvision's {name}, {n_classes} classes", 299 if name == "inception_v3" else None)
