"""Typed, frozen settings: one class per stage, read from a preset, a YAML file, and ``section.key=value`` overrides.

An unknown key, an unknown name or a value out of range is refused with the allowed values and the closest name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from exmap.errors import SettingsError, unknown_name

__all__ = [
    "AutoSettings",
    "ClusterSettings",
    "DataSettings",
    "Edits",
    "EvaluateSettings",
    "ExplainSettings",
    "GradedSettings",
    "GroupEdit",
    "GroupsSettings",
    "ImageSettings",
    "ModelSettings",
    "RetrainSettings",
    "RuntimeSettings",
    "Settings",
    "TrainSettings",
    "change_settings",
    "dump_settings",
    "load_edits",
    "load_settings",
    "packaged_yaml",
    "parse_settings",
    "preset_names",
    "read_yaml",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class GradedSettings(_Section):
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
    """

    base: Literal["mnist", "fashion-mnist"] = "mnist"
    shortcut: Literal["none", "colour", "patch", "texture", "position"] = "colour"
    classes: int = Field(2, ge=2, le=10)
    train: int = Field(6000, ge=1)
    val: int = Field(2000, ge=1)
    test: int = Field(2000, ge=1)


class DataSettings(_Section):
    """Which images, with which labels.

    Attributes
    ----------
    name : str
        A name of the data catalogue.
    dir : Path or None
        Where the data set's files lie; None for embedded data. Not part of a stage's identity: the digests of the
        files are.
    table : Path or None
        For your own images with a table: a CSV or Parquet file, from `dir`.
    image_column, label_column, split_column : str or None
        Its columns. None is ``path`` (``image`` in a Hugging Face data set), ``label``, and ``split`` if there is one.
    group_columns : tuple of str
        Columns of spurious attributes: used for evaluation only.
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
    dir: Path | None = None
    table: Path | None = None
    image_column: str | None = None
    label_column: str = "label"
    split_column: str | None = None
    group_columns: tuple[str, ...] = ()
    val_share: float = Field(0.2, gt=0, lt=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    correlation: float = Field(0.99, ge=0.1, le=1.0)
    graded: GradedSettings = GradedSettings()
    download: bool = False


class ImageSettings(_Section):
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
    normalize : "imagenet" or "none"
        By ImageNet's mean and standard deviation, or just to [0, 1].
    on_error : "stop" or "skip"
        What an unreadable image leads to: an error that names all of them, or their being left out and listed.
    workers : int or None
        Reading processes; None is one per core but one. 0 reads in the same process.
    cache : "auto", "always" or "never"
        Whether decoded images are kept on disk; auto keeps them up to `cache_limit_gib`, if that leaves half of the
        free disk.
    cache_dir : Path or None
        Where; None is ``exmap`` in the user's cache folder.
    cache_limit_gib : float
    """

    resize: int = Field(256, ge=1)
    crop: int | None = Field(224, ge=1)
    random_crop: tuple[float, float] | None = (0.7, 1.0)
    flip: bool = True
    normalize: Literal["imagenet", "none"] = "imagenet"
    on_error: Literal["stop", "skip"] = "stop"
    workers: int | None = Field(None, ge=0)
    cache: Literal["auto", "always", "never"] = "auto"
    cache_dir: Path | None = None
    cache_limit_gib: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> ImageSettings:
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
        if self.cache_dir is not None:
            return self.cache_dir
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exmap"


class ModelSettings(_Section):
    """The classifier.

    Attributes
    ----------
    name : str
        Architecture, as torchvision names it.
    stem : "imagenet" or "3x3"
        The latter is a 3 x 3 stride-1 convolution and no max-pooling, for small images.
    pretrained : bool
        Whether the weights start as torchvision's ImageNet weights (all but the last layer), which it downloads once.
    weights : Path or None
        A safetensors file of all weights to start with.
    """

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    stem: Literal["imagenet", "3x3"] = "imagenet"
    pretrained: bool = False
    weights: Path | None = None

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if self.pretrained and (self.stem != "imagenet" or self.weights is not None):
            raise ValueError(
                "model.pretrained needs model.stem=imagenet and no model.weights; set one of them otherwise"
            )
        return self


