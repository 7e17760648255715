"""timm's classifiers by name, and those that timm finds on the Hugging Face hub or in a folder."""

from __future__ import annotations

from typing import Any

from torch import nn

from exmap.errors import CheckpointError, DataError, SettingsError
from exmap.importing import first_line, package, unknown_among_many
from exmap.model.named.words import Builder, Facts, check_outputs, names_at, only_texts, quiet, with_rows
from exmap.settings import ModelSettings

__all__ = ["builder", "class_names", "facts", "transform", "whole_model"]

HUB = ("hf-hub:", "hf_hub:", "local-dir:")
WIDTH = 1000


def builder(name: str) -> Builder:
    """Return the function that builds a model; refuse an unknown name."""
    timm = package("timm")
    bare = name.partition(".")[0]
    if not name.startswith(HUB) and not timm.is_model(bare):
        raise SettingsError(
            unknown_among_many("model of timm", name, timm.list_models(), "timm.list_models() names all")
        )

    def build(
        settings: ModelSettings,
        n_classes: int,
        in_chans: int | None = None,
        img_size: int | None = None,
        global_pool: str | None = None,
    ) -> nn.Module:
        given = {"in_chans": in_chans, "img_size": img_size, "global_pool": global_pool}
        given = {key: value for key, value in given.items() if value is not None}
        own = settings.weights is None and (settings.pretrained or name.startswith(HUB))
        if not own:
            return _created(name, given | {"num_classes": n_classes})
        whole = _created(name, given | {"pretrained": True})
        width = getattr(whole, "num_classes", WIDTH)
        if settings.outputs:
            check_outputs(settings.outputs, None, width)
        if width == n_classes and not settings.outputs:
            return whole
        if name.startswith(HUB) and not settings.outputs:
            raise DataError(
                f"the model {name} has {width} outputs, and the data have {n_classes} classes; name the outputs that "
                "are the classes, in their order, by model.outputs (--outputs)"
            )
        model = _created(name, given | {"num_classes": n_classes})
        return with_rows(model, whole.state_dict(), settings.outputs, but_last=not settings.outputs)

    return build


def _created(name: str, given: dict[str, Any]) -> nn.Module:
    timm = package("timm")
    try:
        with quiet():
            model: nn.Module = timm.create_model(name, **given)
    except (TypeError, AssertionError, ValueError) as error:
        raise SettingsError(
            f"timm's {name} could not be built ({first_line(error)}); change the model's options"
        ) from error
    except Exception as error:  # no network, no such tag, a damaged file: each has its own kind
        if given.get("pretrained") or name.startswith(HUB):
            raise CheckpointError(
                f"timm's {name} could not be loaded ({first_line(error)}); without a network give a name of "
                "timm.list_models() and --weights FILE"
            ) from error
        raise SettingsError(f"timm's {name} could not be built ({first_line(error)}); give another name") from error
    return model


def _configuration(name: str) -> dict[str, Any]:
    """Return what timm says of a model's images and classes."""
    if name.startswith(HUB):
        return dict(getattr(_created(name, {}), "pretrained_cfg", None) or {})
    found = package("timm").get_pretrained_cfg(name)
    return {} if found is None else dict(found.to_dict())


def whole_model(name: str, settings: ModelSettings) -> nn.Module:
    """Return the model with all outputs and its own weights."""
    given = {key: value for key, value in settings.options.items() if value is not None}
    return _created(name, given | {"pretrained": True})


def transform(name: str, settings: ModelSettings) -> Any:
    """Return timm's own transform for evaluating the model."""
    timm = package("timm")
    given: dict[str, Any] = {}
    config = _configuration(name)
    side, channels = settings.options.get("img_size"), settings.options.get("in_chans")
    if side is not None or channels is not None:
        shape = config.get("input_size") or (3, 224, 224)
        given["input_size"] = (channels or shape[0], side or shape[1], side or shape[2])
    if not (config or given):
        return None
    with quiet():
        data = timm.data.resolve_data_config(given, pretrained_cfg=config)
        return timm.data.create_transform(**data, is_training=False)


def class_names(name: str, settings: ModelSettings) -> tuple[str, ...] | None:
    """Return the names of the outputs where the model's configuration has them, or ImageNet's of chosen ones."""
    if name.startswith(HUB):
        return names_at(only_texts(_configuration(name).get("label_names")), settings.outputs)
    config = _configuration(name)
    if not settings.outputs or config.get("num_classes", WIDTH) != WIDTH or max(settings.outputs) >= WIDTH:
        return None
    info = package("timm").data.ImageNetInfo()
    return names_at([info.index_to_description(number) for number in range(WIDTH)], settings.outputs)


def facts(name: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    side = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[-1]
    about = f"timm's {name.partition('.')[0]}, {n_classes} classes"
    return Facts(about, side or None)
