"""How a public name goes: it works for at least one minor version longer, and says what to use instead.

The policy is ``docs/policy.md``. The warnings are ``FutureWarning``, which Python shows to all users, not only to
developers.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["deprecated", "renamed_arguments", "warn_deprecated"]

Thing = TypeVar("Thing", bound=Callable[..., Any])


def warn_deprecated(what: str, *, since: str, removal: str, instead: str, stacklevel: int = 2) -> None:
    """Warn that something is going to be removed.

    Parameters
    ----------
    what : str
        What is deprecated, as users write it: ``"exmap.old()"``, ``"the setting train.old"``.
    since : str
        Version of exmap that deprecated it, such as ``"0.3"``.
    removal : str
        Version that will not have it any more. A test fails once exmap has reached it.
    instead : str
        What to use, in a few words: ``"exmap.new()"``.
    stacklevel : int
        Which caller the warning points at: 1 is the caller of this function, 2 is the caller of that function.

    Warns
    -----
    FutureWarning
        One sentence that names all four.
    """
    sentence = f"{what} is deprecated since exmap {since} and will be removed in exmap {removal}; use {instead}"
    warnings.warn(sentence, FutureWarning, stacklevel + 1)


def deprecated(*, since: str, removal: str, instead: str) -> Callable[[Thing], Thing]:
    """Return a decorator of a function or a class that warns whenever it is called.

    Parameters
    ----------
    since, removal, instead : str
        As of `warn_deprecated`.

    Returns
    -------
    callable
        Returns the same class with a constructor that warns, so that `isinstance` and subclasses keep working.

    Examples
    --------
    >>> @deprecated(since="0.3", removal="0.5", instead="exmap.new()")
    ... def old() -> int:
    ...     return 1
    """

    def decorate(thing: Thing) -> Thing:
        what = f"{thing.__module__.split('.')[0]}.{thing.__qualname__}()"
        made: Any = thing
        function: Callable[..., Any] = made.__init__ if inspect.isclass(thing) else thing

        @functools.wraps(function)
        def warned(*args: Any, **kwargs: Any) -> Any:
            warn_deprecated(what, since=since, removal=removal, instead=instead)
            return function(*args, **kwargs)

        if not inspect.isclass(thing):
            return warned  # type: ignore[return-value]  # the same arguments, the same result
        made.__init__ = warned
        return thing

    return decorate


def renamed_arguments(*, since: str, removal: str, **names: str) -> Callable[[Thing], Thing]:
    """Return a decorator that still takes keyword arguments by their old names.

    Parameters
    ----------
    since, removal : str
        As of `warn_deprecated`.
    **names : str
        The new name of each old one.

    Returns
    -------
    callable
        Raises `TypeError` where a call gives an argument by both names.

    Examples
    --------
    >>> @renamed_arguments(since="0.3", removal="0.5", clusters="n_clusters")
    ... def fit(n_clusters: int) -> int:
    ...     return n_clusters
    """

    def decorate(function: Thing) -> Thing:
        @functools.wraps(function)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}() takes {new!r} or its old name {old!r}, not both")
                what = f"the argument {old!r} of {function.__qualname__}()"
                warn_deprecated(what, since=since, removal=removal, instead=repr(new))
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed  # type: ignore[return-value]  # as the function, with more names

    return decorate
