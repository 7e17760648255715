"""What a constructor takes, and the check of what it is given: by its annotations, and by what no machine could do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from types import GenericAlias
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
)

from exmap.errors import SettingsError, shown
from exmap.plain_yaml import NO_TEXT

__all__ = [
    "REQUIRED",
    "Option",
    "check_values",
    "options_of",
    "parameters_of",
    "reason_of",
    "refuse_impossible",
]

REQUIRED = inspect.Parameter.empty  # the default of an option that has none
CHECKING = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
PLAIN_WORDS = {  # what pydantic says in words of its own code
    "path_type": "input should be a path, as text",
    "tuple_type": "input should be a list",
    "list_type": "input should be a list",
    "dict_type": "input should be a mapping",
    "model_type": "input should be a mapping of settings",
}
LARGEST = 10**9  # that a whole number may be where a constructor names no bound; no machine counts or adds up more


class Option(NamedTuple):
    """A parameter of a constructor that users may set.

    Attributes
    ----------
    annotation : type
        What it is checked against; Any where the constructor does not say.
    default : object
        :data:`REQUIRED` where there is none.
    """

    annotation: Any
    default: Any


def options_of(thing: Any) -> dict[str, Option]:
    """Return the parameters of a constructor or function by name."""
    hints = _hints(thing)
    return {key: Option(hints.get(key, Any), one.default) for key, one in parameters_of(thing).items()}


def parameters_of(thing: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor or function that can be passed by name; none where it does not say."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):  # of things that are not written in Python
        return {}
    return {name: one for name, one in signature.parameters.items() if one.kind in kinds}


def check_values(known: Mapping[str, Option], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return values converted to what is wanted.

    Parameters
    ----------
    known : mapping of str to Option
        What may be given.
    values : mapping of str to object
        What is given; all of it is known.
    what : str
        Whose options these are, for errors.

    Raises
    ------
    SettingsError
        For a value that does not fit, or that no machine could do.
    """
    try:
        made = _checker(known).model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = _place_of(first["loc"])
        raise SettingsError(f"option {key} of {what}: {reason_of(first)}, got {shown(first['input'])}") from None
    fields = zip(type(made).model_fields, known, strict=True)
    return {key: getattr(made, field) for field, key in fields if key in values}


def refuse_impossible(annotation: Any, value: Any) -> Any:
    """Return a value that is given for an annotation.

    Raises
    ------
    ValueError
        If it is, or holds, a truth value where none is wanted, a number that is not finite, or text that cannot be
        written to a file.
    """
    if isinstance(value, dict) and any(_is_section(part) for part in (annotation, *get_args(annotation))):
        return value  # which looks at its values by itself
    truth = _takes_truth(annotation)
    for each in _leaves(value):
        if isinstance(each, bool) and not truth:
            raise ValueError("yes, no, on, off, true and false are truth values; give a number, or text in quotes")
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError("input should be a finite number")
        if isinstance(each, str | PurePath) and NO_TEXT.search(str(each)):
            raise ValueError("input has a character that no text may have")
    return value


def reason_of(first: Mapping[str, Any]) -> str:
    """Return what pydantic says of a refused value, as the middle of a sentence."""
    reason: str = PLAIN_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return reason[0].lower() + reason[1:]


def _place_of(location: Sequence[str | int]) -> str:
    """Return the dotted name of a value that was refused, without what pydantic calls the choices that it tried."""
    return ".".join(map(str, [*location[:1], *(part for part in location[1:] if isinstance(part, int))]))


def _refuse_large(value: Any) -> Any:
    for each in _leaves(value):
        if isinstance(each, int) and not -LARGEST <= each <= LARGEST:
            raise ValueError(f"a whole number should be less than or equal to {LARGEST:,}")
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """Yield a value, or what lists and mappings hold."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else None
    if inside is None:
        yield value
    for each in inside or ():
        yield from _leaves(each)


def _takes_truth(annotation: Any) -> bool:
    whole = annotation in (bool, Any, object) or _is_section(annotation)
    return whole or any(_takes_truth(part) for part in get_args(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _hints(thing: Any) -> dict[str, Any]:
    """Return what a constructor says of its parameters; nothing where that cannot be resolved."""
    found: dict[str, Any] = {}
    for place in (thing, getattr(thing, "__init__", None)):  # the fields of a dataclass, or the parameters of __init__
        try:
            found |= get_type_hints(place, include_extras=True)
        except Exception:  # names that are only imported for type checkers, or whatever the annotation does
            continue
    return found


def _field(annotation: Any) -> Any:
    """Return an annotation with the rules that all options have."""
    before, after = BeforeValidator(partial(refuse_impossible, annotation)), AfterValidator(_refuse_large)
    return Annotated[_checkable(annotation), before, after]


def _checker(known: Mapping[str, Option]) -> type[BaseModel]:
    """Return a model with a field per option, by alias, since a model cannot have fields of every name."""
    fields: dict[str, Any] = {
        f"option_{number}": (_field(option.annotation), Field(None, alias=key))
        for number, (key, option) in enumerate(known.items())
    }
    return create_model("Options", __config__=CHECKING, **fields)


def _checkable(annotation: Any) -> Any:
    """Return the annotation with sequences as tuples, or Any where pydantic cannot check it."""
    if get_origin(annotation) is Annotated:
        inner, *rules = get_args(annotation)
        return Annotated[(_checkable(inner), *rules)]
    if get_origin(annotation) is Sequence:
        return GenericAlias(tuple, (*get_args(annotation), ...))
    try:
        TypeAdapter(annotation, config=CHECKING)
    except Exception:  # of what the library has no rules for, or whatever the annotation does
        return Any
    return annotation