class TrainSettings(_Section):
    """Empirical risk minimisation: SGD with a cosine schedule (ExMap supplement, section 2.3).

    With 0 epochs the model stays as its starting weights have it: a classifier that was trained elsewhere.
    """

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(3e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    select: Literal["worst_class", "mean", "last"] = "worst_class"


class RuntimeSettings(_Section):
    """Where and how torch computes.

    Attributes
    ----------
    accelerator : "auto", "cpu", "cuda" or "mps"
    devices : int
        Processes on each host, each with a device of its own (or a share of the CPU).
    num_nodes : int
        Hosts. On more than one, torchrun or ``fabric run`` starts the processes.
    precision : "32-true", "bf16-mixed" or "16-mixed"
        Of training.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, ge=1)
    num_nodes: int = Field(1, ge=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"

    @property
    def processes(self) -> int:
        """Number of processes on all hosts together."""
        return self.devices * self.num_nodes


class ExplainSettings(_Section):
    """Heatmaps: what explains each image, of which class, and how it is reduced.

    Attributes
    ----------
    explainer : str
        ``lrp`` (layer-wise relevance propagation, the paper's) or another of `exmap.explain.explainer_names()`.
    composite : str
        Rules of relevance propagation: ``auto`` takes the default of the model's kind, which is ``symmetric_gamma``
        (the paper's) for networks of convolutions.
    gamma : float
        Strength of the symmetric gamma rule; only that composite has it.
    target : "predicted", "true", "margin" or int
        Class whose evidence is explained; "margin" is the predicted class against the runner-up.
    layer : str
        Module whose relevance by channel is kept beside the pixels'; ``auto`` takes one at three quarters of the depth,
        ``none`` keeps nothing.
    tolerance : float
        Largest share of the logit that may be missing from the sum of relevance on the first images; above it nothing
        is explained. For explainers that promise a sum.
    size : int or None
        Side in pixels to which heatmaps are reduced by area averaging; None keeps the image's own size.
    """

    explainer: str = "lrp"
    composite: str = "auto"
    gamma: float = Field(4.0, ge=0)
    target: str | int = "predicted"
    layer: str = "auto"
    tolerance: float = Field(1e-3, gt=0)
    size: int | None = Field(None, ge=1)
    batch_size: int = Field(100, ge=1)

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value: Any) -> Any:
        if value is True:  # YAML reads a bare true as a truth value
            return "true"
        if value in ("predicted", "true", "margin") or (isinstance(value, int) and value is not False and value >= 0):
            return value
        raise ValueError("must be predicted, true, margin or the number of a class")


class ClusterSettings(_Section):
    """How one representation (heatmaps or features) is clustered.

    Attributes
    ----------
    method : str
        A registered clusterer.
    scope : "local" or "global"
        Inside each class, or over all samples and then crossed with the class.
    n_clusters : int or None
        None lets spectral clustering choose by the eigengap; the k-means methods then use their own default.
    gap : "relative" or "absolute"
        Which eigengap spectral clustering takes: the largest ratio of eigenvalues, or the authors' largest difference.
    n_neighbors : int or None
        Neighbours in the graph (spectral) or in UMAP; None is ``int(ln N)``.
    representation : "pixels" or "channels"
        Of heatmaps: the relevance of pixels, or that of an inner layer's channels (`explain.layer`).
    """

    representation: Literal["pixels", "channels"] = "pixels"
    method: str = "spectral"
    scope: Literal["local", "global"] = "global"
    n_clusters: int | None = Field(None, ge=1)
    gap: Literal["relative", "absolute"] = "relative"
    n_neighbors: int | None = Field(None, ge=2)


class GroupsSettings(_Section):
    """Which sources of groups are compared, and where.

    Attributes
    ----------
    split : "val" or "train"
        The images that are explained, grouped and retrained on. Training images are more, so small groups have
        samples there; but the model has learned them by heart.
    sources : tuple of str
    george : ClusterSettings
        How GEORGE clusters its features: into many clusters, as its paper wants.
    auto : bool
        Whether a grouping is also chosen among many, without group labels, and the model repaired with that one.
    """

    split: Literal["val", "train"] = "val"
    sources: tuple[str, ...] = ("classes", "random", "error_set", "george", "exmap", "oracle")
    george: ClusterSettings = ClusterSettings(scope="local", gap="absolute")
    auto: bool = False


class AutoSettings(_Section):
    """When a shortcut counts as found, where ``groups.auto`` is set.

    Attributes
    ----------
    level : float in (0, 1)
        Share of classifiers without a shortcut in which one may be found.
    ratio : float, at least 1
        How many times as high the error rate of a cluster must be as that of the rest of its class.
    conductance : float in (0, 1]
        Share of its edges in the graph of neighbours that may leave a cluster that stands apart.
    minority : float in (0, 1]
        Largest share of its class that such a cluster may hold: a shortcut works for most images of a class.
    only_if_found : bool
        Whether the model is left alone where no shortcut is found.
    repair : "last_layer" or "auto"
        What is retrained; auto retrains the whole network on pseudo-groups of the training images where the last layer
        is seen not to suffice.
    """

    level: float = Field(0.05, gt=0, lt=1)
    ratio: float = Field(2.0, ge=1)
    conductance: float = Field(0.02, gt=0, le=1)
    minority: float = Field(0.35, gt=0, le=1)
    only_if_found: bool = True
    repair: Literal["last_layer", "auto"] = "last_layer"


class RetrainSettings(_Section):
    """Deep feature reweighting (Kirichenko et al., 2023), as the ExMap supplement uses it."""

    strengths: tuple[PositiveFloat, ...] = Field((1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01), min_length=1)
    tuning_splits: int = Field(5, ge=1)
    subsamples: int = Field(20, ge=1)
    repeats: int = Field(5, ge=1)
    smallest_group: int = Field(6, ge=1)


class EvaluateSettings(_Section):
    """Bootstrap intervals of the group accuracies."""

    bootstrap: int = Field(1000, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)


class GroupEdit(_Section):
    """What a person decided about one group.

    Attributes
    ----------
    group : str
        Its name, as the clustering gave it.
    name : str or None
        What it is to be called. The name of a group that is merged into another goes with it.
    merge_into : str or None
        Another group of the same class, by the name the clustering gave it; its images go there.
    not_a_shortcut : bool
        Whether its images join the largest group of the class that is not so marked. A merge comes first.
    """

    group: str
    name: str | None = Field(None, min_length=1)
    merge_into: str | None = None
    not_a_shortcut: bool = False

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip() or not value.isprintable() or value.strip() == "unassigned":
            raise ValueError("a group's name must be printable, not blank, and not unassigned")
        return value.strip()


class Edits(_Section):
    """What a person decided about the groups of a run: the file that ``exmap retrain --edits`` reads.

    Attributes
    ----------
    format : 1
    source : "exmap"
        Whose groups are edited.
    grouping : str
        Identity of the clustering they were seen in; edits of another one are refused.
    edits : tuple of GroupEdit
        At most one per group.
    """

    format: Literal[1]
    source: Literal["exmap"]
    grouping: str
    edits: tuple[GroupEdit, ...]

    @model_validator(mode="after")
    def _one_each(self) -> Edits:
        names = [edit.group for edit in self.edits]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"each group may be listed once, but {twice!r} is listed {names.count(twice)} times")
        return self


class Settings(_Section):
    """Everything a run depends on."""

    preset: str = "custom"
    seed: int = Field(0, ge=0)
    data: DataSettings = DataSettings()
    images: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    explain: ExplainSettings = ExplainSettings()
    cluster: ClusterSettings = ClusterSettings()
    groups: GroupsSettings = GroupsSettings()
    auto: AutoSettings = AutoSettings()
    retrain: RetrainSettings = RetrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    edits: Edits | None = None


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    return sorted(packaged_yaml("presets"))


def packaged_yaml(folder: str) -> dict[str, Traversable]:
    """Return the YAML files of one of the package's folders by their names without ``.yaml``."""
    found = resources.files("exmap").joinpath(folder).iterdir()
    return {file.name.removesuffix(".yaml"): file for file in found if file.name.endswith(".yaml")}


def read_yaml(file: Traversable, where: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Parameters
    ----------
    file : Path or file of the package
    where : str
        What errors call it.

    Raises
    ------
    SettingsError
        If the file holds anything else.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} must be a YAML file in UTF-8, but it cannot be read as text: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} must be a YAML file, but it cannot be parsed: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{where} must hold a mapping of settings, got a {type(tree).__name__}")
    return tree


def load_settings(source: str | Path, overrides: Sequence[str] = (), **changes: Any) -> Settings:
    """Read settings from a preset's name or a YAML file, then apply overrides.

    Parameters
    ----------
    source : str or Path
        A preset's name, or the path of a YAML file.
    overrides : sequence of str
        ``section.key=value`` items; values are read as YAML.
    **changes
        Top-level values, or ``section__key`` values, set last; None values are left out.

    Raises
    ------
    SettingsError
        For an unknown preset, key or name, a file that is no YAML mapping, or a value out of its range.

    Examples
    --------
    >>> load_settings("digits", ["data.correlation=0.5"], seed=3).data.correlation
    0.5
    """
    return _changed(_read_source(source), overrides, changes)


def change_settings(settings: Settings, overrides: Sequence[str] = (), **changes: Any) -> Settings:
    """Return other settings with overrides applied, as :func:`load_settings` does."""
    return _changed(dump_settings(settings), overrides, changes)


def parse_settings(tree: Mapping[str, Any]) -> Settings:
    """Check a mapping as :func:`dump_settings` returns it.

    Raises
    ------
    SettingsError
        For an unknown key or a value out of its range.
    """
    return _validate(dict(tree))


def _changed(tree: dict[str, Any], overrides: Sequence[str], changes: Mapping[str, Any]) -> Settings:
    for item in overrides:
        key, sep, text = item.partition("=")
        if not sep:
            raise SettingsError(f"an override must be written section.key=value, got {item!r}; for example seed=1")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"the value of {key} must be YAML, got {text!r}; quote it") from error
        _set(tree, key.strip().split("."), value)
    for name, value in changes.items():
        if value is not None:
            _set(tree, name.split("__"), value)
    return _validate(tree)


def dump_settings(settings: Settings) -> dict[str, Any]:
    """Return settings as plain JSON-able values."""
    return settings.model_dump(mode="json")


def _read_source(source: str | Path) -> dict[str, Any]:
    name = str(source)
    if name in preset_names():
        return {"preset": name, **read_yaml(packaged_yaml("presets")[name], f"preset {name}")}
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise SettingsError(f"settings file {path} does not exist; give an existing YAML file or a preset's name")
        tree = read_yaml(path, str(path))
        if "preset" not in tree:
            return {"preset": path.stem, **tree}
        base = str(tree["preset"])
        if base not in preset_names():
            raise SettingsError(unknown_name("preset", base, preset_names()) + f"; it stands in {path}")
        return _merge(_read_source(base), tree)
    raise SettingsError(unknown_name("preset", name, preset_names()) + ", or the path of a YAML file")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise SettingsError(f"unknown setting {'.'.join(path)!r}: {key} is a value, not a section")
        tree = below
    tree[path[-1]] = value


def load_edits(path: str | Path) -> Edits:
    """Read a file of edits.

    Raises
    ------
    SettingsError
        If it does not exist, is no YAML mapping, or holds what edits do not have.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"edits file {path} does not exist; give one that was saved from this run's groups")
    tree = read_yaml(path, str(path))
    try:
        return Edits.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(f"{path}: {_refused(error, Edits, 'key')}") from None


def _validate(tree: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise _refused(error, Settings, "setting") from None


def _refused(error: ValidationError, model: Any, what: str) -> SettingsError:
    """Return the sentence for the first thing that was refused; `what` is said before its dotted name."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return SettingsError(unknown_name(what, key, _beside(first["loc"], model)))
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    where = f"{what} {key}" if key else "the whole"
    if isinstance(first["input"], dict):  # a whole section, whose values do not go together
        return SettingsError(f"{where}: {reason}")
    return SettingsError(f"{where}: {reason}, got {first['input']!r}")


def _beside(location: tuple[str | int, ...], model: Any) -> list[str]:
    """Return the dotted names that are allowed where an unknown one was found."""
    for name in location[:-1]:
        if isinstance(name, str):  # a number is a place in a list
            model = _section_of(model.model_fields[name].annotation)
    prefix = "".join(f"{name}." for name in location[:-1])
    return [prefix + name for name in model.model_fields]


def _section_of(annotation: Any) -> Any:
    """Return the section that a field holds, by itself, or none, or several of."""
    inner = [_section_of(part) for part in get_args(annotation)]
    return next((part for part in inner if hasattr(part, "model_fields")), annotation)
