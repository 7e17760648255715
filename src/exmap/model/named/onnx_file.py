"""A classifier in an ONNX file: features by ONNX Runtime, and its last layer as a layer of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.importing import first_line, package
from exmap.model.named.chosen import ChosenOutputs
from exmap.model.named.onnx_graph import cut_at, input_of, read_ending, read_file
from exmap.model.named.words import Builder, Facts, check_outputs
from exmap.settings import ModelSettings

__all__ = ["OnnxClassifier", "builder", "class_names", "facts", "transform"]


class OnnxClassifier(nn.Module):
    """A classifier whose features ONNX Runtime computes, and whose last layer is a ``torch.nn.Linear``.

    It has no gradients, is copied and pickled with the content of its file, and takes images of any number, also where
    the file has a fixed one. Where the file does not end in a linear map, it gives the file's logits.

    Parameters
    ----------
    path : Path
    """

    gradient_free = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        proto = read_file(path)
        self.path, self.given = path, input_of(proto, path)
        ending = read_ending(proto, path)
        self._program = cut_at(proto, ending.features or ending.logits)
        self._session: Any = None
        if ending.weight is not None:
            self.head = nn.Linear(ending.weight.shape[1], len(ending.weight), bias=ending.bias is not None)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(ending.weight))
                if ending.bias is not None:
                    self.head.bias.copy_(torch.from_numpy(ending.bias))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) of images (n, C, H, W)."""
        made = torch.from_numpy(self._run(x.detach().cpu().numpy())).to(x.device)
        if "head" not in self._modules:
            return made.flatten(1) if made.ndim > 1 else made
        head = self.head
        logits: torch.Tensor = head(made.flatten(1).to(head.weight.dtype))
        return logits

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Return what the file makes of images, in batches of its own size where that is fixed."""
        session, given = self._opened(), self.given
        if given.last:
            images = images.transpose(0, 2, 3, 1)
        images = np.ascontiguousarray(images, dtype=given.kind)
        size = given.batch or max(1, len(images))
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
        parts = [session.run(None, {given.name: padded[i : i + size]})[0] for i in range(0, len(padded), size)]
        return np.array(np.concatenate(parts)[: len(images)], dtype=np.float32)

    def _opened(self) -> Any:
        """Return ONNX Runtime's session, opened when it is first needed in a process."""
        if self._session is None:
            runtime = package("onnxruntime", extra="onnx")
            options = runtime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            try:
                self._session = runtime.InferenceSession(self._program, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # of operations that it does not know
                raise DataError(
                    f"{self.path} could not be opened by ONNX Runtime ({first_line(error)}); export it for its "
                    "operations"
                ) from error
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    @property
    def n_outputs(self) -> int | None:
        """How many outputs there are, where the file ends in a linear map."""
        return self.head.out_features if "head" in self._modules else None


def builder(name: str) -> Builder:
    """Return the function that opens the file; refuse one that is not there."""
    package("onnx", extra="onnx")
    package("onnxruntime", extra="onnx")
    if not Path(name).is_file():
        raise DataError(f"the ONNX file {name} does not exist; give an existing file")

    def build(settings: ModelSettings, n_classes: int | None) -> nn.Module:
        refuse_weights(settings, "an ONNX file")
        model = OnnxClassifier(Path(name))
        return chosen(model, settings, n_classes, model.n_outputs, name)

    return build


def refuse_weights(settings: ModelSettings, what: str) -> None:
    """Refuse weights of another file for a file that has its own."""
    if settings.weights is not None:
        raise SettingsError(f"{what} has its own weights, got model.weights={settings.weights}; leave that out")


def chosen(model: nn.Module, settings: ModelSettings, n_classes: int | None, width: int | None, name: str) -> nn.Module:
    """Return the model, or a classifier of its chosen outputs; refuse another number of classes than the data's."""
    if settings.outputs:
        check_outputs(settings.outputs, n_classes, width)
        return ChosenOutputs(model, settings.outputs)
    if width is not None and n_classes is not None and width != n_classes and not (width == 1 and n_classes == 2):
        raise DataError(
            f"the model in {name} has {width} outputs, and the data have {n_classes} classes; name the outputs that "
            "are the classes, in their order, by model.outputs (--outputs)"
        )
    return model


def transform(name: str, settings: ModelSettings) -> Any:
    """Return None: a file does not say how its images were prepared."""
    return None


def class_names(name: str, settings: ModelSettings) -> tuple[str, ...] | None:
    """Return None: a file does not name its classes."""
    return None


def facts(name: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    inner = model.model if isinstance(model, ChosenOutputs) else model
    assert isinstance(inner, OnnxClassifier)
    channels, height, width = inner.given.shape
    return Facts(f"the ONNX file {name}", height if height == width else None, channels)
