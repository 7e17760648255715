"""The forms in which a repaired classifier is written: each with its file, how it is opened, and by what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from exmap.errors import DataError
from exmap.export.head_alone import OwnLayer
from exmap.importing import package
from exmap.model import load_weights
from exmap.model.named import ChosenOutputs, hugging_face, kind_of, rest_of, whole_model
from exmap.model.named.hugging_face import whole_model as whole_hugging_face
from exmap.model.named.onnx_file import OnnxClassifier
from exmap.model.named.onnx_graph import read_ending, read_file, with_head
from exmap.model.named.scripted import ScriptedClassifier, open_script, set_layer
from exmap.model.named.words import quiet
from exmap.model.probe import copied
from exmap.model.rows import expanded
from exmap.model.safe import save_tensors
from exmap.model.weights_file import WeightsFile
from exmap.settings import ModelSettings

__all__ = ["FORM", "Form"]

PROCESSOR = ("preprocessor_config.json", "processor_config.json")


class Form:
    """How a repaired classifier is written."""

    words: ClassVar[str]
    asks_for_program: ClassVar[bool] = False

    def file(self, settings: ModelSettings) -> str:
        """Return the name of the file that is opened; "." for the folder itself."""
        raise NotImplementedError

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write it into a folder, and return what one should know of it."""
        raise NotImplementedError

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return what was written, opened again, as a classifier of the classes of the data."""
        raise NotImplementedError

    def opens(self, settings: ModelSettings, place: str) -> str:
        """Return a line of Python that opens it."""
        raise NotImplementedError


class Weights(Form):
    """A state dict: with the names, the containers and the kind of file of the user's own."""

    words = "a file of weights with your own names"

    def file(self, settings: ModelSettings) -> str:
        """Return the name, with the user's ending."""
        return f"repaired{'.safetensors' if settings.weights is None else settings.weights.suffix}"

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write the user's file again, with what was changed in its place."""
        inner, path = inner_of(model), part / self.file(settings)
        if settings.weights is None:
            save_tensors(_expanded_state(inner, settings, layer), path)
            return []
        found = WeightsFile.read(settings.weights, inner)
        content, left = found.changed(layer.changes, settings.outputs)
        notes = []
        if found.kind == "safetensors":
            save_tensors(content, path, found.metadata)
        else:
            torch.save(content, path.with_name(f"{path.name}.part"))
            os.replace(path.with_name(f"{path.name}.part"), path)
        if left:
            notes.append(
                f"The entries {', '.join(left)} of your file are objects, which exmap does not load; they are left out."
            )
        if found.beside:
            notes.append(
                f"Your file also holds weights as {', '.join(found.beside)}; these are as they were, and the repaired "
                f"ones are {'.'.join(found.container) or 'at the top'}."
            )
        return notes

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return a copy of the model with the weights of the file."""
        copy = copied(model).cpu()
        if layer.replaced:
            _give_bias(inner_of(copy), layer)
        outputs = () if isinstance(copy, ChosenOutputs) else settings.outputs
        load_weights(inner_of(copy), part / self.file(settings), outputs=outputs, halved=True)
        return copy

    def opens(self, settings: ModelSettings, place: str) -> str:
        """Return how the weights are loaded."""
        if place.endswith(".safetensors"):
            return f'model.load_state_dict(safetensors.torch.load_file("{place}"))'
        return f'torch.load("{place}", weights_only=True)'


class OwnModule(Weights):
    """The state of a model whose last layer could not be replaced by a plain one."""

    words = "the state of exmap's own module around your model"
    asks_for_program = True

    def file(self, settings: ModelSettings) -> str:
        """Return the name."""
        return "repaired-module.safetensors"

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write the whole state."""
        self.repaired = repaired
        save_tensors(repaired.state_dict(), part / self.file(settings))
        return []

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return a copy of the repaired model with the weights of the file."""
        copy = copied(self.repaired).cpu()
        load_weights(copy, part / self.file(settings))
        return copy


class HuggingFace(Form):
    """A folder of Hugging Face transformers."""

    words = "a Hugging Face folder"

    def file(self, settings: ModelSettings) -> str:
        """Return the folder itself."""
        return "."

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write configuration, weights and image processor."""
        name = rest_of(settings.name)
        whole: Any = whole_hugging_face(name)
        if layer.replaced:
            raise DataError(
                "the last layer of a Hugging Face classifier must have a bias to be written back, but this one has "
                "none; take head.safetensors of exmap's own run"
            )
        state = whole.state_dict()
        for key, value in layer.changes.items():
            state[key] = expanded(state[key], value, settings.outputs)
        whole.load_state_dict(state)
        with quiet():
            whole.save_pretrained(part)
        folder = Path(name)
        for file in PROCESSOR:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, part / file)
        if not folder.is_dir() and (processor := hugging_face.transform(name, settings)) is not None:
            processor.save_pretrained(part)
        return []

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return what transformers makes of the folder."""
        whole = whole_hugging_face(str(part))
        return _of_outputs(whole, settings)

    def opens(self, settings: ModelSettings, place: str) -> str:
        """Return how transformers opens it."""
        return f'transformers.AutoModelForImageClassification.from_pretrained("{place}")'


class Onnx(Form):
    """The user's ONNX file with another last layer."""

    words = "an ONNX file"

    def file(self, settings: ModelSettings) -> str:
        """Return the name."""
        return "repaired.onnx"

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write the file with the new weight and bias in place of the old."""
        inner = inner_of(model)
        assert isinstance(inner, OnnxClassifier)
        proto = read_file(inner.path)
        weight, bias = _whole_head(inner, layer)
        made = with_head(proto, read_ending(proto, inner.path), weight.numpy(), bias.numpy())
        path = part / self.file(settings)
        package("onnx", extra="onnx").save(made, str(path))
        return []

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return what ONNX Runtime makes of the file."""
        made = OnnxClassifier(part / self.file(settings))
        return _of_outputs(made, settings)

    def opens(self, settings: ModelSettings, place: str) -> str:
        """Return how ONNX Runtime opens it."""
        return f'onnxruntime.InferenceSession("{place}")'


