"""Settings of the classifier, of its training, and of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from exmap.registry import MODELS, Registry
from exmap.settings.section import ChoosingSection, Epochs, Section

__all__ = ["ModelSettings", "RuntimeSettings", "TrainSettings"]


class ModelSettings(ChoosingSection):
    """The classifier.

    Options of the architecture stand beside these settings: the arguments of the function that builds it.

    Attributes
    ----------
    name : str
        A registered architecture, such as ``resnet18``; ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER_OR_ID``,
        ``onnx:FILE`` or ``torchscript:FILE``; or a dotted path ``package.module:function`` or ``FILE.py:function`` of a
        function that returns a module and may take the number of classes as ``n_classes``.
    stem : "imagenet" or "3x3"
        Of the ResNets: the latter is a 3 x 3 stride-1 convolution and no max-pooling, for small images.
    pretrained : bool
        Of the ResNets: whether the weights start as torchvision's ImageNet weights (all but the last layer), which it
        downloads once.
    weights : Path or None
        A file of all weights to start with: safetensors, or what torch.save wrote, of which nothing is executed.
    outputs : tuple of int
        Which of its outputs are the classes of the data, in their order; empty where all are.
    trained : bool
        Whether these weights are the classifier's own, which is not trained any further; ``train`` then only says how
        learners of the whole network train it.
    """

    registry: ClassVar[Registry] = MODELS
    choice: ClassVar[str] = "name"

    name: str = "resnet18"
    stem: Literal["imagenet", "3x3"] = "imagenet"
    pretrained: bool = False
    weights: Path | None = None
    outputs: tuple[Annotated[int, Field(ge=0, lt=1_000_000)], ...] = ()
    trained: bool = False

    @model_validator(mode="after")
    def _one_start(self) -> ModelSettings:
        if self.pretrained and (self.stem != "imagenet" or self.weights is not None):
            raise ValueError(
                "model.pretrained needs model.stem=imagenet and no model.weights; set one of them otherwise"
            )
        return self


class TrainSettings(Section):
    """Empirical risk minimisation: SGD with a cosine schedule (ExMap supplement, section 2.3).

    Attributes
    ----------
    epochs : int
        With 0 the model stays as its starting weights have it: a classifier that was trained elsewhere.
    batch_size : int
        Images per step, over all processes.
    learning_rate, momentum, weight_decay : float
        Of SGD; the learning rate falls to zero over the epochs, as a cosine.
    select : "worst_class", "mean" or "last"
        Which epoch's weights are kept: that of the best accuracy in the worst class, or over all, or the last one.
    """

    epochs: Epochs = 10
    batch_size: int = Field(128, ge=2, le=1_000_000)
    learning_rate: float = Field(3e-3, gt=0, le=1e38)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, le=1e38)
    select: Literal["worst_class", "mean", "last"] = "worst_class"


class RuntimeSettings(Section):
    """Where and how torch computes.

    Attributes
    ----------
    accelerator : "auto", "cpu", "cuda" or "mps"
        What torch computes on; auto takes the best that is there.
    devices : int
        Processes on each host, each with a device of its own (or a share of the CPU).
    num_nodes : int
        Hosts. On more than one, torchrun or ``fabric run`` starts the processes.
    precision : "auto", "32-true", "bf16-mixed" or "16-mixed"
        Of training; auto takes what the device does by itself, and the same again where a run is continued.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, ge=1, le=256)
    num_nodes: int = Field(1, ge=1, le=10_000)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"

    @property
    def processes(self) -> int:
        """Number of processes on all hosts together."""
        return self.devices * self.num_nodes
