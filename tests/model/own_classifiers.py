"""Small classifiers of every form that users have: one function each, random weights, 3 x 16 x 16 images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as own_weights
from torch import nn
from torch.nn.utils import prune

IMAGES = np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)
D = 8


def maps() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, D, 3, padding=1), nn.ReLU())


def vectors() -> nn.Module:
    return nn.Sequential(maps(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


class Own(nn.Module):
    """A user's own class: a forward, and modules and parameters by name."""

    def __init__(self, run: Callable[[Any, torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


class OwnHead(nn.Module):
    """A linear layer by hand that adds its bias in place."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.constant = numbers(D, 3), numbers(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x @ self.kernel
        z += self.constant
        return z


class Cosine(nn.Module):
    """Logits by the angle to a vector for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.log_scale = numbers(3, D), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.log_scale.exp() * F.linear(F.normalize(x), F.normalize(self.weight))


def with_linear(run: Callable[[Any, torch.Tensor], Any], out: int = 3) -> Callable[[], nn.Module]:
    """Return a maker of a model whose `run` calls self.body and self.fc."""
    return lambda: Own(run, body=vectors(), fc=nn.Linear(D, out))


def on_maps(run: Callable[[Any, torch.Tensor], Any], out: int = 3) -> Callable[[], nn.Module]:
    """Return a maker of a model whose `run` calls self.body and the 1 x 1 convolution self.fc."""
    return lambda: Own(run, body=maps(), fc=nn.Conv2d(D, out, 1))


def on_tokens(run: Callable[[Any, torch.Tensor], Any]) -> Callable[[], nn.Module]:
    """Return a maker of a model whose `run` calls self.body and self.fc on tokens."""
    return lambda: Own(lambda own, x: run(own, own.body(x).flatten(2).transpose(1, 2)), body=maps(), fc=nn.Linear(D, 3))


def of_parameters(run: Callable[[Any, torch.Tensor], Any], *shape: int, bias: bool = True) -> Callable[[], nn.Module]:
    """Return a maker of a model whose `run` uses self.weight and self.bias."""
    parts = {"bias": 3} if bias else {}
    return lambda: Own(
        run,
        body=maps() if len(shape) > 2 else vectors(),
        weight=numbers(*shape),
        **{k: numbers(n) for k, n in parts.items()},
    )


def ends_in(*last: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(vectors(), *(make() for make in last))


def linear(out: int = 3, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(D, out, **changes)


def pruned() -> nn.Module:
    layer: nn.Module = prune.l1_unstructured(nn.Linear(D, 3), "weight", 0.3)
    return layer


def twice_named() -> nn.Module:
    model = with_linear(lambda own, x: own.fc(own.body(x)))()
    model.again = model.fc
    return model


# name: (maker, name of the head, whether the copy with another head is of the same class)
HEADS: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "linear": (ends_in(linear()), "1", True),
    "no bias": (ends_in(linear(bias=False)), "1", True),
    "mlp": (ends_in(linear(D), nn.ReLU, linear(), nn.Dropout), "3", True),
    "softmax": (ends_in(linear(), lambda: nn.Softmax(dim=1)), "1", True),
    "log-softmax": (with_linear(lambda own, x: F.log_softmax(own.fc(own.body(x)), dim=-1)), "fc", True),
    "log of softmax": (with_linear(lambda own, x: (own.fc(own.body(x)).softmax(1) + 1e-9).log()), "fc", True),
    "sigmoids": (with_linear(lambda own, x: torch.sigmoid(own.fc(own.body(x)))), "fc", True),
    "sigmoids in place": (with_linear(lambda own, x: own.fc(own.body(x)).sigmoid_()), "fc", True),
    "one logit": (ends_in(linear(1)), "1", True),
    "one logit, squeezed": (with_linear(lambda own, x: own.fc(own.body(x)).squeeze(1), 1), "fc", True),
    "one probability": (with_linear(lambda own, x: own.fc(own.body(x)).sigmoid().squeeze(1), 1), "fc", True),
    "one logit, two probabilities": (
        with_linear(lambda own, x: (lambda p: torch.cat([1 - p, p], dim=1))(own.fc(own.body(x)).sigmoid()), 1),
        "fc",
        True,
    ),
    "convolution on 1 x 1": (
        lambda: nn.Sequential(maps(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(D, 3, 1)),
        "2",
        True,
    ),
    "convolution, then mean": (
        lambda: nn.Sequential(maps(), nn.Conv2d(D, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "1",
        True,
    ),
    "convolution, mean, softmax": (on_maps(lambda own, x: own.fc(own.body(x)).mean((2, 3)).softmax(1)), "fc", True),
    "convolution, then sum": (on_maps(lambda own, x: own.fc(own.body(x)).flatten(2).sum(-1)), "fc", True),
    "convolution at one place": (on_maps(lambda own, x: own.fc(own.body(x))[:, :, 4, 7]), "fc", True),
    "tokens, then mean": (on_tokens(lambda own, tokens: own.fc(tokens).mean(1)), "fc", True),
    "first token": (on_tokens(lambda own, tokens: own.fc(tokens)[:, 0]), "fc", True),
    "function": (of_parameters(lambda own, x: F.linear(own.body(x), own.weight, own.bias), 3, D), "", True),
    "function, softmax": (
        of_parameters(lambda own, x: F.linear(own.body(x), own.weight, own.bias).softmax(1), 3, D),
        "",
        True,
    ),
    "addmm": (of_parameters(lambda own, x: torch.addmm(own.bias, own.body(x), own.weight), D, 3), "", True),
    "addmm, transposed": (
        of_parameters(lambda own, x: torch.addmm(own.bias, own.body(x), own.weight.T), 3, D),
        "",
        True,
    ),
    "function on maps": (
        of_parameters(lambda own, x: F.conv2d(own.body(x), own.weight, own.bias).mean((-1, -2)), 3, D, 1, 1),
        "",
        True,
    ),
    "matmul": (of_parameters(lambda own, x: own.body(x) @ own.weight + own.bias, D, 3), "", False),
    "function without bias": (
        of_parameters(lambda own, x: F.linear(own.body(x), own.weight), 3, D, bias=False),
        "",
        False,
    ),
    "einsum": (of_parameters(lambda own, x: torch.einsum("nd,kd->nk", own.body(x), own.weight), 3, D), "", False),
    "own layer": (ends_in(OwnHead), "1", True),
    "cosine": (ends_in(Cosine), "1", False),
    "temperature": (with_linear(lambda own, x: own.fc(own.body(x)) / 0.07), "fc", True),
    "prior": (with_linear(lambda own, x: own.fc(own.body(x)) + torch.tensor([0.1, -3.0, 2.0])), "fc", True),
    "normalised after": (ends_in(linear(), lambda: nn.BatchNorm1d(3)), "1", True),
    "normalised before": (ends_in(lambda: nn.LayerNorm(D), linear()), "2", True),
    "three of six": (with_linear(lambda own, x: own.fc(own.body(x))[:, [4, 1, 2]], 6), "fc", True),
    "weight norm": (ends_in(lambda: own_weights.weight_norm(nn.Linear(D, 3))), "1", True),
    "old weight norm": (ends_in(lambda: nn.utils.weight_norm(nn.Linear(D, 3))), "1", True),
    "old weight norm before": (
        ends_in(lambda: nn.utils.weight_norm(nn.Linear(D, D)), nn.ReLU, linear()),
        "3",
        True,
    ),
    "spectral norm": (ends_in(lambda: own_weights.spectral_norm(nn.Linear(D, 3))), "1", True),
    "weight norm on maps": (
        lambda: nn.Sequential(
            maps(), own_weights.weight_norm(nn.Conv2d(D, 3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        "1",
        True,
    ),
    "pruned": (ends_in(pruned), "1", True),
    "frozen": (lambda: ends_in(linear())().requires_grad_(False), "1", True),
    "a module under two names": (twice_named, "fc", True),
    "float64": (lambda: ends_in(linear())().double(), "1", True),
    "bfloat16": (lambda: ends_in(linear())().bfloat16(), "1", True),
    "float16": (lambda: ends_in(linear())().half(), "1", True),
    "tuple": (with_linear(lambda own, x: (own.fc(own.body(x)), 1)), "fc", True),
    "dict": (with_linear(lambda own, x: {"maps": own.body[0](x), "scores": own.fc(own.body(x))}), "fc", True),
    "fx": (lambda: torch.fx.symbolic_trace(ends_in(linear())()), "1", True),
}

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "average of weights": torch.optim.swa_utils.AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[arg-type, return-value]
}


def made(kind: str) -> nn.Module:
    """Return the model of a kind in evaluation mode, with batch statistics of the images."""
    torch.manual_seed(0)
    model = HEADS[kind][0]()
    if kind == "normalised after":
        model.train()(torch.from_numpy(IMAGES))
    return model.eval()
