"""A repaired classifier in the form it came in: opened again by its own library, with the user's own names.

The folder is written beside its place and renamed into it when it is whole, and what was written has been opened again
and gives the logits of the repaired classifier.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, RunFolderError
from exmap.export.forms import FORM, Form
from exmap.export.head_alone import OwnLayer, own_layer, snippet_of
from exmap.importing import first_line
from exmap.model import logits_of
from exmap.model.named import ChosenOutputs, kind_of
from exmap.model.running import evaluation_mode, model_device, model_dtype, run_model
from exmap.model.safe import save_tensors
from exmap.pipeline.disk import read_json, write_json, write_text
from exmap.pipeline.store import move_into_place
from exmap.settings import ModelSettings

__all__ = ["Saved", "save_repaired"]

MARKER = "repaired.json"
HEAD, SNIPPET, PROGRAM = "head.safetensors", "apply_head.py", "repaired.pt2"
FORMAT = 1
CLOSE, COARSE = 1e-3, 0.05  # of the largest logit, in float32 and in shorter numbers


@dataclass(frozen=True)
class Saved:
    """What :func:`save_repaired` wrote.

    Attributes
    ----------
    folder : Path
    form : str
        What the classifier was written as, in words.
    model : Path
        The file to open, or the folder.
    opens : str
        A line of Python that opens it.
    head : Path or None
        The new last layer alone; None where more than the last layer was changed.
    program : Path or None
        The program of ``torch.export``, where it was asked for and could be made.
    snippet : str
        Lines of Python that put the new last layer into the user's model.
    gap : float
        The largest difference between logits of what was written, opened again, and of the repaired classifier.
    notes : tuple of str
        What one should know of it, a sentence each.
    """

    folder: Path
    form: str
    model: Path
    opens: str
    head: Path | None
    program: Path | None
    snippet: str
    gap: float
    notes: tuple[str, ...] = ()


def save_repaired(
    model: nn.Module,
    repaired: nn.Module,
    settings: ModelSettings,
    folder: Path,
    *,
    images: NDArray[np.float32],
    export: bool = False,
) -> Saved:
    """Write a repaired classifier in the form that the user's came in.

    Parameters
    ----------
    model : torch.nn.Module
        As :func:`exmap.model.initial_model` returns it; stays as it is.
    repaired : torch.nn.Module
        As :func:`exmap.model.replace_head` or a training returns it.
    settings : ModelSettings
        What the model was built by.
    folder : Path
        New, empty, or of an earlier call. Written as ``FOLDER.part``, which is renamed last.
    images : ndarray of float32, shape (n, C, H, W)
        A few, to compare what was written with.
    export : bool
        Whether to write a program of ``torch.export``, too.

    Returns
    -------
    Saved

    Raises
    ------
    RunFolderError
        If the folder holds other files.
    DataError
        If what was written gives other logits.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and read_json(folder / MARKER) is None)):
        raise RunFolderError(
            f"a repaired classifier needs a new folder, an empty one or an earlier one, but {folder} holds something "
            "else; choose another"
        )
    images = np.ascontiguousarray(images[:8])
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    wanted = _logits(repaired, images)
    layer = own_layer(model, repaired, images, settings)
    form = _form(settings, layer)
    notes = [*form.write(model, repaired, settings, layer, part), *layer.notes]
    gap = _gap(form.opened(model, settings, layer, part), wanted, images, form.file(settings))
    head = None
    if layer.tensors:
        head = folder / HEAD
        save_tensors(layer.tensors, part / HEAD)
    program = None
    if export or form.asks_for_program:
        program, said = _exported(repaired, images, wanted, part / PROGRAM)
        notes += [said] if said else []
    snippet = snippet_of(layer, settings, form.file(settings))
    if snippet:
        write_text(part / SNIPPET, snippet)
    place = folder / form.file(settings)
    saved = Saved(
        folder,
        form.words,
        place,
        form.opens(settings, str(place)),
        head,
        folder / PROGRAM if program else None,
        snippet,
        gap,
        tuple(notes),
    )
    write_json(part / MARKER, {"format": FORMAT, **{key: _plain(value) for key, value in asdict(saved).items()}})
    move_into_place(part, folder)
    return saved


def _plain(value: object) -> object:
    return value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _form(settings: ModelSettings, layer: OwnLayer) -> Form:
    """Return how a classifier is written: by its word, and whether a file of weights was given."""
    if layer.foreign:
        return FORM["module"]()
    kind = kind_of(settings.name)
    if kind in ("onnx", "torchscript"):
        return FORM[kind]()
    return FORM["hf" if kind == "hf" and settings.weights is None else "weights"]()


def _logits(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of images."""
    x = torch.from_numpy(images).to(model_device(model), model_dtype(model))
    with torch.no_grad(), evaluation_mode(model):
        made = logits_of(run_model(model, x), len(x))
    return np.asarray(made.float().cpu().numpy())


def _gap(opened: nn.Module, wanted: NDArray[np.float32], images: NDArray[np.float32], what: str) -> float:
    """Return the largest difference of logits; refuse one that rounding does not explain."""
    found = _logits(opened, images)
    if wanted.shape[1] == 2:  # one output stands for the difference of two
        found, wanted = (each - each.mean(axis=1, keepdims=True) for each in (found, wanted))
    gap = float(np.abs(found - wanted).max())
    short = torch.finfo(model_dtype(opened)).eps > 1e-5
    if not gap <= (COARSE if short else CLOSE) * (1 + float(np.abs(wanted).max())):
        raise DataError(
            f"the repaired classifier was written as {what}, but opened again its logits differ by up to {gap:.2g}; "
            "take exmap's own model.safetensors of the run, and report this"
        )
    return gap


class _Tensors(nn.Module):
    """A classifier whose output is the tensor of its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of images."""
        made = self.model(x)
        found = made if isinstance(made, torch.Tensor) else getattr(made, "logits", None)
        return found if isinstance(found, torch.Tensor) else logits_of(made)


def _exported(
    repaired: nn.Module, images: NDArray[np.float32], wanted: NDArray[np.float32], path: Path
) -> tuple[Path | None, str]:
    """Write a program of ``torch.export`` that takes any number of images, and say why where that cannot be."""
    inner = repaired.model if isinstance(repaired, ChosenOutputs) else repaired
    if getattr(inner, "gradient_free", False):
        return None, "There is no program of torch.export: a model in a file is a program already."
    x = torch.from_numpy(images[:2] if len(images) > 1 else np.concatenate([images, images]))
    x = x.to(model_device(repaired), model_dtype(repaired))
    try:
        with evaluation_mode(repaired), torch.no_grad():
            dynamic = {"x": {0: torch.export.Dim("images", min=1)}}
            program = torch.export.export(_Tensors(repaired).eval(), (x,), dynamic_shapes=dynamic)
            torch.export.save(program, path)
            again = logits_of(torch.export.load(path).module()(torch.from_numpy(images).to(x)), len(images))
    except Exception as error:  # of operations that cannot be exported
        path.unlink(missing_ok=True)
        return None, f"There is no program of torch.export: {first_line(error)[:200]}."
    if np.abs(again.float().cpu().numpy() - wanted).max() > CLOSE * (1 + np.abs(wanted).max()):
        path.unlink(missing_ok=True)
        return None, "There is no program of torch.export: it gave other logits."
    return path, ""
