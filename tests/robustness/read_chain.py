"""The whole chain in memory, on images and labels that are degenerate: what comes out is theirs, and finite."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from materials import QUICK
from torch import nn

import exmap

__all__ = ["IMAGES", "judge_chain"]

WRONG = (
    "nothing",
    "copies",
    "constant",
    "zero",
    "one NaN",
    "all NaN",
    "one infinity",
    "huge",
    "tiny",
    "one class",
    "rare class",
)
IMAGES = st.tuples(
    st.sampled_from(WRONG),
    st.sampled_from(("right", "random", "flipped", "one way")),
    st.sampled_from((2, 3)),
    st.sampled_from(("spectral", "kmeans")),
    st.integers(0, 100),
)


@cache
def network(n_classes: int) -> nn.Module:
    """Return a classifier by colour: class k is the brightest channel."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_classes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for channel in range(3):
            model[0].weight[channel, channel, 1, 1] = 1  # type: ignore[index,union-attr]
        for channel in range(min(3, n_classes)):
            model[4].weight[channel, channel] = 20  # type: ignore[index,union-attr]
    return model.eval()


def judge_chain(given: tuple[str, str, int, str, int]) -> list[str]:
    """Analyze a classifier; its accuracy is what it says of these images, and groups are of them."""
    wrong, noise, n_classes, clusterer, number = given
    rng = np.random.default_rng(number)
    labels = np.arange(48) % n_classes
    images = rng.random((48, 3, 6, 6)).astype(np.float32) * 0.5
    images[np.arange(48), labels] += 0.4
    if noise == "random":
        labels = rng.integers(0, n_classes, 48)
    elif noise == "flipped":
        labels[:4] = (labels[:4] + 1) % n_classes
    elif noise == "one way":
        labels[np.flatnonzero(labels == 0)[:4]] = 1
    spoil(images, labels, wrong)
    model = network(n_classes)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = [f"class {k}" for k in range(n_classes)]
    settings = ["explain.size=3", *QUICK, f"cluster.method={clusterer}"]
    found = exmap.analyze(model, (images, labels), classes=names, auto=False, settings=settings)
    faults = []
    if any(not torch.equal(value, state[name]) for name, value in model.state_dict().items()):
        faults.append("the classifier is changed")
    with torch.no_grad():
        said = model(torch.from_numpy(images)).argmax(1).numpy()
    fine = np.isfinite(images).all((1, 2, 3))
    measured, here = (
        found.results.methods["erm"].mean_accuracy,
        float((said == labels)[fine].mean()) if fine.any() else np.nan,
    )
    if fine.all() and abs(measured - here) > 1e-6:
        faults.append(f"accuracy is {measured}, and was {here}")
    if len(found.pseudo_groups.index) != 48:
        faults.append(f"{len(found.pseudo_groups.index)} groups of 48 images")
    groups = len({*found.pseudo_groups.index.tolist()} - {-1})
    if wrong in ("constant", "zero") and groups > n_classes:
        faults.append(f"{groups} groups of images that are all the same")
    fixed = found.repair()
    with torch.no_grad():
        answers = fixed(torch.from_numpy(images[fine]))
    if not torch.isfinite(answers).all():
        faults.append("the repaired classifier's answers are not finite")
    json.dumps(found.results.to_json(), allow_nan=False)
    repr(found)
    return faults


def spoil(images: Any, labels: Any, wrong: str) -> None:
    """Make images or labels degenerate, in their places."""
    if wrong == "copies":
        images[:] = images[np.arange(48) % 6]
    elif wrong == "constant":
        images[:] = images[0]
    elif wrong == "zero":
        images[:] = 0
    elif wrong == "one NaN":
        images[5, 0, 0, 0] = np.nan
    elif wrong == "all NaN":
        images[:] = np.nan
    elif wrong == "one infinity":
        images[7, 1, 2, 2] = np.inf
    elif wrong == "huge":
        images *= 1e20
    elif wrong == "tiny":
        images *= 1e-20
    elif wrong == "one class":
        labels[:] = 0
    elif wrong == "rare class":
        labels[labels == 1] = 0
        labels[9] = 1
