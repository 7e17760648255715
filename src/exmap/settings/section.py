"""What all sections of the settings share: frozen, checked, and closed to unknown keys unless these are options."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from exmap.arguments import refuse_impossible
from exmap.errors import SettingsError
from exmap.registry import Registry

__all__ = ["ChoosingSection", "Count", "Epochs", "Section", "Seed", "Side", "check_own_options"]

# Bounds of what no machine could do: beyond them a number is a slip, and would be found out after hours, or never.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Side = Annotated[int, Field(ge=1, le=16_384)]  # pixels
Epochs = Annotated[int, Field(ge=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]  # of images at once, draws, repeats, clusters


class Section(BaseModel):
    """Some settings that belong together. Numbers are finite, truth values are no numbers, and text can be written."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _possible(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_impossible(cls.model_fields[str(info.field_name)].annotation, value)
        return value


class ChoosingSection(Section):
    """A section that names a thing of a registry, and takes that thing's options beside its own settings.

    The options are checked when the section is made. The registry is only asked where there are some. Reading settings
    imports nothing of the user's own: what a word of his names is asked by :func:`check_own_options`, and when it is
    built.
    """

    model_config = ConfigDict(extra="allow")

    registry: ClassVar[Registry]
    choice: ClassVar[str]  # the setting that names the thing

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given beside the section's own settings."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _check_options(self) -> ChoosingSection:
        extra, name = self.__pydantic_extra__, getattr(self, self.choice)
        if extra and not self.registry.is_own(name):
            extra.update(self.registry.check_options(name, extra, beside=type(self).model_fields))
        return self


def check_own_options(section: Section, where: str = "") -> None:
    """Check the options of what settings name by words of the user's own, which are imported for it: before work.

    Parameters
    ----------
    section : Section
        With all sections in it.
    where : str
        Its dotted name, for errors.

    Raises
    ------
    SettingsError
        For an unknown option and a value that does not fit.
    """
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            check_own_options(value, f"{where}.{key}" if where else key)
    if isinstance(section, ChoosingSection) and section.options:
        name = getattr(section, section.choice)
        if section.registry.is_own(name):
            try:
                section.registry.check_options(name, section.options, beside=type(section).model_fields)
            except SettingsError as error:
                raise SettingsError(f"setting {where}: {error}") from None
