"""Settings of the data: which images, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from exmap.homes import cache_folder
from exmap.settings.section import Count, Section, Seed, Side

__all__ = ["DataSettings", "GradedSettings", "ImageSettings"]

Channels = tuple[float, float, float]


class GradedSettings(Section):
    """What the data set ``graded`` is made of; its strength is ``data.correlation``, its seed ``data.split_seed``.

    Attributes
    ----------
    base : "mnist" or "fashion-mnist"
        Whose pictures it shows.
    shortcut : "none", "colour", "patch", "texture" or "position"
        What goes with the class. With none, the correlation makes no difference, and there are no true groups.
    classes : int in [2, 10]
        The first kinds of the base; 2 are harder: digits up to 4 and above, or pullover and coat.
    train, val, test : int
        Number of images in each split.
    label_noise : float in [0, 1)
        Share of the training and validation images whose label is one of the others, evenly; the shortcut goes with
        the class that the image shows.
    imbalance : float, at least 1
        How many times as many images the first class has as the last one in training and validation; those between
        fall evenly, by ratio.
    """

    base: Literal["mnist", "fashion-mnist"] = "mnist"
    shortcut: Literal["none", "colour", "patch", "texture", "position"] = "colour"
    classes: int = Field(2, ge=2, le=10)
    train: Count = 6000
    val: Count = 2000
    test: Count = 2000
    label_noise: float = Field(0.0, ge=0, lt=1)
    imbalance: float = Field(1.0, ge=1, le=1_000_000)


class DataSettings(Section):
    """Which images, with which labels.

    Attributes
    ----------
    name : str
        A name of the data catalogue.
    id : str or None
        Of a data set on the Hugging Face hub, for ``huggingface`` in the place of a folder.
    dir : Path or None
        Where the data set's files lie; None for embedded data. Not part of a step's identity: the digests of the
        files are.
    table : Path or None
        For your own images with a table: a CSV or Parquet file, from `dir`. For WebDataset shards and Parquet files of
        images: which files of `dir`, such as ``val-*.tar``; by default all of them.
    image_column, label_column, split_column : str or None
        Its columns. None is ``path`` (``image`` in a Hugging Face data set), ``label``, and ``split`` if there is one.
    group_columns : tuple of str
        Columns of spurious attributes: used for evaluation only.
    classes : tuple of str
        The classes in the order of the model's outputs, for your own images; empty where sorted by name.
    one_set : bool
        Whether your own images are one labelled set that the classifier was not trained on: all of them are explained
        and grouped, and what is fitted to some is measured on the others (``evaluate.folds``).
    part : str or None
        With `one_set`: which split of the data is taken, where they name more than one.
    test : Path or None
        With `one_set`: a second labelled set, of the same kind, to measure on in place of that.
    val_share, test_share : float in (0, 1)
        Shares of each class that become validation and test split where your own data have none.
    split_seed : int
        Of that draw, and of ``graded``.
    correlation : float in [0.1, 1]
        Share of each class that carries its usual shortcut, where the data set is made here; 1 / number of classes
        plants none.
    graded : GradedSettings
        What the data set of that name is made of.
    download : bool
        Whether missing files may be downloaded into `dir`.
    """

    name: str = "digits"
    id: str | None = None
    dir: Path | None = None
    table: Path | None = None
    image_column: str | None = None
    label_column: str = "label"
    split_column: str | None = None
    group_columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    one_set: bool = False
    part: str | None = None
    test: Path | None = None
    val_share: float = Field(0.2, gt=0, lt=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    split_seed: Seed = 0
    correlation: float = Field(0.99, ge=0.1, le=1.0)
    graded: GradedSettings = GradedSettings()
    download: bool = False


class ImageSettings(Section):
    """How image files are read: resized to a square, cropped, normalised (Waterbirds' and CelebA's usual transforms).

    Attributes
    ----------
    resize : int
        Side in pixels to which each image is resized, whatever its aspect ratio.
    crop : int or None
        Side of the crop a model sees: from the centre, or, while training, a random part. None: the whole square.
    random_crop : (float, float) or None
        Least and largest share of the area of a random part; None takes the centre while training, too.
    flip : bool
        Whether left and right are exchanged at random while training.
    transform : str or None
        What makes a model's input of an image in the place of all that: ``model`` is the model's own preprocessing,
        ``package.module:function`` and ``FILE.py:function`` are a function of your own, or one that is called without
        arguments and returns one. None: resized to a square, as above.
    normalize : "imagenet", "none", or (mean, deviation)
        By ImageNet's mean and standard deviation, just to [0, 1], or by a mean and a deviation of your own: each a
        number, or three, for red, green and blue.
    on_error : "skip" or "stop"
        What an unreadable image leads to: its being left out and listed, or an error that names all of them.
    workers : int or None
        Reading processes; None is one per core but one. 0 reads in the same process.
    cache : "auto", "always" or "never"
        Whether decoded images are kept on disk; auto keeps them up to `cache_limit_gib`, if that leaves half of the
        free disk.
    cache_dir : Path or None
        Where; None is ``exmap`` in the user's cache folder, or in the temporary directory where that cannot be written.
    cache_limit_gib : float
        Most that auto keeps, in GiB.
    """

    resize: Side = 256
    crop: Side | None = 224
    random_crop: tuple[float, float] | None = (0.7, 1.0)
    flip: bool = True
    transform: str | None = None
    normalize: Literal["imagenet", "none"] | tuple[Channels, Channels] = "imagenet"
    on_error: Literal["stop", "skip"] = "skip"
    workers: int | None = Field(None, ge=0, le=1024)
    cache: Literal["auto", "always", "never"] = "auto"
    cache_dir: Path | None = None
    cache_limit_gib: float = Field(20.0, gt=0, le=2**20)

    @field_validator("normalize", mode="before")
    @classmethod
    def _per_channel(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return tuple((one,) * 3 if isinstance(one, (int, float)) else one for one in value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> ImageSettings:
        if not isinstance(self.normalize, str) and min(self.normalize[1]) <= 0:
            raise ValueError(f"images.normalize must have deviations above 0, got {list(self.normalize[1])}")
        if self.side > self.resize:
            raise ValueError(f"images.crop must be at most images.resize, {self.resize}, got {self.crop}")
        if self.random_crop is not None and not 0 < self.random_crop[0] <= self.random_crop[1] <= 1:
            raise ValueError(
                f"images.random_crop must be two shares, 0 < least <= largest <= 1, got {self.random_crop}"
            )
        return self

    @property
    def side(self) -> int:
        """Height and width in pixels of what a model sees."""
        return self.resize if self.crop is None else self.crop

    @property
    def cache_folder(self) -> Path:
        """Where decoded images are kept."""
        return cache_folder() if self.cache_dir is None else self.cache_dir
