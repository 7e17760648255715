from __future__ import annotations

import numpy as np
import pytest

from exmap.data import Split, Task, planted_shortcut
from exmap.errors import DataError


def agreement(split: Split) -> float:
    groups = split.true_groups().index
    return float(np.mean(groups // split.n_classes == groups % split.n_classes))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_the_shortcut_agrees_with_the_class_as_often_as_asked(n_classes: int, seed: int) -> None:
    task = planted_shortcut(n_classes, (1500, 1500, 1500), correlation=0.9, side=8, seed=seed)
    assert agreement(task.train) == pytest.approx(0.9, abs=0.03)
    assert agreement(task.val) == pytest.approx(0.9, abs=0.03)
    assert agreement(task.test) == pytest.approx(1 / n_classes, abs=0.05)
    counts = task.test.true_groups().counts()
    assert len(counts) == n_classes**2
    assert counts.min() > 0.6 * 1500 / n_classes**2


def test_the_classes_are_balanced_and_belong_to_their_groups(three_classes: Task) -> None:
    for split, size in ((three_classes.train, 80), (three_classes.val, 50), (three_classes.test, 50)):
        assert np.bincount(split.labels).tolist() == [size] * 3
        assert np.array_equal(split.true_groups().index // 3, split.labels)
    assert three_classes.train.true_groups().names[5] == "bar 1, patch 2"
    three_classes.check()


def test_the_patch_shows_the_attribute_and_nothing_else_does(three_classes: Task) -> None:
    split = three_classes.train
    images = split.images.batch(np.arange(len(split)))
    attribute = split.true_groups().index % 3
    patches = images[:, :, :4, :4]
    assert (patches == patches[:, :, :1, :1]).all()
    for value in range(3):
        assert len(np.unique(patches[attribute == value][:, :, 0, 0], axis=0)) == 1
    assert len(np.unique(patches[:, :, 0, 0], axis=0)) == 3
    assert (images.dtype, images.min() >= 0, images.max() <= 1) == (np.float32, True, True)


def test_a_full_correlation_leaves_no_exception() -> None:
    assert agreement(planted_shortcut(3, (60, 30, 30), correlation=1.0).train) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_gives_the_same_images_and_another_seed_others(seed: int) -> None:
    first, again, other = (planted_shortcut(3, (30, 9, 9), seed=s).train.images for s in (seed, seed, seed + 1))
    rows = np.arange(30)
    assert np.array_equal(first.batch(rows), again.batch(rows))
    assert not np.array_equal(first.batch(rows), other.batch(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_classes": 1}, "a planted task needs at least 2 classes, got 1"),
        ({"side": 7}, "a planted task needs a side of at least 8 pixels, got 7"),
        ({"n_classes": 3, "correlation": 0.3}, "correlation must lie in [0.333, 1] for 3 classes, got 0.3"),
        ({"correlation": 1.01}, "correlation must lie in [0.5, 1] for 2 classes, got 1.01"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(DataError) as caught:
        planted_shortcut(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
