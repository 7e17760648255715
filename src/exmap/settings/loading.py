"""All settings together, read from a preset, a YAML file and ``section.key=value`` overrides."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError

from exmap.errors import SettingsError, unknown_name
from exmap.registry import reason_of
from exmap.settings.data import DataSettings, ImageSettings
from exmap.settings.grouping import AutoSettings, ClusterSettings, ExplainSettings, GroupsSettings
from exmap.settings.repair import Edits, EvaluateSettings, RetrainSettings
from exmap.settings.section import ChoosingSection, Section
from exmap.settings.training import ModelSettings, RuntimeSettings, TrainSettings

__all__ = [
    "Settings",
    "change_settings",
    "dump_settings",
    "load_edits",
    "load_settings",
    "packaged_yaml",
    "parse_settings",
    "preset_names",
    "read_yaml",
]


class Settings(Section):
    """Everything a run depends on.

    Attributes
    ----------
    seed : int
        Of all that is drawn at random.
    """

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


def _changed(before: dict[str, Any], overrides: Sequence[str], changes: Mapping[str, Any]) -> Settings:
    tree = copy.deepcopy(before)
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
    _drop_options(before, tree, Settings)
    return _validate(tree)


def _drop_options(before: Mapping[str, Any], tree: dict[str, Any], model: Any) -> None:
    """Where another learner, clusterer or explainer is chosen, drop the options that were for the one before."""
    for key, info in model.model_fields.items():
        old, new = before.get(key), tree.get(key)
        if isinstance(old, Mapping) and isinstance(new, dict):
            _drop_options(old, new, _section_of(info.annotation))
    if not (isinstance(model, type) and issubclass(model, ChoosingSection)):
        return
    usual = model.model_fields[model.choice].default
    chosen = tree.get(model.choice, usual)
    inherited = [k for k, value in before.items() if k not in model.model_fields and tree.get(k) == value]
    if not inherited or chosen == before.get(model.choice, usual):
        return
    if chosen in model.registry or ":" in str(chosen):  # what is not known is refused later
        for key in set(inherited) - set(model.registry.options(chosen)):
            del tree[key]


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
        whole = _read_source(base)
        merged = _merge(whole, tree)
        _drop_options(whole, merged, Settings)
        return merged
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
    reason = reason_of(first)
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
