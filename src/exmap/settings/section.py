"""What all sections of the settings share: frozen, checked, and closed to unknown keys unless these are options."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from exmap.registry import Registry

__all__ = ["ChoosingSection", "Section"]


class Section(BaseModel):
    """Some settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ChoosingSection(Section):
    """A section that names a thing of a registry, and takes that thing's options beside its own settings.

    The options are checked when the section is made. The registry is only asked where there are some.
    """

    model_config = ConfigDict(extra="allow")

    registry: ClassVar[Registry]
    choice: ClassVar[str]  # the setting that names the thing

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given beside the section's own settings, checked."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _check_options(self) -> ChoosingSection:
        extra = self.__pydantic_extra__
        if extra:
            extra.update(self.registry.check_options(getattr(self, self.choice), extra, beside=type(self).model_fields))
        return self
