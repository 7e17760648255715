"""Build a classifier, and treat any classifier as features followed by a linear head.

Nothing is asked of a user's model but that its output comes from a ``torch.nn.Linear``: the head is found by
running the model once and looking for the linear layer whose output *is* the model's output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.config import ModelSettings
from exmap.data.dataset import Split
from exmap.errors import CheckpointError, DataError, SettingsError, unknown_name
from exmap.model.batches import computed_batches, is_first
from exmap.model.small_maps import small_maps_as_products
from exmap.records import Listener, Outputs, Progress, silent
from exmap.runtime import torch_seed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["build_model", "collect_outputs", "evaluation_mode", "find_head", "replace_head"]


RESNETS = {"resnet18": "ResNet18_Weights", "resnet34": "ResNet34_Weights", "resnet50": "ResNet50_Weights"}


def build_model(settings: ModelSettings, n_classes: int, *, seed: int) -> nn.Module:
    """Build a classifier; where its weights are random, they depend on `seed` alone.

    Parameters
    ----------
    settings : ModelSettings
        ``stem="3x3"`` is the paper's network for small images: a 3 x 3 stride-1 convolution and no max-pooling.
        ``pretrained`` takes torchvision's ImageNet weights (version 1, the paper's) for all but the last layer.
    n_classes : int
    seed : int

    Raises
    ------
    SettingsError
        For an unknown architecture.
    CheckpointError
        If the ImageNet weights can neither be found nor downloaded.
    """
    if settings.name not in RESNETS:
        raise SettingsError(unknown_name("model", settings.name, RESNETS))
    from torchvision import models

    with torch_seed(seed):
        model: nn.Module = getattr(models, settings.name)(num_classes=n_classes)
        if settings.stem == "3x3":
            stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.conv1 = stem
            model.maxpool = nn.Identity()
    if settings.pretrained:
        _load_imagenet(model, getattr(models, RESNETS[settings.name]).IMAGENET1K_V1)
    return model


def _load_imagenet(model: nn.Module, weights: Any) -> None:
    """Load torchvision's weights, from its cache or by download, into all but the last layer."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        missing, unknown = model.load_state_dict(state, strict=False)
    except Exception as error:  # no network, a damaged file, weights of another network: each has its own kind
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the ImageNet weights could not be loaded ({reason}); put {weights.url} into {folder}, or set "
            "model.pretrained=false"
        ) from error
    if unknown or any(not name.startswith("fc.") for name in missing):
        raise CheckpointError(
            f"the ImageNet weights in {folder} must be those of the network, but they lack "
            f"{', '.join(missing[:3]) or 'nothing'} and have {', '.join(unknown[:3]) or 'nothing'} too much; delete "
            "the file there"
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode inside the block, and each back into its own mode on leaving."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def images_at_once(split: Split) -> int:
    """Return how many images are run at once without gradients: 500, or fewer large ones."""
    _, height, width = split.images.shape
    return min(500, max(8, 64 * 224**2 // (height * width)))


def to_tensor(batch: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Return a batch of images as a channels-last tensor on `device`."""
    return torch.from_numpy(batch).to(device).contiguous(memory_format=torch.channels_last)


def find_head(model: nn.Module, images: NDArray[np.float32]) -> str:
    """Return the name of the linear layer that makes the model's output.

    Parameters
    ----------
    model : torch.nn.Module
    images : ndarray of float32, shape (n, C, H, W)
        A few images to run the model on.

    Raises
    ------
    DataError
        If the model's output is not the output of a ``torch.nn.Linear`` on vectors.
    """
    made_by: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: made_by.__setitem__(name, out))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad(), evaluation_mode(model):
            output = model(to_tensor(images, model_device(model)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, made in made_by.items():
        if made is output and output.ndim == 2:
            return name
    kind = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
    raise DataError(
        "the model must end in a torch.nn.Linear that makes its (n, n_classes) output; found an output of "
        f"{kind} made by something else. Move what follows the linear layer (softmax, reshape) out of forward"
    )


def replace_head(model: nn.Module, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> nn.Module:
    """Return a copy of the model with another last layer; the model itself stays as it is.

    Parameters
    ----------
    model : torch.nn.Module
    name : str
        Of the linear layer, as :func:`find_head` returns it; empty if the model is that layer.
    weight : ndarray of float32, shape (K, D)
    bias : ndarray of float32, shape (K,)
    """
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with torch_seed(0):  # the random weights it starts with are replaced
        head = nn.Linear(weight.shape[1], weight.shape[0], device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    head.train(old.training)
    if not name:
        return head
    copied = copy.deepcopy(model)
    parent, _, leaf = name.rpartition(".")
    setattr(copied.get_submodule(parent), leaf, head)
    return copied


def collect_outputs(
    model: nn.Module,
    split: Split,
    *,
    head: str | None = None,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> Outputs:
    """Run the model over a split and return penultimate features and logits, in order.

    Parameters
    ----------
    model : torch.nn.Module
        Ends in a linear layer; returned in the mode it came in.
    split : Split
    head : str, optional
        Name of the last linear layer; found by :func:`find_head` if not given.
    batch_size : int, optional
        By default 500, or fewer of large images.
    fabric : Fabric, optional
        Launched, for several processes; all come here with the same model. This process alone by default.
    listen : Listener

    Returns
    -------
    Outputs
        float32 whatever the model computes in. With several processes the first has all images, the others none.
    """
    if head is None:
        head = find_head(model, split.images.batch(np.arange(min(2, len(split)), dtype=np.int64)))
    last = model.get_submodule(head)
    assert isinstance(last, nn.Linear)
    count = len(split) if is_first(fabric) else 0
    features = np.empty((count, last.in_features), dtype=np.float32)
    logits = np.empty((count, last.out_features), dtype=np.float32)
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    device = model_device(model)

    def compute(_: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        seen.clear()
        found = model(to_tensor(images, device))
        return [seen[-1].float(), found.float()]

    try:
        with torch.inference_mode(), evaluation_mode(model), small_maps_as_products(model):
            for part, made in computed_batches(split, batch_size or images_at_once(split), compute, fabric):
                features[part], logits[part] = made
                listen(Progress(f"features ({split.name})", part.stop, len(split)))
    finally:
        hook.remove()
    return Outputs(features, logits)
