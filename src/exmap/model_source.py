"""A classifier by a word: of a run folder, torchvision, timm, Hugging Face, or a function of your own; and its check.

This is for the command line; in Python one gives the model itself to :func:`exmap.check_model`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.check import ModelCheck, check_model
from exmap.importing import first_line
from exmap.model import check_inputs, load_weights
from exmap.model.named import FORMS, build_word, facts_of, kind_of
from exmap.model.named.words import is_place, quiet, refuse_place
from exmap.pipeline.looking import trained_classifier
from exmap.records import Listener, silent
from exmap.runtime import generator, torch_seed
from exmap.settings import ModelSettings

__all__ = ["Checked", "Named", "build_named", "check_named", "check_record"]

MOST_IMAGES, RANDOM_IMAGES = 8, 4
SIDE, CHANNELS, CLASSES = 224, 3, 2  # where neither the user nor the model says


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
        A run folder, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER_OR_ID``, ``PACKAGE.MODULE:FUNCTION`` or
        ``FILE.py:FUNCTION``.
    weights : Path, optional
        A file of weights, see :func:`exmap.model.load_weights`; by default those of the run, those beside the
        configuration of ``hf:``, or random ones.
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
            f"{path} must be a .npy file of numbers, but cannot be read ({first_line(error)}); write it by numpy.save"
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
    if Path(word).is_dir():
        return _of_run(Path(word), data_dir, listen)
    kind = kind_of(word)
    if not kind and is_place(word):
        refuse_place(word)
    if not kind:
        raise SettingsError(f"a model is given as a run folder, {FORMS}, got {word!r}, which is no folder here")
    if kind in ("torchvision", "timm") and classes is None:
        classes = CLASSES
    options = {"in_chans": channels} if kind == "timm" and channels is not None else {}
    with torch_seed(0), quiet():
        model = build_word(ModelSettings.model_validate({"name": word, **options}), classes)
        facts = facts_of(word, model, classes)
    return Named(model, facts.about, facts.size, facts.channels)


def _of_run(path: Path, data_dir: Path | None, listen: Listener) -> Named:
    """Return the trained classifier of a run, with some of its validation images."""
    model, task = trained_classifier(path, data_dir=data_dir, listen=listen)
    images = task.val.images.batch(np.arange(min(MOST_IMAGES, len(task.val)), dtype=np.int64))
    return Named(model, f"the classifier of {path}", images=images)
