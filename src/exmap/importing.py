"""Things of a user's own by a word, ``PACKAGE.MODULE:NAME`` or ``FILE.py:NAME``, and libraries that exmap does without.

The user's code runs in this process, as he asked for by its name; what goes wrong in it is said in one sentence. Where
somebody's run is only looked at (:mod:`exmap.trusted`), it is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from exmap.errors import DataError, ExMapError, SettingsError
from exmap.trusted import only_looking, refuse_to_call, refuse_to_import

__all__ = [
    "FORMS",
    "called",
    "first_line",
    "guarded",
    "importable",
    "is_word",
    "needed",
    "object_at",
    "package",
    "places_told",
    "source_of",
    "told_places",
    "unknown_among_many",
]

FORMS = "PACKAGE.MODULE:NAME or FILE.py:NAME"
PLACES = "EXMAP_MODULES"  # an environment variable that spawned processes inherit
Made = TypeVar("Made")
_files: dict[tuple[str, int, int], ModuleType] = {}  # by path, time of change and size: each is run once


def is_word(text: str) -> bool:
    """Return whether a text has one of the two forms; whether there is such a thing is not looked at.

    Examples
    --------
    >>> is_word("mypkg.data:eval_transform"), is_word("my file.py:build"), is_word("model"), is_word("C:/photos")
    (True, True, False, False)
    """
    place, _, name = text.rpartition(":")
    named = bool(name) and all(part.isidentifier() for part in name.split("."))
    return named and (place.endswith(".py") or all(part.isidentifier() for part in place.split(".")))


def object_at(word: str, *, what: str = "a model", forms: str = FORMS, kind: str = "function") -> Any:
    """Return the thing that a word names, after the import of its module or file.

    Parameters
    ----------
    word : str
        ``PACKAGE.MODULE:NAME`` or ``FILE.py:NAME``; modules are also looked for in the folder of the file, or in the
        present one.
    what, forms : str
        What the word is for and how it may be written, for the sentence about a word that is wrong.
    kind : str
        What the name should be, for the sentence about a name that is not there.

    Raises
    ------
    SettingsError
        For a file, a module or a name that is not there.
    DataError
        If the user's code fails while it is imported.
    """
    place, colon, name = word.rpartition(":")
    if not colon or not place or not name:
        raise SettingsError(f"{what} is given as {forms}, got {word!r}")
    refuse_to_import(word)
    with importable(word):
        is_file = Path(place).suffix == ".py"
        found: Any = _from_file(Path(place), word) if is_file else _imported(place, f"{what} is given as {forms}", word)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [(key, value) for key, value in getattr(found, "__dict__", {}).items() if not key.startswith("_")]
            known = [key for key, value in public if callable(value)]
            raise SettingsError(unknown_among_many(kind, part, known, f"it must be in {place}"))
        found = getattr(found, part)
    return found


def called(
    made: Any,
    word: str,
    *,
    makes: str = "a model",
    whole: tuple[type, ...] = (),
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Return what a function of the user's returns; a thing that is of one of the types `whole` is returned itself.

    Parameters
    ----------
    made : object
        What :func:`object_at` has found.
    word : str
    makes : str
        What it should return, for sentences.
    whole : tuple of type
    given : mapping of str to object
        Arguments that the function may take by name; it is called with those that it has.

    Raises
    ------
    SettingsError
        If it is no function, or needs other arguments.
    DataError
        If it fails.
    """
    if isinstance(made, whole):
        return made
    refuse_to_call(word)
    if not callable(made):
        raise SettingsError(f"{word} must be a function that returns {makes}, got {type(made).__name__}")
    takes = _parameters(made)
    known = {name: value for name, value in (given or {}).items() if name in takes}
    if missing := [name for name in needed(made) if name not in known]:
        raise SettingsError(
            f"{word} must be a function without arguments that returns {makes}, but it needs {', '.join(missing)}; "
            "write a function that fills them in"
        )
    with importable(word):
        return guarded(lambda: made(**known), word)


