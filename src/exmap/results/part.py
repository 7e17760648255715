"""What every part of a written result shares: how it is read, checked, changed and written.

A part is immutable and knows no keys but its own. Two rules hold for all of them. A number that does not exist, such as
the accuracy of an empty group, is NaN here and null in JSON. A field whose default is empty is left out of JSON where
it is empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
)

from exmap.errors import RunFolderError

__all__ = ["FORMAT", "Number", "Part", "Share"]

EMPTY: tuple[Any, ...] = (None, {}, (), "")  # defaults that are left out of JSON
FORMAT = 1  # of results.json and of a bench's cells; a reader refuses any other


def _read_number(value: Any) -> Any:
    return math.nan if value is None else value


def _one_nan(value: float) -> float:
    return math.nan if value != value else value  # always the same object, so that equal results compare as equal


def _write_number(value: float) -> float | None:
    return None if value != value else value


Number = Annotated[
    float,
    BeforeValidator(_read_number),
    AfterValidator(_one_nan),
    PlainSerializer(_write_number),
    WithJsonSchema({"type": ["number", "null"]}),
]
"""A number, or NaN where there is none; null in JSON."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""


class Part(BaseModel):
    """A part of a written result."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    file_name: ClassVar[str] = "results.json"
    made_by: ClassVar[str] = "exmap evaluate RUN_DIR"

    @model_serializer(mode="wrap")
    def _leave_out_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            if not field.is_required() and field.default in EMPTY and getattr(self, name) == field.default:
                tree.pop(field.alias or name)
        return tree

    @classmethod
    def from_json(cls, tree: Any, *, where: object = None) -> Self:
        """Read it from the value of a JSON file.

        Parameters
        ----------
        tree : mapping
            As ``json.load`` returns it.
        where : path or str, optional
            Is named in the error.

        Raises
        ------
        RunFolderError
            If it is of another format, lacks something, or holds what has no place in it.
        """
        where = where or cls.file_name
        if "format" in cls.model_fields and isinstance(tree, Mapping) and (found := tree.get("format")) != FORMAT:
            raise RunFolderError(
                f"{where} has format {found!r}, and this version of exmap reads format {FORMAT}; read it with the "
                f"version that wrote it, or make it again with {cls.made_by}"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise RunFolderError(
                f"{where} is not as exmap writes it: {_first(error)}; make it again with {cls.made_by}"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values for a JSON file."""
        return self.model_dump(mode="json", by_alias=True)

    def changed(self, **fields: Any) -> Self:
        """Return a copy in which some fields are others; these are checked."""
        return type(self)(**{**dict(self), **fields})


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong, and how many others there are."""
    first, *others = error.errors(include_url=False)
    place = ".".join(map(str, first["loc"])) or "the whole file"
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "missing":
        return f"{place} is missing{more}"
    if first["type"] == "extra_forbidden":
        return f"{place} is not known{more}"
    shown = repr(first["input"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{place}: {message}, got {shown if len(shown) <= 60 else shown[:57] + '...'}{more}"
