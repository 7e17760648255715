"""Typed, frozen settings: one class per stage, read from a preset, a YAML file, and ``section.key=value`` overrides.

An unknown key, an unknown name or a value out of range is refused with the allowed values and the closest name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator

from exmap.errors import SettingsError, unknown_name

__all__ = [
    "ClusterSettings",
    "DataSettings",
    "EvaluateSettings",
    "ExplainSettings",
    "GroupsSettings",
    "ModelSettings",
    "RetrainSettings",
    "RuntimeSettings",
    "Settings",
    "TrainSettings",
    "change_settings",
    "dump_settings",
    "load_settings",
    "parse_settings",
    "preset_names",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataSettings(_Section):
    """Which images, and how strong the planted shortcut is.

    Attributes
    ----------
    name : str
        A name of the data catalogue.
    dir : Path or None
        Where the data set's files lie; None for embedded data. Not part of a stage's identity: the digests of the
        files are.
    correlation : float in [0.5, 1]
        Share of each class that carries its usual colour. 0.5 plants no shortcut.
    download : bool
        Whether missing files may be downloaded into `dir`.
    """

    name: Literal["cmnist", "digits"] = "digits"
    dir: Path | None = None
    correlation: float = Field(0.99, ge=0.5, le=1.0)
    download: bool = False


class ModelSettings(_Section):
    """The classifier: an architecture by name, its stem, and optional starting weights (safetensors)."""

    name: Literal["resnet18"] = "resnet18"
    stem: Literal["imagenet", "3x3"] = "imagenet"
    weights: Path | None = None


class TrainSettings(_Section):
    """Empirical risk minimisation: SGD with a cosine schedule (ExMap supplement, section 2.3)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(3e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    select: Literal["worst_class", "mean", "last"] = "worst_class"


class RuntimeSettings(_Section):
    """Where and how torch computes: device, precision of training, and number of processes."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, ge=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


class ExplainSettings(_Section):
    """Heatmaps by layer-wise relevance propagation.

    Attributes
    ----------
    composite : str
        ``symmetric_gamma`` (the paper's) or a composite that zennit registers by name.
    gamma : float
        Strength of the symmetric gamma rule; only that composite has it.
    target : "predicted", "true" or int
        Class whose evidence is explained.
    size : int or None
        Side in pixels to which heatmaps are reduced by area averaging; None keeps the image's own size.
    """

    composite: str = "symmetric_gamma"
    gamma: float = Field(4.0, ge=0)
    target: str | int = "predicted"
    size: int | None = Field(None, ge=1)
    batch_size: int = Field(100, ge=1)

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value: Any) -> Any:
        if value is True:  # YAML reads a bare true as a truth value
            return "true"
        if value in ("predicted", "true") or (isinstance(value, int) and value is not False and value >= 0):
            return value
        raise ValueError("must be predicted, true or the number of a class")


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
    """

    method: str = "spectral"
    scope: Literal["local", "global"] = "global"
    n_clusters: int | None = Field(None, ge=1)
    gap: Literal["relative", "absolute"] = "relative"
    n_neighbors: int | None = Field(None, ge=2)


class GroupsSettings(_Section):
    """Which sources of groups are compared, and how GEORGE clusters its features: many clusters, as its paper wants."""

    sources: tuple[str, ...] = ("classes", "random", "error_set", "george", "exmap", "oracle")
    george: ClusterSettings = ClusterSettings(scope="local", gap="absolute")


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


class Settings(_Section):
    """Everything a run depends on."""

    preset: str = "custom"
    seed: int = Field(0, ge=0)
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    explain: ExplainSettings = ExplainSettings()
    cluster: ClusterSettings = ClusterSettings()
    groups: GroupsSettings = GroupsSettings()
    retrain: RetrainSettings = RetrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    folder = resources.files("exmap") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


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
        text = (resources.files("exmap") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        return {"preset": name, **_mapping(text, f"preset {name}")}
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise SettingsError(f"settings file {path} does not exist; give an existing YAML file or a preset's name")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{path} must be a YAML file in UTF-8, but it cannot be read as text: {error}"
            ) from error
        tree = _mapping(text, str(path))
        if "preset" not in tree:
            return {"preset": path.stem, **tree}
        base = str(tree["preset"])
        if base not in preset_names():
            raise SettingsError(unknown_name("preset", base, preset_names()) + f"; it stands in {path}")
        return _merge(_read_source(base), tree)
    raise SettingsError(unknown_name("preset", name, preset_names()) + ", or the path of a YAML file")


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} must be a YAML file, but it cannot be parsed: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{where} must hold a mapping of settings, got a {type(tree).__name__}")
    return tree


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


def _beside(location: tuple[str | int, ...]) -> list[str]:
    """Return the dotted names that are allowed where an unknown one was found."""
    model: Any = Settings
    for name in location[:-1]:
        model = model.model_fields[name].annotation
    prefix = "".join(f"{name}." for name in location[:-1])
    return [prefix + name for name in model.model_fields]


def _validate(tree: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(unknown_name("setting", key, _beside(first["loc"]))) from None
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise SettingsError(f"setting {key}: {reason}, got {first['input']!r}") from None
