"""A classifier by a word: of a run folder, torchvision, timm, Hugging Face, or a function of your own; and its check.

This is for the command line; in Python one gives the model itself to :func:`exmap.check_model`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, ExMapError, SettingsError
from exmap.explain.check import ModelCheck, check_model
from exmap.model import check_inputs, load_weights
from exmap.pipeline.looking import trained_classifier
from exmap.records import Listener, silent
from exmap.runtime import generator, torch_seed

__all__ = ["Checked", "Named", "build_named", "check_named", "check_record"]

MOST_IMAGES, RANDOM_IMAGES = 8, 4
SIDE, CHANNELS, CLASSES = 224, 3, 2  # where neither the user nor the model says
FORMS = "a run folder, torchvision:NAME, timm:NAME, hf:FOLDER, PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION"


@dataclass(frozen=True)
class Named:
    """A classifier that was built by a word.

    Attributes
    ----------
    model : torch.nn.Module
    about : str
        What it is, in words.
    size, channels : int or None
        Of the images it takes, where it says so itself.
    images : ndarray of float32, shape (n, C, H, W), or None
        Of a run folder: validation images.
    """

    model: nn.Module
    about: str
    size: int | None = None
    channels: int | None = None
    images: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Checked:
    """What :func:`check_named` found.

    Attributes
    ----------
    found : ModelCheck
    model, images : str
        What was checked and on what, in words.
    """

    found: ModelCheck
    model: str
    images: str


def check_named(
    word: str,
    *,
    weights: Path | None = None,
    images: Path | None = None,
    size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    composite: str = "auto",
    data_dir: Path | None = None,
    listen: Listener = silent,
) -> Checked:
    """Build a classifier by a word, and check that it is explained right.

    Parameters
    ----------
    word : str
        A run folder, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``, ``PACKAGE.MODULE:FUNCTION`` or
        ``FILE.py:FUNCTION``.
    weights : Path, optional
        A safetensors file; by default those of the run, those beside the configuration of ``hf:``, or random ones.
    images : Path, optional
        A ``.npy`` file of float images, shape (n, C, H, W). By default the validation images of a run, else random
        normal numbers of the given size.
    size, channels, classes : int, optional
        By default what the model says, or else 224, 3 and 2.
    composite : str
    data_dir : Path, optional
        Where the images of a run lie now.
    listen : Listener

    Raises
    ------
    SettingsError
        For a word of no known form, an unknown architecture or a package that is not installed.
    DataError
        For a model or images that cannot be used; see :func:`exmap.model.check_inputs`.
    CheckpointError
        For weights of another model.
    """
    for name, value in (("--size", size), ("--channels", channels), ("--classes", classes)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} must be at least 1, got {value}")
    given = None if images is None else read_images(images)
    named = build_named(word, channels=channels, classes=classes, data_dir=data_dir, listen=listen)
    if weights is not None:
        load_weights(named.model, weights)
    model = named.model.eval()
    if given is not None:
        said = f"{min(len(given), MOST_IMAGES)} of {images}"
    elif named.images is not None:
        given, said = named.images, f"{len(named.images)} validation images of the run"
    else:
        shape = (RANDOM_IMAGES, channels or named.channels or CHANNELS, *[size or named.size or SIDE] * 2)
        given = generator(0, "check", "images").normal(size=shape).astype(np.float32)
        said = (
            f"{RANDOM_IMAGES} of random normal numbers, {' x '.join(map(str, shape[1:]))}; give --images for your own"
        )
    check_inputs(model, given)
    return Checked(check_model(model, given, composite=composite), named.about, said)


def check_record(checked: Checked) -> dict[str, Any]:
    """Return what was found as plain values, for a JSON file."""
    found = asdict(checked.found)
    return {"format": 1, "model": checked.model, "images": checked.images, **found} | {
        "input_share": checked.found.input_share.tolist()
    }


def read_images(path: Path) -> NDArray[np.float32]:
    """Return the first images of a ``.npy`` file.

    Raises
    ------
    DataError
        If the file cannot be read, or holds no float images of shape (n, C, H, W).
    """
    if not path.is_file():
        raise DataError(f"the file of images {path} does not exist; give an existing .npy file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} must be a .npy file of numbers, but cannot be read ({_first_line(error)}); write it by numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or 0 in array.shape or array.dtype.kind != "f":
        found = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(
            f"{path} must hold floating-point images of shape (n, C, H, W), found {found}; write them as the model was "
            "trained on them, scaled and with channels first"
        )
    return np.asarray(array[:MOST_IMAGES], dtype=np.float32)


def build_named(
    word: str,
    *,
    channels: int | None = None,
    classes: int | None = None,
    data_dir: Path | None = None,
    listen: Listener = silent,
) -> Named:
    """Build a classifier by a word; see :func:`check_named`. Random weights are the same each time."""
    kind, colon, name = word.partition(":")
    with torch_seed(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about arguments that only they give
        if Path(word).is_dir():
            return _of_run(Path(word), data_dir, listen)
        if not colon or not name:
            raise SettingsError(f"a model is given as {FORMS}, got {word!r}, which is no folder here")
        if kind == "torchvision":
            return _of_torchvision(name, classes or CLASSES)
        if kind == "timm":
            return _of_timm(name, channels or CHANNELS, classes or CLASSES)
        if kind == "hf":
            return _of_hugging_face(Path(name), classes)
        return _of_function(word)


def _of_run(path: Path, data_dir: Path | None, listen: Listener) -> Named:
    """Return the trained classifier of a run, with some of its validation images."""
    model, task = trained_classifier(path, data_dir=data_dir, listen=listen)
    images = task.val.images.batch(np.arange(min(MOST_IMAGES, len(task.val)), dtype=np.int64))
    return Named(model, f"the classifier of {path}", images=images)


def _of_torchvision(name: str, classes: int) -> Named:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise SettingsError(_unknown("torchvision", name, known, "torchvision.models.list_models() names all"))
    model = models.get_model(name, weights=None, num_classes=classes)
    return Named(model, f"torchvision's {name}, {classes} classes", 299 if name == "inception_v3" else None)


def _of_timm(name: str, channels: int, classes: int) -> Named:
    timm = _package("timm")
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        raise SettingsError(_unknown("timm", name, timm.list_models(), "timm.list_models() names all"))
    model = timm.create_model(bare, pretrained=False, num_classes=classes, in_chans=channels)
    side = getattr(model, "pretrained_cfg", {}).get("input_size", (0, 0, 0))[-1]
    return Named(model, f"timm's {bare}, {classes} classes", side or None)


def _of_hugging_face(folder: Path, classes: int | None) -> Named:
    transformers = _package("transformers")
    if not (folder / "config.json").is_file():
        raise DataError(
            f"hf: needs a folder with config.json, found none in {folder}; save a model with save_pretrained"
        )
    changes = {} if classes is None else {"num_labels": classes}
    make = transformers.AutoModelForImageClassification
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **changes)
        whole = (folder / "model.safetensors").is_file()
        if whole:
            model = make.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=True)
        else:
            model = make.from_config(config)
    except Exception as error:  # whatever the library says
        raise DataError(
            f"the model in {folder} could not be built by AutoModelForImageClassification ({_first_line(error)}); "
            "give a folder that save_pretrained wrote of an image classifier, or FILE.py:FUNCTION that builds it"
        ) from error
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    about = f"the {type(model).__name__} of {folder}{'' if whole else ', random weights'}"
    return Named(model, about, size if isinstance(size, int) else None, channels if isinstance(channels, int) else None)


def _of_function(word: str) -> Named:
    """Return what a function of the user's returns."""
    place, _, name = word.rpartition(":")
    path = Path(place)
    with _importable(path.parent if path.suffix == ".py" else Path()):
        module = _from_file(path, word) if path.suffix == ".py" else _imported(place, word)
        model = _called(module, name, word)
    if not isinstance(model, nn.Module):
        raise DataError(f"{word} must return a torch.nn.Module, got {type(model).__name__}")
    return Named(model, f"what {word} returns")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported inside the block."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


