"""The six kinds of things that can be added, each with a table of names.

A name is looked up among our own things, then among the entry points of installed packages. A dotted path
``package.module:Thing``, or a file's ``FILE.py:Thing``, is looked up as it stands, in the present folder, too. The
modules of our own package are imported at the first look-up, so a new file with one ``@LEARNERS.register`` is all it
takes to add a learner, and importing exmap stays quick. Names and paths mean the same in every process, so worker
processes find the same things.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Any, TypeVar, overload

from exmap.arguments import REQUIRED, Option, check_values, options_of, parameters_of
from exmap.errors import DataError, SettingsError, unknown_name
from exmap.importing import object_at
from exmap.trusted import refuse_to_call

__all__ = [
    "CLUSTERERS",
    "DATASETS",
    "EXPLAINERS",
    "LEARNERS",
    "MODELS",
    "REQUIRED",
    "SOURCES",
    "Option",
    "Registry",
]

Thing = TypeVar("Thing")


class Registry:
    """Things of one kind by name.

    Parameters
    ----------
    kind : str
        What errors call such a thing.
    entry_points : str
        Group of the entry points by which other packages add to it.
    package : str
        Package of ours whose modules register things when they are imported.
    given : collection of str
        Parameters that the pipeline passes, which are no options.

    Examples
    --------
    >>> shapes = Registry("shape", "exmap.shapes", "exmap.cluster")
    >>> @shapes.register(name="square")
    ... class Square:
    ...     def __init__(self, side: float = 1.0) -> None:
    ...         self.side = side
    >>> shapes.build("square", {"side": "2"}).side
    2.0
    """

    def __init__(self, kind: str, entry_points: str, package: str, given: Collection[str] = ()) -> None:
        self.kind, self.entry_points, self.package, self.given = kind, entry_points, package, frozenset(given)
        self._own: dict[str, Any] = {}
        self._words: list[tuple[Callable[[str], bool], Callable[[str], Any], bool]] = []
        self._forms = ""
        self._searched = False
        self._lock = RLock()

    @overload
    def register(self, thing: Thing, *, name: str | None = None) -> Thing: ...

    @overload
    def register(self, *, name: str | None = None) -> Callable[[Thing], Thing]: ...

    def register(self, thing: Any = None, *, name: str | None = None) -> Any:
        """Add a thing and return it; a decorator, with or without a name.

        Parameters
        ----------
        thing : class, function or object
        name : str, optional
            By default the thing's own ``name``, or the name of a function.

        Raises
        ------
        SettingsError
            If there is no name, or another thing has it.
        """
        if thing is None:
            return lambda thing: self.register(thing, name=name)
        own = getattr(thing, "name", None) or (thing.__name__ if inspect.isfunction(thing) else None)
        key = name or own
        if not isinstance(key, str):
            raise SettingsError(f"a {self.kind} needs a name, but {thing!r:.80} has none; register it with name=")
        there = self._own.setdefault(key, thing)
        if _place(there) != _place(thing):
            raise SettingsError(
                f"a {self.kind} must have a name of its own, but {_place(there)} and {_place(thing)} are both {key!r}; "
                "rename one of them"
            )
        self._own[key] = thing
        return thing

    def register_words(
        self, takes: Callable[[str], bool], find: Callable[[str], Any], *, own: bool = False, forms: str = ""
    ) -> None:
        """Let names of another form be looked up by a function, such as ``torchvision:NAME``.

        Parameters
        ----------
        takes : callable
            Whether a name is of that form.
        find : callable
            Returns the thing of such a name.
        own : bool
            Whether such names are a user's own, as dotted paths are.
        forms : str
            How names of all other forms are written, for the sentence about one that there is none of.
        """
        self._words.append((takes, find, own))
        self._forms = forms or self._forms

    def get(self, name: str) -> Any:
        """Return what has a name, or lies at a path ``package.module:Thing`` or ``FILE.py:Thing``.

        Raises
        ------
        SettingsError
            For an unknown name, and for a path or an entry point that cannot be imported.
        """
        if name in self._registered():
            return self._own[name]
        points = [point for point in self._points() if point.name == name]
        if len({point.value for point in points}) > 1:
            raise SettingsError(
                f"the {self.kind} {name!r} must come from one package, but {' and '.join(map(_origin, points))} all "
                "have one; uninstall all but one of them, or give package.module:Thing"
            )
        if points:
            return self._loaded(name, points[0])
        for takes, find, _ in self._words:
            if takes(name):
                return find(name)
        if ":" in name:
            return self._at(name)
        others = f", or give {self._forms}" if self._forms else ""
        raise SettingsError(f"{unknown_name(self.kind, name, self.names())}{others}")

    def names(self) -> list[str]:
        """Return our names and those of installed entry points, sorted; nothing of other packages is imported."""
        return sorted({*self._registered(), *(point.name for point in self._points())})

    def items(self) -> list[tuple[str, Any]]:
        """Return names and things, without those that cannot be imported."""
        found = []
        for name in self.names():
            try:
                found.append((name, self.get(name)))
            except SettingsError:
                continue
        return found

    def is_own(self, name: str) -> bool:
        """Return whether a name is a word for something of the user's own, which nobody has registered."""
        if ":" not in name or name in self:
            return False
        return next((own for takes, _, own in self._words if takes(name)), True)

    def options(self, name: str) -> dict[str, Option]:
        """Return the parameters of a thing's constructor that users may set, by name."""
        thing = self.get(name)
        return self._options_of(thing) if callable(thing) else {}

    def _options_of(self, thing: Any) -> dict[str, Option]:
        return {key: option for key, option in options_of(thing).items() if key not in self.given}

    def check_options(self, name: str, options: Mapping[str, Any], *, beside: Collection[str] = ()) -> dict[str, Any]:
        """Return options converted to what the constructor says it takes.

        Parameters
        ----------
        name : str
        options : mapping of str to object
        beside : collection of str
            Other names that are allowed where the options were given; an unknown name is compared with these, too.

        Raises
        ------
        SettingsError
            For an unknown option, a value that does not fit, and a missing option that has no default.
        """
        known, what = self.options(name), f"the {self.kind} {name}"
        for key in options:
            if key not in known and not (known or beside):
                raise SettingsError(f"{what} has no options, got {key!r}; leave it out")
            if key not in known:
                raise SettingsError(unknown_name(f"option of {what}", key, {*known, *beside}))
        for key, option in known.items():
            if option.default is REQUIRED and key not in options and key not in beside:
                raise SettingsError(f"{what} needs the option {key}, and it was not given; set it")
        return check_values(known, options, what)

    def check_made(self, thing: Any) -> None:
        """Check what a thing of a registered class was made with, as the options of its class.

        Raises
        ------
        SettingsError
            For a value that does not fit.
        """
        name, known = getattr(thing, "name", type(thing).__name__), self._options_of(type(thing))
        check_values(known, {key: getattr(thing, key) for key in known}, f"the {self.kind} {name}")

    def build(self, name: str, options: Mapping[str, Any] | None = None, **given: Any) -> Any:
        """Make a thing: with its options, and with what the pipeline gives as far as the constructor takes it.

        Raises
        ------
        SettingsError
            What :meth:`get` and :meth:`check_options` raise.
        """
        self.check_call(name)
        make = self.get(name)
        if not callable(make):
            raise SettingsError(f"the {self.kind} {name} must be a class or a function, got {make!r:.80}")
        checked, takes = self.check_options(name, options or {}), parameters_of(make)
        more = {key: value for key, value in given.items() if key in takes and key not in checked}
        try:
            return make(**checked, **more)
        except TypeError as error:  # of what is no class or function of the kind
            raise SettingsError(
                f"the {self.kind} {name} cannot be made ({error}); give another, or its options"
            ) from error

    def check_call(self, name: str) -> None:
        """Refuse to make something of the user's own where a run is only looked at.

        Raises
        ------
        SettingsError
        """
        if self.is_own(name):
            refuse_to_call(name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name in self._registered() or any(point.name == name for point in self._points())

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _points(self) -> tuple[EntryPoint, ...]:
        return _entry_points(self.entry_points, tuple(sys.path))

    def _registered(self) -> dict[str, Any]:
        """Return our own things, after the import of the modules that register them."""
        with self._lock:
            if not self._searched:
                self._searched = True  # a module that looks something up while it is imported finds what is there
                for module in pkgutil.iter_modules(import_module(self.package).__path__, f"{self.package}."):
                    import_module(module.name)
        return self._own

    def _loaded(self, name: str, point: EntryPoint) -> Any:
        try:
            return point.load()
        except Exception as error:  # whatever the package does when it is imported
            raise SettingsError(
                f"the {self.kind} {name!r} comes from {_origin(point)} and cannot be imported "
                f"({type(error).__name__}: {error}); repair or uninstall that package"
            ) from error

    def _at(self, word: str) -> Any:
        """Return what lies at a dotted path or in a file of the user's, which may lie in the present folder."""
        try:
            return object_at(word, what=f"the {self.kind}", kind=self.kind)
        except DataError as error:  # whatever the module does when it is imported
            raise SettingsError(str(error)) from error


@lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group; reading those of all packages takes a while, and changes with the path."""
    return tuple(entry_points(group=group))


def _place(thing: Any) -> str:
    """Return where a thing was defined."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}" + ("" if named is thing else f" {thing!r:.40}")


def _origin(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"{package} (entry point {point.name} = {point.value})"


DATASETS = Registry("data set", "exmap.datasets", "exmap.data")
MODELS = Registry("model", "exmap.models", "exmap.model", given=("settings", "n_classes", "num_classes"))
EXPLAINERS = Registry("explainer", "exmap.explainers", "exmap.explain", given=("layers",))
CLUSTERERS = Registry("clustering method", "exmap.clusterers", "exmap.cluster", given=("random_state",))
SOURCES = Registry("group source", "exmap.sources", "exmap.groups", given=("seed",))
LEARNERS = Registry("learner", "exmap.learners", "exmap.retrain", given=("seed", "train", "runtime"))
