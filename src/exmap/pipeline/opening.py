"""Open the data of a run as its classifier wants them: with the model's own preprocessing where that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exmap.data import Task, build_task
from exmap.data.preprocess import preprocess_by_word
from exmap.errors import SettingsError
from exmap.model.named import own_preprocess
from exmap.records import Listener, silent
from exmap.settings import Settings

if TYPE_CHECKING:
    from exmap.data.preprocess import Preprocess

__all__ = ["open_task", "preprocess_of"]

OWN = "model"


def preprocess_of(settings: Settings) -> Preprocess | None:
    """Return what makes a model's input of an image; None where ``images.resize`` and its like do.

    Raises
    ------
    SettingsError
        If it is to be the model's own, and the model says nothing of it.
    """
    word = settings.images.transform
    if word is None:
        return None
    if word != OWN:
        return preprocess_by_word(word)
    found = own_preprocess(settings.model)
    if found is None:
        raise SettingsError(
            f"the model {settings.model.name} does not specify its preprocessing; name its transform with "
            "--transform FILE.py:NAME (a torchvision Compose, or a function of an image), or use --set "
            "images.transform=null with images.resize, images.crop and images.normalize"
        )
    return found


def open_task(settings: Settings, *, listen: Listener = silent) -> Task:
    """Open the data that settings name, and check them; see :func:`exmap.data.build_task`."""
    return build_task(settings.data, settings.images, preprocess=preprocess_of(settings), listen=listen)
