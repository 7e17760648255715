"""Whether the outputs of a classifier stand for the classes that labels name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Split, array_split
from exmap.errors import DataError
from exmap.model.answers import check_class_order, class_order

CLASSES = ("ant", "bee", "cat")


def split_of(n: int = 90) -> Split:
    """Return images that are as bright as the number of their class."""
    labels = np.arange(n) % 3
    images = np.broadcast_to(labels[:, None, None, None] / 2, (n, 1, 4, 4)).astype(np.float32)
    return array_split(images.copy(), labels, class_names=CLASSES)


class Brightness(nn.Module):
    """Tells the class by the brightness; its outputs come in an order of their own."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(order) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -((x.mean(dim=(1, 2, 3))[:, None] - self.levels) ** 2)


def test_the_right_order_passes() -> None:
    found = check_class_order(Brightness((0, 1, 2)), split_of(), how="--classes")
    assert (found.accuracy, found.order, found.is_wrong) == (1.0, (0, 1, 2), False)


def test_another_order_is_named() -> None:
    with pytest.raises(
        DataError, match=r"right on 0% of 90 images.*would be on 100%.*order bee,cat,ant; give --classes"
    ):
        check_class_order(Brightness((1, 2, 0)), split_of(), how="--classes")


def test_a_classifier_at_chance_passes_where_no_order_is_good() -> None:
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(4, size=400), rng.integers(4, size=400)
    found = class_order(predicted, labels, 4)
    assert found.best >= found.accuracy
    assert not found.is_wrong


def test_a_classifier_that_is_better_than_chance_is_not_reordered() -> None:
    labels = np.repeat([0, 1], 50)
    predicted = np.where(np.arange(100) % 5 < 3, labels, 1 - labels)  # right in 60 %
    assert not class_order(predicted, labels, 2).is_wrong
    assert class_order(1 - labels, labels, 2).is_wrong
