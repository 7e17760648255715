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
        The data set whose pictures are used.
    shortcut : "none", "colour", "patch", "texture" or "position"
        The property that goes with the class. With none, the correlation has no effect and there are no true groups.
    classes : int in [2, 10]
        Number of classes, the first ones of the base; 2 are harder: digits up to 4 and above, or pullover and coat.
    train, val, test : int
        Number of images in each split.
    label_noise : float in [0, 1)
        Share of the training and validation images with a wrong label, spread evenly over the other classes; the
        shortcut still goes with the class that the image shows.
    imbalance : float, at least 1
        How many times more images the first class has than the last in training and validation; the classes between
        them fall evenly, by ratio.
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
        Name of the data set; ``exmap data list`` shows them.
    id : str or None
        Id of a data set on the Hugging Face hub, for ``huggingface`` without a folder.
    dir : Path or None
        Folder of the data set's files; None for embedded data. Not part of a step's identity: the digests of the
        files are.
    table : Path or None
        CSV or Parquet file that lists your own images, relative to `dir`. For WebDataset shards and Parquet files of
        images: which files of `dir`, such as ``val-*.tar``; by default all of them.
    image_column : str or None
        Column of the images; None is ``path``, or ``image`` in a Hugging Face data set.
    label_column : str
        Column of the labels.
    split_column : str or None
        Column of the splits; None is ``split`` if there is one.
    group_columns : tuple of str
        Columns of spurious attributes, used for evaluation only.
    classes : tuple of str
        Classes of your own images in the order of the model's outputs; empty keeps the order of the source.
    one_set : bool
        Whether your own images are one labelled set that the classifier was not trained on: all are explained and
        grouped, and repairs are measured by cross-fitting (``evaluate.folds``).
    part : str or None
        With `one_set`: the split to use if the data have several.
    test : Path or None
        With `one_set`: a second labelled set of the same kind to measure on instead of cross-fitting.
    val_share : float in (0, 1)
        Share of each class that becomes the validation split if your own data have none.
    test_share : float in (0, 1)
        Share of each class that becomes the test split if your own data have none.
    split_seed : int
        Seed of the draw of these splits, and of ``graded``.
    correlation : float in [0.1, 1]
        Share of each class that has its usual shortcut, for data sets that exmap makes; 1 / number of classes means no
        shortcut.
    graded : GradedSettings
        Settings of the data set ``graded``.
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
        Side of the crop that the model sees: the centre, or a random part during training. None: the whole square.
    random_crop : (float, float) or None
        Smallest and largest share of the area for random parts; None uses the centre during training as well.
    flip : bool
        Whether images are flipped left to right at random during training.
    transform : str or None
        Preprocessing that replaces the settings above: ``model`` is the model's own; ``package.module:function`` or
        ``FILE.py:function`` is your function of an image, or a function without arguments that returns one. None:
        resize to a square, as above.
    normalize : "imagenet", "none", or (mean, deviation)
        Normalise by ImageNet's mean and standard deviation, only scale to [0, 1] (none), or use your own mean and
        deviation, each one number or three for red, green and blue.
    on_error : "skip" or "stop"
        What to do with unreadable images: leave them out and list them, or stop with an error that names them all.
    workers : int or None
        Number of processes that read images; None is the number of cores minus one. 0 reads in the main process.
    cache : "auto", "always" or "never"
        Whether decoded images are kept on disk; auto keeps those that fit into `cache_limit_gib`.
    cache_dir : Path or None
        Folder of the cache; None is ``exmap`` in the user's cache folder, or in the temporary directory if the former
        cannot be written.
    cache_limit_gib : float
        Largest size of all sets in the cache together, in GiB; never more than half of the disk that is free without
        them. Sets that were used the longest ago make room for new ones.
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
