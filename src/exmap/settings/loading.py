"""All settings together, read from a preset, a YAML file and ``section.key=value`` overrides."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from exmap.arguments import reason_of
from exmap.errors import SettingsError, shown, unknown_name
from exmap.plain_yaml import parse_yaml, read_yaml
from exmap.settings.data import DataSettings, ImageSettings
from exmap.settings.grouping import AutoSettings, ClusterSettings, ExplainSettings, GroupsSettings
from exmap.settings.repair import Edits, EvaluateSettings, RetrainSettings
from exmap.settings.section import ChoosingSection, Section, Seed
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
        Seed of everything that is drawn at random.
    """

    preset: str = "custom"
    seed: Seed = 0
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
            raise SettingsError(f"an override must be written section.key=value, got {shown(item)}; for example seed=1")
        value = parse_yaml(text, f"the value of {shown(key)}")
        if value is None and text.strip().startswith("#"):
            raise SettingsError(f"the value of {shown(key)} must not be a comment, got {shown(text)}; put it in quotes")
        _set(tree, key.strip().split("."), value)
    for name, value in changes.items():
        if value is not None:
            _set(tree, name.split("__"), value)
    _drop_options(before, tree, Settings)
    return _validate(tree)


def _drop_options(before: Mapping[str, Any], tree: dict[str, Any], model: type[Section]) -> None:
    """Where another learner, clusterer or explainer is chosen, drop the options that were for the one before."""
    for key, info in model.model_fields.items():
        old, new, section = before.get(key), tree.get(key), _section_of(info.annotation)
        if isinstance(old, Mapping) and isinstance(new, dict) and _is_section(section):
            _drop_options(old, new, section)
    if not issubclass(model, ChoosingSection):
        return
    usual = model.model_fields[model.choice].default
    chosen = tree.get(model.choice, usual)
    inherited = [k for k, value in before.items() if k not in model.model_fields and tree.get(k) == value]
    if not inherited or chosen == before.get(model.choice, usual):
        return
    own = isinstance(chosen, str) and model.registry.is_own(chosen)  # it is not looked at, and inherits nothing
    if own or chosen in model.registry or (isinstance(chosen, str) and ":" in chosen):  # else it is refused later
        for key in set(inherited) - set(() if own else model.registry.options(chosen)):
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
            raise SettingsError(f"unknown setting {shown('.'.join(path))}: {shown(key)} is a value, not a section")
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
    if first["type"] == "extra_forbidden":
        key = ".".join(str(part) for part in first["loc"])
        return SettingsError(unknown_name(what, key, _beside(first["loc"], model)))
    key = _known_place(first["loc"], model)
    reason = reason_of(first)
    where = f"{what} {key}" if key else "the whole"
    if isinstance(first["input"], dict) and first["type"] == "value_error":  # a section's values do not go together
        return SettingsError(f"{where}: {reason}")
    quote = "; put it in quotes" if first["type"] == "string_type" and isinstance(first["input"], int | float) else ""
    return SettingsError(f"{where}: {reason}, got {shown(first['input'])}{quote}")


def _known_place(location: Sequence[str | int], model: Any) -> str:
    """Return the dotted name of a value, as far as it is of settings, and numbers of its places in lists."""
    names: list[str] = []
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
        elif part in getattr(model, "model_fields", {}):
            names.append(part)
            model = _section_of(model.model_fields[part].annotation)
    return ".".join(names)


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
    return next(filter(_is_section, inner), annotation)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