def _from_file(path: Path, word: str) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"the file {path} of {word} does not exist; give an existing Python file")
    name = f"exmap_model_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _guarded(lambda: spec.loader.exec_module(module), str(path))  # type: ignore[union-attr]
    return module


def _imported(name: str, word: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise DataError(f"{name} could not be imported ({_first_line(error)}); install what it needs") from error
        raise SettingsError(
            f"there is no module {error.name!r} to import for {word}; a model is given as {FORMS}"
        ) from error
    except Exception as error:  # in the user's module
        raise DataError(
            f"{name} could not be imported ({_first_line(error)}); import it by itself to see where"
        ) from error


def _called(module: ModuleType, name: str, word: str) -> Any:
    """Call a function of a module without arguments."""
    made = getattr(module, name, None)
    if made is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingsError(_unknown("function", name, known, f"it must be in {word.rpartition(':')[0]}"))
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise SettingsError(f"{word} must be a function that returns a model, got {type(made).__name__}")
    if needed := _needed(made):
        raise SettingsError(
            f"{word} must be a function without arguments that returns a model, but it needs {', '.join(needed)}; "
            "write a function that fills them in"
        )
    return _guarded(made, word)


def _needed(function: Callable[..., Any]) -> list[str]:
    """Return the arguments that a function cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a library in C
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def _guarded(work: Callable[[], Any], what: str) -> Any:
    """Run a user's code, and say in a sentence what came of it."""
    try:
        return work()
    except ExMapError:
        raise
    except Exception as error:  # in the user's code
        raise DataError(f"{what} failed with {_first_line(error)}; run it by itself to see where") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.')}"


def _package(name: str) -> Any:
    """Import a library that exmap does without."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"{name} is not installed; install it with pip install 'exmap[{name}]'") from error


def _unknown(what: str, name: str, known: Iterable[str], where: str) -> str:
    """Return the sentence for a name that is not among very many."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"unknown {what if what == 'function' else f'model of {what}'} {name!r}{hint}; {where}"
