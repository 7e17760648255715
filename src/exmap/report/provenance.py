"""Where what a report shows comes from: versions and machine, settings without places, and the command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from exmap.plain_text import printable
from exmap.plain_yaml import dump_yaml
from exmap.settings import Settings, dump_settings, load_settings, preset_names

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["command_line", "made_with", "settings_text"]

PLACES = {"data": ("dir",), "images": ("cache_dir",), "model": ("weights",)}  # on the machine; a report goes to others
NOT_IN_COMMAND = ("seed", "preset", "edits")


def made_with(analysis: Analysis) -> list[tuple[str, str]]:
    """Return the data set, the seed, versions, commit and machine: a title and a value each."""
    return [
        ("data set", analysis.task.name),
        ("seed", str(analysis.settings.seed)),
        *(("note on the data", printable(note)) for note in analysis.task.notes),
        *((title, str(value)) for title, value in analysis.made_by.items()),
    ]


def settings_text(settings: Settings) -> str:
    """Return the settings as YAML, without the names of folders."""
    return dump_yaml(_without_places(settings))


def command_line(settings: Settings) -> str:
    """Return the command that makes the run again, with every setting that its preset does not have."""
    base = settings.preset if settings.preset in preset_names() else "digits"
    usual, given = (_without_places(each) for each in (load_settings(base), settings))
    words = ["exmap", "run", base, "--seed", str(settings.seed)]
    for section, value in given.items():
        if section not in NOT_IN_COMMAND:
            for name, changed in _changes(usual.get(section), value, section):
                words += ["--set", f"{name}={json.dumps(changed)}"]  # JSON is YAML
    command = shlex.join(words)
    places = [] if settings.data.dir is None else [" --data-dir DATA_DIR"]
    places += [] if settings.model.weights is None else [" --set model.weights=WEIGHTS"]
    return command + "".join(places)


def _without_places(settings: Settings) -> dict[str, Any]:
    return {
        section: {key: item for key, item in value.items() if key not in PLACES.get(section, ())}
        if isinstance(value, Mapping)
        else value
        for section, value in dump_settings(settings).items()
    }


def _changes(usual: Any, given: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names at which settings differ from the usual ones, with their values."""
    if isinstance(usual, Mapping) and isinstance(given, Mapping):
        for key, value in given.items():
            yield from _changes(usual.get(key), value, f"{name}.{key}")
    elif usual != given:
        yield name, given
