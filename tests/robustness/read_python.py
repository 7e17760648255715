"""What a user holds in Python: arrays, classifiers and what they answer, features."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from reader import refused
from torch import nn

import exmap
from exmap.cluster.kmeans import SampledKMeans
from exmap.cluster.spectral import SpectralEigengap
from exmap.data.given import as_split
from exmap.errors import ExMapError
from exmap.model import logits_of
from exmap.retrain import DFRClassifier

__all__ = [
    "ANSWERS",
    "OUTPUTS",
    "features",
    "given_arrays",
    "judge_answer",
    "judge_arrays",
    "judge_clusters",
    "judge_dfr",
    "judge_output",
]


KINDS_OF_NUMBERS = (
    "uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "bool", "object", "complex64",
)  # fmt: skip


@st.composite
def given_arrays(draw: Any) -> tuple[Any, Any, Any]:
    """Draw images, labels and class names as a user may have them."""
    count = draw(st.sampled_from((0, 1, 2, 6, 12)))
    shape = draw(
        st.sampled_from(
            (
                (3, 4, 4),
                (4, 4, 3),
                (1, 4, 4),
                (4, 4),
                (4, 4, 1),
                (2, 4, 4),
                (4, 4, 4),
                (16,),
                (3, 4, 5),
                (0, 4, 4),
                (3, 1, 4, 4),
            )
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    top = draw(st.sampled_from((1.0, 255.0, 1000.0, 0.0, -1.0)))
    images = rng.random((count, *shape)) * top
    bad = draw(st.sampled_from((None, None, None, np.nan, np.inf, -1e30)))
    if bad is not None and images.size:
        images.flat[rng.integers(images.size)] = bad
    with np.errstate(all="ignore"):
        made: Any = images.astype(draw(st.sampled_from(KINDS_OF_NUMBERS)))
    wrap = draw(st.sampled_from(("array", "array", "list", "tensor", "bytes")))
    if wrap == "list":
        made = list(made)
    elif wrap == "tensor" and made.dtype != object and made.dtype.kind in "fiub" and made.dtype != np.uint16:
        made = torch.from_numpy(made)
    elif wrap == "bytes":
        made = [b"x"] * count
    labels = draw(
        st.sampled_from(
            (
                np.arange(count) % 2,
                (np.arange(count) % 2).astype(float),
                np.arange(count) % 2 + 1,
                np.arange(count) % 2 * 0.9,
                ["a", "b"] * (count // 2),
                [None] * count,
                np.full(count, np.nan),
                np.eye(2)[np.arange(count) % 2],
                [b"a"] * count,
                np.arange(count) - 1,
                [True, False] * (count // 2),
                [[0]] * count,
                np.arange(count + 1) % 2,
                np.full(count, 10**18),
                torch.arange(count) % 2,
                ["1", 1] * (count // 2),
                "ab",
                7,
                None,
                (np.arange(count) % 2).astype("uint8"),
                np.array(["x"] * count, dtype=object),
                [{"a": 1}] * count,
                np.full(count, 1e300),
            )
        )
    )
    names = draw(
        st.sampled_from(
            (None, None, ("a", "b"), ("b", "a"), ("a",), (), ("a", "a"), ("0", "1"), ("a", "b", "c"), (1, 2), "ab")
        )
    )
    return made, labels, names


def judge_arrays(given: tuple[Any, Any, Any]) -> list[str]:
    images, labels, names = given
    split = as_split((images, labels), class_names=names)
    if len(split) != len(images):
        return [f"{len(split)} images of {len(images)}"]
    if len(split) == 0:
        return ["no images, and no word about it"]
    pixels = split.images.pixels(np.arange(len(split)))
    faults = []
    if pixels.dtype != np.float32 or pixels.ndim != 4:
        faults.append(f"pixels are {pixels.dtype}, {pixels.shape}")
    if split.labels.min() < 0 or split.labels.max() >= len(split.class_names):
        faults.append(f"labels {split.labels} of {split.class_names}")
    if len(set(split.class_names)) < len(split.class_names):
        faults.append(f"class names {split.class_names}")
    kind = np.asarray(images[0]).dtype.kind if len(images) else "f"
    if kind in "iub" and np.abs(pixels).max() > 1.0001:
        faults.append(f"whole numbers are taken as they are: up to {pixels.max()}")
    flat = np.asarray(labels)
    if flat.ndim == 1 and flat.dtype.kind in "US":
        called = [split.class_names[label] for label in split.labels]
        if called != [text.decode() if isinstance(text, bytes) else str(text) for text in flat]:
            faults.append(f"labels {list(flat)[:3]} are {called[:3]}")
    if (
        flat.ndim == 1
        and flat.dtype.kind in "iuf"
        and names is None
        and len({*flat.tolist()}) != len({*split.labels.tolist()})
    ):
        faults.append(f"labels {sorted({*flat.tolist()})} are {sorted({*split.labels.tolist()})}")
    return faults


class Says(nn.Module):
    """A classifier that says what it is told to."""

    def __init__(self, say: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.say = say

    def forward(self, x: torch.Tensor) -> Any:
        return self.say(self.fc(x.mean((2, 3))))


def _poisoned(z: torch.Tensor, value: float) -> torch.Tensor:
    z = z.clone()
    z[0, 0] = value
    return z


ANSWERS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    # by name: what is said of two logits z, and whether that is `right` (the same predictions), or to be `refused`
    "logits": (lambda z: z, "right"),
    "softmax": (lambda z: z.softmax(1), "right"),
    "log softmax": (lambda z: z.log_softmax(1), "right"),
    "double": (lambda z: z.double(), "right"),
    "half": (lambda z: (8 * z).half(), "right"),
    "mapping": (lambda z: {"logits": z}, "right"),
    "tuple": (lambda z: (z,), "either"),
    "4 dimensions": (lambda z: z[:, :, None, None], "right"),
    "one logit": (lambda z: z[:, 1:] - z[:, :1], "right"),
    "one flat logit": (lambda z: z[:, 1] - z[:, 0], "right"),
    "three": (lambda z: torch.cat([z, z[:, :1] - 1], 1), "refused"),
    "ten": (lambda z: z.repeat(1, 5), "refused"),
    "none": (lambda z: None, "refused"),
    "text": (lambda z: "cat", "refused"),
    "loss": (lambda z: z.mean(), "refused"),
    "transposed": (lambda z: z.T, "refused"),
    "labels": (lambda z: z.argmax(1), "refused"),
    "nothing": (lambda z: z[:, :0], "refused"),
    "empty mapping": (lambda z: {}, "refused"),
    "one row less": (lambda z: z[1:], "refused"),
    "one row": (lambda z: z[:1], "refused"),
    "NaN": (lambda z: z * float("nan"), "refused"),
    "one NaN": (lambda z: _poisoned(z, float("nan")), "refused"),
    "one infinity": (lambda z: _poisoned(z, float("inf")), "refused"),
    "random": (lambda z: z + torch.randn_like(z), "refused"),
    "of the batch": (lambda z: z - z.mean(0), "refused"),
    "ordered": (lambda z: z.sort(0).values, "refused"),
    "complex": (lambda z: z.to(torch.complex64), "refused"),
    "whole numbers": (lambda z: (100 * z).long(), "either"),
    "numpy": (lambda z: z.detach().numpy(), "either"),
    "list": (lambda z: z.tolist(), "either"),
    "detached": (lambda z: z.detach(), "either"),
    "raises": (lambda z: {}["x"], "raises"),
}


@cache
def shown_images() -> Any:
    rng = np.random.default_rng(5)
    return as_split((rng.random((24, 3, 6, 6)).astype(np.float32), rng.integers(0, 2, 24)), class_names=("a", "b"))


def judge_answer(given: tuple[str, int, bool, str]) -> list[str]:
    """A classifier's answers are measured as what they are, or refused; the classifier is left as it was."""
    name, number, training, kind = given
    say, due = ANSWERS[name]
    split = shown_images()
    with torch.random.fork_rng():
        torch.manual_seed(number)
        plain = Says(lambda z: z)
        nn.init.normal_(plain.fc.weight, std=3)
    model = Says(say)
    model.load_state_dict(plain.state_dict())
    model = model.to({"float": torch.float32, "double": torch.float64, "half": torch.float16}[kind])
    model.train(training)
    state, draws = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    faults = []
    try:
        table = exmap.evaluate(model, split)
        if due == "refused":
            faults.append(f"{name}: measured, as {table.mean:.3f}")
        elif due in ("right", "either") and kind != "half":
            with torch.no_grad():
                right = plain(torch.from_numpy(split.images.pixels(np.arange(24)))).argmax(1).numpy() == split.labels
            if abs(table.mean - right.mean()) > 1e-9:
                faults.append(f"{name}: measured {table.mean}, and is {right.mean()}")
    except ExMapError as error:
        faults += refused(str(error))
        if due == "right" and kind != "half":
            faults.append(f"{name}: refused: {error}")
    except KeyError:
        if due != "raises":
            raise
    if model.training != training or any(not torch.equal(v, state[k]) for k, v in model.state_dict().items()):
        faults.append(f"{name}: the classifier is changed")
    if not torch.equal(torch.get_rng_state(), draws) and name != "random":
        faults.append(f"{name}: the generator of torch is changed")
    return faults