class TorchScript(Form):
    """The user's TorchScript program with another last layer."""

    words = "a TorchScript program"

    def file(self, settings: ModelSettings) -> str:
        """Return the name."""
        return "repaired.pt"

    def write(
        self, model: nn.Module, repaired: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path
    ) -> list[str]:
        """Write the program with the new weight and bias in place of the old."""
        inner = inner_of(model)
        assert isinstance(inner, ScriptedClassifier)
        script = set_layer(open_script(inner.path), inner.layer, *_whole_head(inner, layer))
        with quiet():
            torch.jit.save(script, str(part / self.file(settings)))
        return []

    def opened(self, model: nn.Module, settings: ModelSettings, layer: OwnLayer, part: Path) -> nn.Module:
        """Return the program as torch loads it."""
        made: nn.Module = open_script(part / self.file(settings))
        return _of_outputs(made, settings)

    def opens(self, settings: ModelSettings, place: str) -> str:
        """Return how torch opens it."""
        return f'torch.jit.load("{place}")'


def _of_outputs(model: nn.Module, settings: ModelSettings) -> nn.Module:
    """Return the classifier of the outputs that the settings name."""
    return ChosenOutputs(model, settings.outputs) if settings.outputs else model


FORM: dict[str, type[Form]] = {
    "weights": Weights,
    "module": OwnModule,
    "hf": HuggingFace,
    "onnx": Onnx,
    "torchscript": TorchScript,
}


def inner_of(model: nn.Module) -> nn.Module:
    """Return the user's own model, inside a choice of its outputs."""
    found: nn.Module = model.model if isinstance(model, ChosenOutputs) else model
    return found


def _whole_head(inner: nn.Module, layer: OwnLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of all outputs of a model in a file."""
    state = inner.state_dict()
    if not layer.names:
        raise DataError("a model in a file can only be repaired in its last layer; give what Analysis.repair returns")
    weight, bias = (layer.changes.get(f"head.{part}", state.get(f"head.{part}")) for part in ("weight", "bias"))
    assert weight is not None
    made = torch.zeros(len(weight)) if bias is None else bias
    return weight.detach().cpu().float(), made.detach().cpu().float()


def _expanded_state(inner: nn.Module, settings: ModelSettings, layer: OwnLayer) -> dict[str, torch.Tensor]:
    """Return the model's state with the changes; with all outputs, where it was built with the chosen ones alone."""
    kind = kind_of(settings.name)
    if kind in ("torchvision", "timm") and settings.outputs:
        state = dict(whole_model(settings).state_dict())
        return state | {key: expanded(state[key], value, settings.outputs) for key, value in layer.changes.items()}
    return dict(inner.state_dict()) | dict(layer.changes)


def _give_bias(model: nn.Module, layer: OwnLayer) -> None:
    """Give the last layer of a copy a bias, which the written weights have."""
    name = layer.names[0].rpartition(".")[0]
    old = model.get_submodule(name)
    shape = layer.changes[layer.names[1]].shape
    if getattr(old, "bias", None) is None:
        old.bias = nn.Parameter(torch.from_numpy(np.zeros(shape, dtype=np.float32)))
