"""Settings of the classifier, of its training, and of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from exmap.registry import MODELS, Registry
from exmap.settings.section import ChoosingSection, Count, Epochs, Section

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
        First layers of a ResNet: ``3x3`` is a stride-1 convolution without max-pooling, for small images.
    pretrained : bool
        Whether a ResNet starts from torchvision's ImageNet weights (except for the last layer), which are downloaded
        once.
    weights : Path or None
        File with all weights to start from: safetensors, or one that torch.save wrote; nothing in it is executed.
    outputs : tuple of int
        Numbers of the outputs that are the classes of the data, in their order; empty if all are.
    trained : bool
        Whether the weights are already those of the trained classifier; ``train`` then only says how learners of the
        whole network train it.
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
        Number of epochs; with 0 the model keeps its starting weights, for a classifier that was trained elsewhere.
    batch_size : int
        Images per step, over all processes.
    learning_rate : float
        Learning rate of SGD; it falls to zero over the epochs, as a cosine.
    momentum : float
        Momentum of SGD.
    weight_decay : float
        Weight decay of SGD.
    select : "worst_class", "mean" or "last"
        Epoch whose weights are kept: best accuracy in the worst class, best mean accuracy, or the last epoch.
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
        Device that torch computes on; auto chooses the best available one.
    devices : int
        Number of processes on each host, each with its own device (or a share of the CPU).
    num_nodes : int
        Number of hosts. On more than one, torchrun or ``fabric run`` starts the processes.
    precision : "auto", "32-true", "bf16-mixed" or "16-mixed"
        Precision of training; auto takes what is quickest on the device, and may be another where a run is continued.
    threads : "auto" or int
        Number of threads of torch and linear algebra; auto takes one for each free core. Results differ only by
        rounding.
    engine : "local" or "ray"
        What computes heatmaps, features and logits: this process and those that `devices` asks for, or the workers of a
        Ray cluster. Training stays here.
    address : str or None
        Address of a running Ray cluster, as ``HOST:PORT``, or ``auto`` for one that this machine belongs to; None
        starts one on this machine and stops it again.
    actors : int or None
        Number of workers on the Ray cluster; None starts one for each GPU, or for each core where there is no GPU.
    shard_images : int or None
        Images that a worker computes at a time, and that are kept once they are finished; None takes 256 to 8,192, by
        their size. A number also divides the work of a single process, which then continues from the last shard.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, ge=1, le=256)
    num_nodes: int = Field(1, ge=1, le=10_000)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    actors: int | None = Field(None, ge=1, le=100_000)
    shard_images: Count | None = None

    @property
    def processes(self) -> int:
        """Number of processes on all hosts together."""
        return self.devices * self.num_nodes
