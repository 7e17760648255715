"""All settings as rows: what each may be, what it is by default, and what it means."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from exmap.errors import SettingsError
from exmap.registry import REQUIRED
from exmap.settings.loading import Settings
from exmap.settings.section import ChoosingSection
from exmap.trusted import looking_only

__all__ = ["SettingRow", "describe_settings", "parameter_meanings"]

NOT_SHOWN = ("preset", "edits")  # a name, and what a file of its own holds
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}  # of pydantic's rules, in words
ANYTHING = "anything"
KINDS = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}


class SettingRow(NamedTuple):
    """One setting.

    Attributes
    ----------
    name : str
        Dotted, as ``--set`` takes it.
    allowed : str
        What it may be.
    default : object
        None where there is none.
    value : object
        In the settings that are described.
    meaning : str
        In one sentence.
    owner : str
        For an option of a learner, clusterer or explainer: its class; empty for other settings.
    """

    name: str
    allowed: str
    default: Any
    value: Any
    meaning: str
    owner: str = ""


def describe_settings(settings: Settings | None = None) -> list[SettingRow]:
    """Return a row for each setting, and for each option of the chosen learner, clusterer and explainer.

    Parameters
    ----------
    settings : Settings, optional
        Those that name the learner, the clusterer and the explainer, and whose values are shown; by default the
        defaults.

    Examples
    --------
    >>> describe_settings()[0][:4]
    ('seed', 'integer, at least 0, below 4294967296', 0, 0)
    """
    return list(_rows(settings or Settings(), ""))


def _rows(section: BaseModel, prefix: str) -> Iterator[SettingRow]:
    meanings = parameter_meanings(type(section))
    for key, info in type(section).model_fields.items():
        value, name = getattr(section, key), f"{prefix}{key}"
        if not prefix and key in NOT_SHOWN:
            continue
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{name}.")
            continue
        allowed = _allowed(info.annotation, info.metadata)
        if isinstance(section, ChoosingSection) and key == section.choice:
            allowed = " or ".join([*section.registry.names(), "package.module:Class"])
        default = None if info.is_required() else info.default
        yield SettingRow(name, allowed, default, value, meanings.get(key, ""))
    if isinstance(section, ChoosingSection):
        yield from _options(section, prefix)


def _options(section: ChoosingSection, prefix: str) -> Iterator[SettingRow]:
    """Yield the options of what a section names, beside the section's own settings.

    What is of the user's own and not installed is not imported to be described.
    """
    name = getattr(section, section.choice)
    try:
        with looking_only():
            thing = section.registry.get(name)
    except SettingsError:
        if not section.registry.is_own(name):
            raise
        for key, value in section.options.items():
            yield SettingRow(f"{prefix}{key}", ANYTHING, None, value, "", name)
        return
    meanings = parameter_meanings(thing)
    for key, option in section.registry.options(name).items():
        if key in type(section).model_fields:
            continue
        default = None if option.default is REQUIRED else option.default
        value = section.options.get(key, default)
        owner = f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
        yield SettingRow(f"{prefix}{key}", _allowed(option.annotation), default, value, meanings.get(key, ""), owner)


def _allowed(annotation: Any, rules: Sequence[Any] = ()) -> str:
    """Return in words what a value may be."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(inner[0], [*inner[1:], *rules])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        parts = ["null" if part is type(None) else _allowed(part, rules) for part in inner]
        return ANYTHING if ANYTHING in parts else " or ".join(parts)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        kinds = dict.fromkeys(_allowed(part) for part in inner if part is not ...)
        return f"list of {' and '.join(kinds)}"
    return ", ".join([KINDS.get(annotation, ANYTHING), *(limit for rule in rules for limit in _limits(rule))])


def _limits(rule: Any) -> Iterator[str]:
    """Yield in words what a rule of pydantic's asks of a number."""
    if hasattr(rule, "metadata"):  # of a field in an annotation
        for part in rule.metadata:
            yield from _limits(part)
    for key, word in LIMITS.items():
        if getattr(rule, key, None) is not None:
            yield f"{word} {getattr(rule, key)}"


def parameter_meanings(thing: Any) -> dict[str, str]:
    """Return the first sentence that a class's docstring, or those of its bases, say of each parameter.

    Examples
    --------
    >>> class Square:
    ...     '''A square.
    ...
    ...     Parameters
    ...     ----------
    ...     side : float
    ...         Length of a side. All are alike.
    ...     '''
    >>> parameter_meanings(Square)
    {'side': 'Length of a side.'}
    """
    found: dict[str, str] = {}
    for place in thing.__mro__ if isinstance(thing, type) else (thing,):
        text = inspect.cleandoc(vars(place).get("__doc__") or "") if isinstance(place, type) else inspect.getdoc(place)
        for key, meaning in _documented(text or ""):
            if not meaning.startswith("As for"):
                found.setdefault(key, meaning)
    return found


def _documented(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and the first sentence about them, from numpydoc's sections of parameters and attributes."""
    for section in re.split(r"\n(?=\w[\w ]*\n-+\n)", text):
        title, _, body = section.partition("\n")
        if title not in ("Parameters", "Attributes"):
            continue
        for names, meaning in re.findall(r"^(\S[^:\n]*?)(?: : [^\n]*)?\n((?: +[^\n]*\n?)+)", body + "\n", re.M):
            sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(meaning.split()))[0]
            plain = re.sub(
                r":\w+:`~?([^`]*)`|``([^`]*)``|`([^`]*)`", lambda m: next(filter(None, m.groups()), ""), sentence
            )
            for name in names.split(","):
                yield name.strip(), plain