OUTPUTS = st.recursive(
    st.sampled_from(
        ((), (4,), (4, 1), (4, 2), (1, 4), (4, 2, 1, 1), (4, 2, 3, 3), (0, 2), (4, 0), (2, 4), (1,), (4, 1, 1, 1))
    ).flatmap(
        lambda shape: st.sampled_from((torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64)).map(
            lambda kind: torch.zeros(shape, dtype=kind)
        )
    )
    | st.none()
    | st.text(max_size=3)
    | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(("logits", "loss", "out", "x")), inner, max_size=3)
    ),
    max_leaves=4,
)


def judge_output(output: Any) -> list[str]:
    found = logits_of(output, 4)
    return [] if found.ndim == 2 and len(found) == 4 and found.shape[1] > 1 else [f"shape {tuple(found.shape)}"]


@st.composite
def features(draw: Any) -> tuple[Any, Any]:
    n, d = draw(st.integers(0, 30)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    X = rng.normal(size=(n, d)) * draw(st.sampled_from((1.0, 0.0, 1e-30, 1e30, 1e300)))
    if n and d:
        special = draw(st.sampled_from((None, None, np.nan, np.inf, "copies", "constant")))
        if special == "copies":
            X = X[rng.integers(0, max(1, n // 3), n)]
        elif special == "constant":
            X[:, 0] = 7
        elif special is not None:
            X[rng.integers(n), rng.integers(d)] = special
    groups = rng.integers(0, draw(st.integers(1, 4)), n)
    return X, groups


def judge_dfr(given: tuple[Any, Any]) -> list[str]:
    """A last layer that was fitted is finite, and the same again."""
    X, groups = given
    try:
        with np.errstate(all="ignore"):
            fits = [DFRClassifier(strengths=(1.0,), subsamples=2, random_state=0).fit(X, groups) for _ in range(2)]
    except ValueError as error:
        return refused(str(error))  # as scikit-learn says it
    if not np.isfinite(fits[0].coef_).all() or not np.isfinite(fits[0].intercept_).all():
        return ["weights are not finite"]
    return [] if np.array_equal(fits[0].coef_, fits[1].coef_) else ["another result for the same data"]


def judge_clusters(given: tuple[tuple[Any, Any], str]) -> list[str]:
    """Clusters are there for each row, the same again, and one for rows that are the same."""

    (X, _), which = given
    with np.errstate(all="ignore"):
        X = X.astype(np.float32)
    make: Any = {"spectral": SpectralEigengap, "kmeans": SampledKMeans}[which]
    try:
        found = [make(random_state=0).fit(X).labels_ for _ in range(2)]
    except ValueError as error:
        return refused(str(error))  # as scikit-learn says it
    if not np.array_equal(*found):
        return ["other clusters for the same data"]
    if len(found[0]) != len(X):
        return [f"{len(found[0])} clusters of {len(X)} rows"]
    alike = len(np.unique(X, axis=0)) == 1
    return [f"{len(set(found[0]))} clusters of equal rows"] if alike and len(set(found[0])) > 1 else []
