from __future__ import annotations

import gzip
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from exmap.data import Task, build_task
from exmap.data.coloured import TEN_COLOURS
from exmap.data.graded import draw_figures, graded
from exmap.data.idx import FILES, read_pair
from exmap.errors import DataError, SettingsError
from exmap.pipeline.provenance import identity_part
from exmap.settings import DataSettings, GradedSettings, load_settings

SPLITS = ("train", "val", "test")
SHORTCUTS = ("colour", "patch", "texture", "position")
BASES = ("mnist", "fashion-mnist")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sets in their real layout: noise in the middle 20 x 20 pixels, 300 and 120 pictures of each kind."""
    root = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name in BASES:
        (root / name).mkdir()
        for number, size in enumerate((300, 120)):
            labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), size))
            pictures = np.zeros((len(labels), 28, 28), dtype=np.uint8)
            pictures[:, 4:24, 4:24] = rng.integers(1, 256, (len(labels), 20, 20))
            head = struct.pack(">HBBIII", 0, 8, 3, len(labels), 28, 28)
            with gzip.open(root / name / f"{FILES[2 * number]}.gz", "wb", compresslevel=1) as file:
                file.write(head + pictures.tobytes())
            with gzip.open(root / name / f"{FILES[2 * number + 1]}.gz", "wb") as file:
                file.write(struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes())
    return root


def made(folder: Path, correlation: float = 0.9, *, seed: int = 0, **settings: object) -> Task:
    sizes = {"train": 400, "val": 150, "test": 200}
    return graded(folder, GradedSettings.model_validate({**sizes, **settings}), correlation, seed=seed)


def array(task: Task, split: str) -> np.ndarray:
    found: np.ndarray = getattr(task, split).images.array
    return found


def values(task: Task, split: str) -> np.ndarray:
    groups = getattr(task, split).true_groups()
    found: np.ndarray = groups.coordinates[groups.index, 1]
    return found


def flat_indices(places: np.ndarray, pool: np.ndarray) -> list[int]:
    """Which picture of the pool each one is."""
    where = {picture.tobytes(): row for row, picture in enumerate(pool)}
    return [where[picture.tobytes()] for picture in places]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_kind_has_its_sizes_classes_and_groups(sets: Path, base: str, classes: int, shortcut: str) -> None:
    task = made(sets, base=base, classes=classes, shortcut=shortcut)
    task.check()
    assert [len(getattr(task, split)) for split in SPLITS] == [400, 150, 200]
    for split in SPLITS:
        images = array(task, split)
        assert images.dtype == np.uint8
        assert images.shape[1:] == (3, 28, 28)
        groups = getattr(task, split).true_groups()
        assert len(groups.names) == len(set(groups.names)) == classes**2
        assert groups.attributes == (shortcut,)
        agree = (values(task, split) == getattr(task, split).labels).mean()
        assert agree == pytest.approx(1 / classes if split == "test" else 0.9, abs=0.11)
    assert len(task.digests) == 4
    assert all(name.startswith(f"{base}/") for name in task.digests)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", [2, 10])
def test_without_a_shortcut_the_pictures_are_those_of_the_files_once_each_and_there_are_no_groups(
    sets: Path, base: str, classes: int
) -> None:
    task = made(sets, base=base, classes=classes, shortcut="none")
    rows: dict[str, list[int]] = {}
    for split in SPLITS:
        pool, kinds, _ = read_pair(sets / base, "t10k" if split == "test" else "train")
        images = array(task, split)
        assert all(np.array_equal(images[:, 0], images[:, channel]) for channel in (1, 2))
        rows[split] = flat_indices(images[:, 0], pool)
        assert len(set(rows[split])) == len(rows[split])
        found, labels = kinds[rows[split]], getattr(task, split).labels
        if classes == 10:
            assert np.array_equal(found, labels)
        elif base == "mnist":
            assert np.array_equal(found > 4, labels)
        else:
            assert np.array_equal(found, np.array([2, 4])[labels])
        assert getattr(task, split).truth is None
    assert not set(rows["train"]) & set(rows["val"])
    names = {"mnist": ("digit 0-4", "digit 5-9"), "fashion-mnist": ("pullover", "coat")}
    assert classes == 10 or task.train.class_names == names[base]


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_a_colour_tints_the_figure(sets: Path, classes: int) -> None:
    task = made(sets, classes=classes, shortcut="colour")
    images, colours = array(task, "train"), values(task, "train")
    for value, full in enumerate(list(TEN_COLOURS.values())[:classes]):
        brightest = images[colours == value].max(axis=(0, 2, 3))
        assert np.all(np.abs(brightest.astype(int) - full) <= 1)
        assert np.all(images[colours == value][:, np.array(full) == 0] == 0)
    assert not images[:, :, :4].any()


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_a_patch_lies_over_the_image_at_its_own_place_of_the_border(sets: Path, classes: int) -> None:
    patched, places = array(made(sets, classes=classes, shortcut="patch"), "train")[:, 0], []
    bright = values(made(sets, classes=classes, shortcut="patch"), "train")
    for value in range(classes):
        white = (patched[bright == value] == 255).all(axis=0)
        rows, columns = np.nonzero(white)
        assert len(rows) == 16
        assert np.ptp(rows) == np.ptp(columns) == 3
        assert {rows.min(), columns.min()} & {0, 24}
        places.append(white)
    assert np.sum(places, axis=0).max() == 1  # none over another


def test_stripes_are_faint_lie_behind_the_figure_and_differ_in_angle_alone() -> None:
    grey = np.zeros((600, 28, 28), dtype=np.uint8)
    grey[:, 10:14, 10:14] = 255
    angles = np.repeat(np.arange(10), 60)
    drawn = draw_figures(grey, "texture", angles, 10, np.random.default_rng(0))
    assert np.all(drawn[:, :, 10:14, 10:14] == 255)
    assert drawn[:, :, :8].max() <= round(0.3 * 255)
    assert drawn[:, :, :8].std() > 15
    assert len({picture.tobytes() for picture in drawn}) > 550  # shifted at random
    power = np.abs(np.fft.fft2(drawn[:, 0] - drawn[:, 0].mean(axis=(1, 2), keepdims=True))) ** 2
    mean = np.stack([power[angles == value].mean(axis=0).ravel() for value in range(10)])
    similar = np.corrcoef(mean)
    assert all(similar[a, b] < 0.9 for a, b in pairwise(range(10)))
    nearest = np.corrcoef(power.reshape(600, -1), mean)[:600, 600:].argmax(axis=1)
    assert (nearest == angles).mean() > 0.95


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_a_position_is_where_the_shrunk_figure_stands(classes: int) -> None:
    grey = np.full((classes, 28, 28), 200, dtype=np.uint8)
    drawn = draw_figures(grey, "position", np.arange(classes), classes, np.random.default_rng(0))[:, 0]
    corners = set()
    for picture in drawn:
        rows, columns = np.nonzero(picture)
        assert len(rows) == 400
        assert np.ptp(rows) == np.ptp(columns) == 19
        assert {rows.min(), columns.min()} & {0, 8}
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) == classes


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_the_seed_alone_decides_images_and_values(sets: Path, shortcut: str) -> None:
    first, again, other = (made(sets, shortcut=shortcut, seed=seed) for seed in (0, 0, 1))
    for split in SPLITS:
        assert np.array_equal(array(first, split), array(again, split))
        assert np.array_equal(values(first, split), values(again, split))
        assert not np.array_equal(getattr(first, split).labels, getattr(other, split).labels)
        assert not np.array_equal(values(first, split), values(other, split))


def test_a_stronger_shortcut_keeps_the_images_and_only_takes_from_those_that_disagree(sets: Path) -> None:
    weak, strong, none = (made(sets, correlation, classes=5) for correlation in (0.6, 0.95, 0.2))
    assert np.array_equal(weak.train.labels, strong.train.labels)
    against = [set(np.flatnonzero(values(task, "train") != task.train.labels)) for task in (strong, weak, none)]
    assert against[0] < against[1] < against[2]
    assert np.array_equal(array(weak, "test"), array(strong, "test"))


@pytest.mark.parametrize("shortcut", ["colour", "none"])
def test_noisy_labels_leave_the_images_and_the_test_split_and_the_shortcut_goes_with_what_is_shown(
    sets: Path, shortcut: str
) -> None:
    clean, noisy = (made(sets, classes=5, shortcut=shortcut, label_noise=noise) for noise in (0, 0.3))
    noisy.check()
    for split in SPLITS:
        assert np.array_equal(array(clean, split), array(noisy, split))
        shown, given = getattr(clean, split).labels, getattr(noisy, split).labels
        assert (shown != given).mean() == pytest.approx(0 if split == "test" else 0.3, abs=0.13)
        if shortcut == "colour":
            assert np.array_equal(values(clean, split), values(noisy, split))
            groups = getattr(noisy, split).true_groups()
            assert np.array_equal(groups.coordinates[groups.index, 0], given)
    wrong = clean.train.labels != noisy.train.labels
    assert set(noisy.train.labels[wrong & (clean.train.labels == 0)]) == {1, 2, 3, 4}
    again = made(sets, classes=5, shortcut=shortcut, label_noise=0.3)
    assert np.array_equal(noisy.train.labels, again.train.labels)


def test_an_imbalance_of_four_has_a_fourth_of_the_images_in_the_last_class_but_not_in_test(sets: Path) -> None:
    task = made(sets, classes=3, train=400, val=80, test=240, imbalance=4)
    task.check()
    counts = np.bincount(np.concatenate([task.train.labels, task.val.labels])) / 480
    np.testing.assert_allclose(counts, np.array([4, 2, 1]) / 7, atol=0.06)
    np.testing.assert_allclose(np.bincount(task.test.labels) / 240, 1 / 3, atol=0.06)
    assert (values(task, "train") == task.train.labels).mean() == pytest.approx(0.9, abs=0.06)
    again, other = (made(sets, classes=3, test=240, train=400, val=80, imbalance=4, seed=seed) for seed in (0, 1))
    assert np.array_equal(task.train.labels, again.train.labels)
    assert not np.array_equal(task.train.labels, other.train.labels)
    with pytest.raises(DataError, match="graded needs 700 images of its 3 classes"):
        made(sets, classes=3, train=600, val=100, imbalance=4)


def test_the_settings_reach_the_data_set(sets: Path) -> None:
    overrides = ["data.graded.base=fashion-mnist", "data.graded.classes=3", "data.graded.shortcut=patch"]
    sizes = [f"data.graded.{split}=90" for split in SPLITS]
    settings = load_settings("graded", [*overrides, *sizes, "data.split_seed=4"], data__dir=str(sets))
    task, same = build_task(settings.data), made(sets, 0.95, seed=4, **settings.data.graded.model_dump())
    assert task.train.class_names == ("t-shirt", "trouser", "pullover")
    assert all(np.array_equal(array(task, split), array(same, split)) for split in SPLITS)


def test_its_settings_are_of_no_other_data_sets_identity() -> None:
    own, other = (load_settings(name, ["data.graded.classes=4"]) for name in ("graded", "cmnist"))
    assert identity_part(own)["data"]["graded"]["classes"] == 4
    assert identity_part(other) == identity_part(load_settings("cmnist"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"train": 2900, "val": 101},
            "graded needs 3,001 images of its 2 classes in the train files of {}, found 3,000; lower data.graded.train "
            "or data.graded.val",
        ),
        (
            {"classes": 3, "test": 361},
            "graded needs 361 images of its 3 classes in the t10k files of {}, found 360; lower data.graded.test",
        ),
    ],
)
def test_more_images_than_there_are_are_refused(sets: Path, settings: dict[str, int], said: str) -> None:
    with pytest.raises(DataError) as caught:
        made(sets, **settings)
    assert str(caught.value) == said.format(sets / "mnist")


def test_all_images_that_there_are_may_be_asked_for(sets: Path) -> None:
    task = made(sets, classes=3, train=700, val=200, test=360)
    assert [len(getattr(task, split)) for split in SPLITS] == [700, 200, 360]


@pytest.mark.parametrize(("classes", "correlation", "least"), [(2, 0.49, "0.5"), (4, 0.2, "0.25"), (3, 1.01, "0.333")])
def test_a_correlation_out_of_its_range_is_refused(sets: Path, classes: int, correlation: float, least: str) -> None:
    with pytest.raises(DataError) as caught:
        made(sets, correlation, classes=classes)
    assert str(caught.value) == (
        f"correlation must lie in [{least}, 1] for a shortcut of {classes} values, got {correlation}; "
        f"{least} plants none"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("classes=1", "setting data.graded.classes: input should be greater than or equal to 2, got 1"),
        ("classes=11", "setting data.graded.classes: input should be less than or equal to 10, got 11"),
        ("shortcut=smell", "setting data.graded.shortcut: input should be 'none', 'colour', 'patch', 'texture' or "),
        ("base=cifar", "setting data.graded.base: input should be 'mnist' or 'fashion-mnist', got 'cifar'"),
        ("label_noise=1", "setting data.graded.label_noise: input should be less than 1, got 1"),
        ("imbalance=0.5", "setting data.graded.imbalance: input should be greater than or equal to 1, got 0.5"),
        ("sides=2", "unknown setting 'data.graded.sides'"),
    ],
)
def test_settings_out_of_their_range_are_refused(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings("graded", [f"data.graded.{override}"])
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("base", BASES)
def test_only_the_set_that_is_shown_must_be_there(sets: Path, tmp_path: Path, base: str) -> None:
    (tmp_path / base).symlink_to(sets / base)
    assert len(made(tmp_path, base=base).train) == 400
    other = next(name for name in BASES if name != base)
    with pytest.raises(DataError, match=rf"must hold {other}'s IDX files"):
        build_task(DataSettings(name="graded", dir=tmp_path, graded=GradedSettings.model_validate({"base": other})))
