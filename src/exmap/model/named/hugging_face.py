"""Image classifiers of Hugging Face transformers: of a folder that save_pretrained wrote, or by their id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from exmap.errors import CheckpointError, DataError
from exmap.importing import first_line, package
from exmap.model.named.words import Builder, Facts, check_outputs, names_at, with_rows
from exmap.model.weights_file import WeightsFile
from exmap.settings import ModelSettings

__all__ = ["builder", "class_names", "facts", "has_weights", "transform", "whole_model"]

BY_ID = re.compile(r"(?![.-])[\w.-]+/[\w.-]+")
SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = "pytorch_model.bin"
ANONYMOUS = re.compile(r"LABEL_\d+")


def builder(name: str) -> Builder:
    """Return the function that builds the model of a folder or an id."""
    _place(name)

    def build(settings: ModelSettings, n_classes: int | None) -> nn.Module:
        config = _config(name)
        width, chosen = int(config.num_labels), settings.outputs
        if settings.weights is not None or not has_weights(name):
            return _made(name, _config(name, n_classes))
        if chosen:
            check_outputs(chosen, n_classes, width)
            small = _made(name, _config(name, len(chosen)))
            return with_rows(small, whole_model(name).state_dict(), chosen)
        if n_classes not in (None, width) and not (width == 1 and n_classes == 2):
            raise DataError(
                f"the model in {name} has {width} outputs, and the data have {n_classes} classes; name the outputs "
                "that are the classes, in their order, by model.outputs (--outputs)"
            )
        return whole_model(name)

    return build


def _place(name: str) -> bool:
    """Return whether it is a folder here, and not an id; refuse what is neither."""
    if (Path(name) / "config.json").is_file():
        return True
    if Path(name).exists() or not BY_ID.fullmatch(name):
        raise DataError(f"hf: needs a folder with config.json, found none in {name}; save a model with save_pretrained")
    return False


def _transformers() -> Any:
    library = package("transformers")
    library.utils.logging.disable_progress_bar()
    return library


def _found(name: str, load: Any, **given: Any) -> Any:
    """Load by ``from_pretrained``: from the folder, or what is kept of the id, or else from the network."""
    if _place(name):
        return load(name, local_files_only=True, **given)
    try:
        return load(name, local_files_only=True, **given)
    except Exception:  # it was never fetched
        return load(name, **given)


def _config(name: str, labels: int | None = None) -> Any:
    """Return the model's configuration; refuse a kind that is no classifier of one class among several."""
    library = _transformers()
    try:
        config = _found(name, library.AutoConfig.from_pretrained)
    except Exception as error:
        raise _failure(name, error) from error
    if config.problem_type not in (None, "single_label_classification"):
        kind = "several labels at once" if config.problem_type.startswith("multi") else config.problem_type
        raise DataError(
            f"the model in {name} must be a classifier of one class for each image, but its config says problem_type="
            f"{config.problem_type} ({kind}); give a single-label classifier"
        )
    if labels is not None and labels != config.num_labels:
        config.num_labels = labels
    return config


def _failure(name: str, error: Exception) -> DataError | CheckpointError:
    """Return the error for a model that could not be loaded."""
    if not _place(name):
        return CheckpointError(
            f"there is no folder {name} with config.json, and the model of that id could not be fetched "
            f"({first_line(error)}); without a network give a folder that save_pretrained wrote"
        )
    return DataError(
        f"the model in {name} could not be built by AutoModelForImageClassification ({first_line(error)}); give a "
        "folder that save_pretrained wrote of an image classifier, or FILE.py:FUNCTION that builds it"
    )


def _made(name: str, config: Any) -> nn.Module:
    """Return the model of a configuration, with random weights."""
    try:
        model: nn.Module = _transformers().AutoModelForImageClassification.from_config(config)
    except Exception as error:
        raise _failure(name, error) from error
    return model


def has_weights(name: str) -> bool:
    """Return whether there are weights beside the configuration; an id has some."""
    return not _place(name) or any((Path(name) / file).is_file() for file in (*SAFE, PICKLED))


def whole_model(name: str) -> nn.Module:
    """Return the model with its own weights and all its outputs.

    Raises
    ------
    DataError
        If its weights are not those of a classifier.
    CheckpointError
        If there is no such folder, and no network.
    """
    folder = Path(name)
    if _place(name) and not any((folder / file).is_file() for file in SAFE):
        model = _made(name, _config(name))
        model.load_state_dict(WeightsFile.read(folder / PICKLED, model).state_for(model))
        return model
    make = _transformers().AutoModelForImageClassification.from_pretrained
    config = _config(name)
    logs = _transformers().utils.logging
    before = logs.get_verbosity()
    logs.set_verbosity_error()  # what is missing is said below
    try:
        model, found = _found(name, make, config=config, use_safetensors=True, output_loading_info=True)
    except Exception as error:
        raise _failure(name, error) from error
    finally:
        logs.set_verbosity(before)
    if missing := sorted(found.get("missing_keys") or ()):
        raise DataError(
            f"the weights in {name} must be those of an image classifier, but they lack {', '.join(missing[:3])}, so "
            f"that its last layer would be random; give a fine-tuned one (its config says "
            f"{', '.join(config.architectures or ['nothing'])})"
        )
    return model  # type: ignore[no-any-return]


def transform(name: str, settings: ModelSettings) -> Any:
    """Return the image processor beside the model, or None where there is none."""
    library = _transformers()
    if _place(name) and not (Path(name) / "preprocessor_config.json").is_file():
        return None
    try:
        return _found(name, library.AutoImageProcessor.from_pretrained)
    except Exception as error:
        if not _place(name):
            raise _failure(name, error) from error
        raise DataError(
            f"the image processor in {name} could not be opened ({first_line(error)}); name a transform of your own by "
            "--transform"
        ) from error


def class_names(name: str, settings: ModelSettings) -> tuple[str, ...] | None:
    """Return the names in the model's configuration; None where they are LABEL_0, LABEL_1 ..."""
    config = _config(name)
    names = [str(config.id2label[number]) for number in sorted(config.id2label)]
    if all(ANONYMOUS.fullmatch(one) for one in names):
        return None
    return names_at(names, settings.outputs)


def facts(name: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    config: Any = model.config
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    about = f"the {type(model).__name__} of {name}{'' if has_weights(name) else ', random weights'}"
    return Facts(about, size if isinstance(size, int) else None, channels if isinstance(channels, int) else None)
