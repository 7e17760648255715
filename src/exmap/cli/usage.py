"""Errors of usage on the command line, each in one sentence."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from exmap.errors import SettingsError, unknown_name

__all__ = ["Commands", "UsageError", "usage"]

# The one class of all that the library under typer refuses; where it lies differs between versions of typer.
UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Commands(TyperGroup):
    """Commands; an unknown one is refused with the closest one as a hint."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name."""
        found = super().get_command(ctx, cmd_name)
        if found is None and not ctx.resilient_parsing and not cmd_name.startswith("-"):
            raise SettingsError(unknown_name("command", cmd_name, self.commands))
        return found


def usage(error: Any) -> str:
    """Return what is wrong with the words of a command, as one sentence; empty where there are none and help is given.

    The help is then printed, if the library has not done so.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        if text := error.format_message():
            print(text)
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "exmap"
    option = getattr(error, "option_name", "")
    if type(error).__name__ == "NoSuchOption" and context is not None:
        return unknown_name(f"option of {command}", option, _options(context))
    said = " ".join(error.format_message().split()).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; run {command} --help to see its options"


def _options(context: Any) -> list[str]:
    options = {name for parameter in context.command.params for name in parameter.opts if name.startswith("--")}
    return sorted(options | {"--help"})