def needed(function: Callable[..., Any]) -> list[str]:
    """Return the arguments that a function cannot do without."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in _parameters(function).values() if p.default is p.empty and p.kind not in several]


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a library in C
        return {}


@contextmanager
def importable(word: str) -> Iterator[None]:
    """Let the modules beside the file of a word, or else of the present folder, be imported inside the block."""
    if only_looking():
        yield
        return
    path = Path(word.rpartition(":")[0])
    place = str((path.parent if path.suffix == ".py" else Path()).resolve())
    _tell_processes("folders", place, place)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


def guarded(work: Callable[[], Made], what: str) -> Made:
    """Run a user's code, and say in a sentence what came of it.

    Raises
    ------
    DataError
        For any error of the user's.
    """
    try:
        return work()
    except ExMapError:
        raise
    except (Exception, SystemExit) as error:  # in the user's code
        raise DataError(f"{what} failed with {first_line(error)}; run it by itself to see where") from error


def package(name: str, *, extra: str | None = None) -> Any:
    """Import a library that exmap does without.

    Parameters
    ----------
    name : str
        Of the module.
    extra : str, optional
        Of exmap that installs it; by default its name.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"{name} is not installed; install it with pip install 'exmap[{extra or name}]'") from error


def source_of(word: str) -> str:
    """Return the SHA-256 of the file that a word's thing is defined in; empty where that cannot be read."""
    place = word.rpartition(":")[0]
    if not place.endswith(".py"):
        module = sys.modules.get(place)
        place = getattr(module, "__file__", None) or ""
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()
    except OSError:
        return ""


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.')}"


def unknown_among_many(what: str, name: str, known: Iterable[str], where: str) -> str:
    """Return the sentence for a name that is not among very many.

    Examples
    --------
    >>> unknown_among_many("model of timm", "resnt18", ["resnet18", "vgg11"], "timm.list_models() names all")
    "unknown model of timm 'resnt18' (did you mean 'resnet18'?); timm.list_models() names all"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; {where}"


def _from_file(path: Path, word: str) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"the file {path} of {word} does not exist; give an existing Python file")
    place, found = str(path.resolve()), path.stat()
    key = (place, found.st_mtime_ns, found.st_size)
    if key in _files:
        return _files[key]
    name = f"exmap_file_{path.stem}_{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what is defined in it can be pickled
    try:
        guarded(lambda: loader.exec_module(module), str(path))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _files[key] = module
    _tell_processes("files", name, place)
    return module


def _tell_processes(kind: str, name: str, place: str) -> None:
    """Let processes that are spawned find a user's modules, which pickled objects of theirs name."""
    known = json.loads(os.environ.get(PLACES, "{}"))
    if known.setdefault(kind, {}).get(name) != place:
        known[kind][name] = place
        os.environ[PLACES] = json.dumps(known)


class _Elsewhere(MetaPathFinder):
    """Finds modules in a spawned process that its parent imported by a word."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if only_looking():
            return None
        known = json.loads(os.environ.get(PLACES, "{}"))
        file = known.get("files", {}).get(fullname)
        if file is not None:
            return importlib.util.spec_from_file_location(fullname, file)
        if path is not None:
            return None
        return PathFinder.find_spec(fullname, list(known.get("folders", {})))


def places_told() -> str:
    """Return where this process has found a user's modules, for one that it has not spawned (:func:`told_places`)."""
    return os.environ.get(PLACES, "{}")


def told_places(places: str) -> None:
    """Find a user's modules where another process has found them, by what it said of it."""
    os.environ[PLACES] = places
    if not any(isinstance(finder, _Elsewhere) for finder in sys.meta_path):
        sys.meta_path.append(_Elsewhere())


if PLACES in os.environ:  # the process was started by one that has imported such modules
    sys.meta_path.append(_Elsewhere())


def _imported(name: str, forms: str, word: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise DataError(f"{name} could not be imported ({first_line(error)}); install what it needs") from error
        raise SettingsError(f"there is no module {error.name!r} to import for {word}; {forms}") from error
    except (Exception, SystemExit) as error:  # in the user's module
        raise DataError(
            f"{name} could not be imported ({first_line(error)}); import it by itself to see where"
        ) from error
