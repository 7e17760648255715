"""What turns an image into a model's input: the model's own preprocessing, or a function of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from exmap.errors import DataError, ExMapError, SettingsError
from exmap.importing import called, first_line, importable, needed, object_at, source_of

__all__ = ["Preprocess", "input_of", "preprocess_by_word"]

TRANSFORM = "a transform"
PROBE_SIDE = 512  # of the plain images that show what a function does to colours: larger than what models see
PROBES = np.array([[0, 0, 0], [255, 255, 255], [51, 102, 204]], dtype=np.uint8)
SEEDED_SHAPES = ((96, 96), (64, 128), (160, 80), (PROBE_SIDE, PROBE_SIDE))  # of noise, for a fingerprint
CLOSE = 1e-3

Function = Callable[[Image.Image], Any]


@dataclass(frozen=True, eq=False)
class Preprocess:
    """A function from an image to a model's input, and what is known of its normalisation.

    Attributes
    ----------
    function : callable
        Takes an RGB ``PIL.Image`` of any size, and returns numbers of shape (C, H, W), always the same for one image.
    mean, std : tuple of float, or None
        One per channel, where the result is (values in [0, 1] - mean) / std; None where that is not known.
    about : str
        What it is, in words.
    source : str
        SHA-256 of the file it was defined in, where it was given by a word.

    Examples
    --------
    >>> grey = Preprocess.of(lambda image: np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1, "mine")
    >>> grey(Image.new("RGB", (4, 2), "white")).shape, grey.mean, grey.std
    ((3, 2, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """

    function: Function
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    about: str = "a transform"
    source: str = ""

    @classmethod
    def of(cls, function: Any, about: str = "") -> Preprocess:
        """Return a preprocessing of any callable, with the normalisation that it states or shows on plain images.

        Parameters
        ----------
        function : callable
            A function of an RGB image, a torchvision ``Compose``, a Hugging Face image processor, or an
            albumentations ``Compose``.
        about : str
            What it is, in words; by default its name.
        """
        if isinstance(function, Preprocess):
            return function
        if not callable(function):
            raise DataError(f"a transform must be callable with an image, got {type(function).__name__}")
        name = about or getattr(function, "__name__", None) or type(function).__name__
        made = cls(_adapted(function), about=str(name))
        stated = _stated(function)
        try:
            shown = made._shows()
        except DataError:  # it takes something else than pictures: what it states is all there is
            return made if stated is None else replace(made, mean=stated[0], std=stated[1])
        if shown is None:
            return made
        mean, std = stated if stated is not None and _agree(stated, shown) else shown
        return replace(made, mean=mean, std=std)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the model's input of an image, float32, shape (C, H, W).

        Raises
        ------
        DataError
            If the function fails, or returns anything but finite numbers of that shape.
        """
        try:
            result = self.function(image)
        except ExMapError:
            raise
        except (Exception, SystemExit) as error:  # in the user's code
            raise DataError(
                f"{self.about} failed with {first_line(error)}; it is called with an RGB PIL image of any size"
            ) from error
        return input_of(result, self.about)

    def shown(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return model inputs, shape (n, C, H, W), as one looks at them: in [0, 1].

        The normalisation is undone where it is known. Else values in [0, 1] stay, and others are stretched to it, each
        image by itself.
        """
        if self.mean is not None and self.std is not None and len(self.mean) == batch.shape[1]:
            mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
            undone: NDArray[np.float32] = np.clip(batch * std + mean, 0, 1)
            return undone
        axes = (1, 2, 3)
        low = np.minimum(batch.min(axis=axes, keepdims=True), 0)
        high = np.maximum(batch.max(axis=axes, keepdims=True), 1)
        inside = (low >= 0) & (high <= 1)
        low = np.where(inside, 0, batch.min(axis=axes, keepdims=True))
        span = np.where(inside, 1, np.maximum(batch.max(axis=axes, keepdims=True) - low, 1e-12))
        stretched: NDArray[np.float32] = ((batch - low) / span).astype(np.float32)
        return stretched

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what it makes of a few images of noise: two that differ in it are not the same function."""
        digest = hashlib.sha256(f"{self.about} {self.source} {self.mean} {self.std}".encode())
        for shape in SEEDED_SHAPES:
            noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            try:
                digest.update(self(Image.fromarray(noise)).tobytes())
            except DataError as error:  # of too small images, perhaps
                digest.update(str(error).encode())
        return digest.hexdigest()

    def _shows(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the mean and deviation that plain images show, or None where colours are changed in another way."""
        seen = []
        for colour in PROBES:
            result = self(Image.fromarray(np.full((PROBE_SIDE, PROBE_SIDE, 3), colour, dtype=np.uint8)))
            c, h, w = result.shape
            middle = result[:, h // 4 : h - h // 4, w // 4 : w - w // 4].reshape(c, -1)
            if np.ptp(middle, axis=1).max() > CLOSE:
                return None
            seen.append(middle.mean(axis=1, dtype=np.float64))
        black, white, coloured = seen
        span = white - black
        if (np.abs(span) < 1e-6).any():
            return None
        std, mean = 1 / span, -black / span
        values = coloured * std + mean
        if len(values) == 3 and np.abs(values - PROBES[2] / 255).max() > 0.01:
            return None
        if not 0 <= values.min() <= values.max() <= 1:
            return None
        return tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist())


def preprocess_by_word(word: str) -> Preprocess:
    """Return the preprocessing that ``PACKAGE.MODULE:NAME`` or ``FILE.py:NAME`` names.

    Parameters
    ----------
    word : str
        Of a function of an image, of an object such as a ``Compose``, or of a function without arguments that returns
        one of both.

    Raises
    ------
    SettingsError
        If there is no such thing.
    DataError
        If it cannot be used.
    """
    named = _ByWord(word)
    return replace(Preprocess.of(named, word), source=source_of(word))


class _ByWord:
    """A function of the user's that other processes find by its word."""

    def __init__(self, word: str) -> None:
        self.word, self.function = word, _function_at(word)

    def __call__(self, image: Image.Image) -> Any:
        with importable(self.word):  # it may import something when it is called
            return self.function(image)

    def __reduce__(self) -> tuple[Any, ...]:
        return _ByWord, (self.word,)


def _function_at(word: str) -> Function:
    found = object_at(word, what=TRANSFORM)
    if isinstance(found, Preprocess):
        return found.function
    is_function = hasattr(found, "__code__") or isinstance(found, type)
    if is_function and not needed(found):
        found = called(found, word, makes=TRANSFORM)
        if isinstance(found, Preprocess):
            return found.function
        if not callable(found):
            raise DataError(
                f"{word} must return {TRANSFORM}, something to call with an image, got {type(found).__name__}"
            )
    elif is_function and (isinstance(found, type) or len(needed(found)) > 1):
        raise SettingsError(
            f"{word} must take an image, or no arguments and return what takes one, but it needs "
            f"{', '.join(needed(found))}; write a function that fills them in"
        )
    elif not callable(found):
        raise SettingsError(f"{word} must be a function of an image, got {type(found).__name__}")
    return _adapted(found)


def _adapted(function: Any) -> Function:
    """Return a callable of an image for libraries whose own are called in another way."""
    if hasattr(function, "image_mean") or hasattr(function, "model_input_names"):
        return _HuggingFace(function)
    if type(function).__module__.partition(".")[0] == "albumentations":
        return _Albumentations(function)
    made: Function = function
    return made


@dataclass(frozen=True, eq=False)
class _HuggingFace:
    processor: Any

    def __call__(self, image: Image.Image) -> Any:
        return self.processor(images=image, return_tensors="pt")


@dataclass(frozen=True, eq=False)
class _Albumentations:
    compose: Any

    def __call__(self, image: Image.Image) -> Any:
        return self.compose(image=np.asarray(image))["image"]


def input_of(result: Any, about: str) -> NDArray[np.float32]:
    """Return what a function has returned as a model's input.

    Raises
    ------
    DataError
        If it is anything but finite floating-point numbers of shape (C, H, W), or a batch of one such image.
    """
    if isinstance(result, Mapping) and "pixel_values" in result:
        result = result["pixel_values"]
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        result = (result.float() if result.is_floating_point() else result).numpy()
    if not isinstance(result, np.ndarray):
        raise DataError(
            f"{about} must return a tensor of shape (C, H, W), got {type(result).__name__}; end it with what makes a "
            "tensor of an image, such as torchvision's ToTensor"
        )
    if result.ndim == 4 and len(result) == 1:  # a batch of the one image
        result = result[0]
    if result.ndim != 3 or 0 in result.shape or (result.shape[0] > 4 and result.shape[2] <= 4):
        raise DataError(
            f"{about} must return one image of shape (C, H, W), channels first, got {tuple(result.shape)}; transpose "
            "it, or leave out what makes a batch"
        )
    if result.dtype.kind != "f":
        raise DataError(
            f"{about} must return floating-point numbers as the model wants them, got {result.dtype}; scale them, for "
            "example by torchvision's ToTensor"
        )
    numbers = np.asarray(result, dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{about} must return finite numbers, got NaN or infinite ones; correct its normalisation")
    return numbers


def _stated(function: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and deviation that a transform's last normalisation names."""
    if isinstance(function, _ByWord):
        function = function.function
    if isinstance(function, _HuggingFace):
        function = function.processor
    found = None
    for step in _steps(function):
        mean = getattr(step, "mean", getattr(step, "image_mean", None))
        std = getattr(step, "std", getattr(step, "image_std", None))
        try:
            pair = tuple(tuple(float(v) for v in np.asarray(values).reshape(-1)) for values in (mean, std))
        except (TypeError, ValueError, RuntimeError):
            continue
        if len(pair[0]) == len(pair[1]) > 0 and all(pair[1]):
            found = pair[0], pair[1]
    return found


def _steps(function: Any) -> Iterator[Any]:
    """Yield the steps of a transform, those of nested ones in their place."""
    inner = getattr(function, "transforms", None)
    if inner is None and isinstance(function, torch.nn.Sequential):
        inner = list(function)
    if not isinstance(inner, (list, tuple, torch.nn.ModuleList)):
        yield function
        return
    for step in inner:
        yield from _steps(step)


def _agree(stated: tuple[tuple[float, ...], ...], shown: tuple[tuple[float, ...], ...]) -> bool:
    return all(
        len(one) == len(other) and np.allclose(one, other, atol=CLOSE) for one, other in zip(stated, shown, strict=True)
    )
