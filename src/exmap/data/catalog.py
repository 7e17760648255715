"""Data sets by name: a table from name to builder."""

from __future__ import annotations

from collections.abc import Callable

from exmap.config import DataSettings
from exmap.data.coloured import cmnist, embedded_digits
from exmap.data.dataset import Task
from exmap.errors import SettingsError, unknown_name

__all__ = ["build_task", "dataset_names"]

_BUILDERS: dict[str, Callable[[DataSettings], Task]] = {
    "cmnist": lambda s: cmnist(s.dir, s.correlation, s.download),
    "digits": lambda s: embedded_digits(s.correlation),
}


def dataset_names() -> list[str]:
    """Return the names of the catalogue, sorted."""
    return sorted(_BUILDERS)


def build_task(settings: DataSettings) -> Task:
    """Build the data set that `settings` name, and check that every class has samples in every split.

    Raises
    ------
    SettingsError
        For an unknown name.
    DataError
        For missing, damaged or too small data.
    """
    if settings.name not in _BUILDERS:
        raise SettingsError(unknown_name("data set", settings.name, _BUILDERS))
    task = _BUILDERS[settings.name](settings)
    task.check()
    return task
