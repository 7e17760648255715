"""Data sets by name. Each says what it is in the file that reads it."""

from __future__ import annotations

from exmap.data.dataset import Task
from exmap.data.entry import Entry
from exmap.data.one_set import chosen_part, one_set_task
from exmap.data.preprocess import Preprocess, preprocess_by_word
from exmap.data.table import ImageTable, task_from_table
from exmap.data.words import second_settings
from exmap.errors import DataError, SettingsError
from exmap.records import Listener, silent
from exmap.registry import DATASETS
from exmap.settings import DataSettings, ImageSettings

__all__ = ["Entry", "build_task", "dataset_names", "entries", "entry", "read_images"]


def dataset_names() -> list[str]:
    """Return the names of the catalogue, sorted."""
    return DATASETS.names()


def entry(name: str) -> Entry:
    """Return a data set's entry, by its name or a dotted path ``package.module:thing``.

    Raises
    ------
    SettingsError
        For an unknown name, and for a thing that is no entry and no function.
    """
    found = DATASETS.get(name)
    if isinstance(found, Entry):
        return found
    if callable(found):
        DATASETS.check_call(name)
        return Entry((found.__doc__ or name).strip().splitlines()[0], arrays=found)
    raise SettingsError(
        f"the data set {name} must be an exmap.data.entry.Entry, or a function that takes the data settings and "
        f"returns a Task, got {found!r:.80}"
    )


def entries() -> list[tuple[str, Entry]]:
    """Return names and entries of all data sets, sorted, without those of packages that cannot be imported."""
    return [(name, entry(name)) for name, _ in DATASETS.items()]


def read_images(settings: DataSettings) -> ImageTable:
    """Return the table of a data set that lies in image files.

    Raises
    ------
    DataError
        If it does not, or its tables are damaged.
    """
    found = entry(settings.name)
    if found.images is None:
        raise DataError(f"{settings.name} does not lie in image files")
    return found.images(settings)


def build_task(
    settings: DataSettings,
    images: ImageSettings | None = None,
    *,
    preprocess: Preprocess | None = None,
    listen: Listener = silent,
) -> Task:
    """Build the data set that `settings` name, and check that every class has samples in every split.

    Parameters
    ----------
    settings : DataSettings
    images : ImageSettings, optional
        How image files are read.
    preprocess : Preprocess, optional
        What makes a model's input of an image; by default what ``images.transform`` names, or squares.
    listen : Listener
        Called with progress while image files are opened for the first time.

    Returns
    -------
    Task
        With ``data.one_set`` all images are the validation split; see :func:`exmap.data.one_set.one_set_task`.

    Raises
    ------
    SettingsError
        For an unknown name.
    DataError
        For missing, damaged or too small data.
    """
    found, images = entry(settings.name), images or ImageSettings()
    if found.arrays is not None:
        for setting, given in (
            ("data.one_set", settings.one_set),
            ("images.transform", images.transform or preprocess),
        ):
            if given:
                raise SettingsError(
                    f"{setting} is for images in files, but {settings.name} is made in memory; leave it out, or give "
                    "your own images"
                )
        task = found.arrays(settings)
    else:
        preprocess = preprocess or _preprocess_of(images)
        table = read_images(settings)
        if settings.one_set:
            second = None if settings.test is None else second_settings(settings)
            other = None if second is None else chosen_part(read_images(second), second)
            task = one_set_task(table, other, settings, images, preprocess=preprocess, listen=listen)
        else:
            task = task_from_table(table, images, preprocess=preprocess, listen=listen)
    task.check()
    return task


def _preprocess_of(images: ImageSettings) -> Preprocess | None:
    if images.transform is None:
        return None
    if images.transform == "model":
        raise SettingsError(
            "images.transform=model needs the model, and here are images alone; give its preprocessing as preprocess="
        )
    return preprocess_by_word(images.transform)
