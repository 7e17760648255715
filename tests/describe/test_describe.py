"""Groups are described by what was planted in them, and by nothing where nothing was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.data import ArrayImages, Split, planted_shortcut
from exmap.data.dataset import TrueGroups
from exmap.data.missing import MissingImages
from exmap.describe import describe, strategies
from exmap.errors import DataError
from exmap.records import Explained, Groups, Heatmaps, IntArray, Outputs, Progress
from exmap.results import StrategyDescription, descriptions_from_json

SIDE = 24


def explained_of(split: Split, values: NDArray[np.floating] | None = None, n_classes: int = 2) -> Explained:
    """Return what a classifier that is always right says, with heatmaps."""
    n = len(split)
    logits = np.eye(n_classes, dtype=np.float32)[split.labels]
    heatmaps = None
    if values is not None:
        unknown = np.zeros(n, dtype=np.float32)
        heatmaps = Heatmaps(
            values.astype(np.float32), split.labels, unknown, np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        )
    return Explained("val", split.ids, split.labels, split.class_names, Outputs(logits, logits), heatmaps)


def pictures(n: int = 160, seed: int = 0) -> Split:
    """Return noisy pictures of two classes that say nothing of any group."""
    rng = np.random.default_rng(seed)
    pixels = (0.5 + 0.1 * rng.normal(size=(n, 3, SIDE, SIDE))).astype(np.float32)
    labels = (np.arange(n) % 2).astype(np.int64)
    ids = tuple(f"{row}.png" for row in range(n))
    return Split("val", ArrayImages(np.clip(pixels, 0, 1)), labels, ids, ("cat", "dog"))


def halves(split: Split, parts: IntArray, source: str = "given") -> Groups:
    """Return groups of class and part."""
    names = ("cat 0", "cat 1", "dog 0", "dog 1")
    return Groups(2 * split.labels + parts, names, source, (), classes=(0, 0, 1, 1), parts=(0, 1, 0, 1))


def parts_of(split: Split) -> IntArray:
    return (np.arange(len(split)) // 2 % 4 == 0).astype(np.int64)


def planted() -> tuple[Split, Groups, Explained]:
    """Return pictures in which one quarter of each class has a corner patch, is bluer, and is looked at there."""
    split = pictures()
    parts = parts_of(split)
    pixels = np.asarray(split.images.batch(np.arange(len(split))))
    pixels[parts == 1, 2] = np.clip(pixels[parts == 1, 2] + 0.2, 0, 1)
    pixels[parts == 1, :, :4, :4] = 0.05
    maps = np.random.default_rng(1).random((len(split), 1, 12, 12))
    maps[parts == 1, :, :4, :4] += 5
    split = replace(split, images=ArrayImages(pixels))
    return split, halves(split, parts), explained_of(split, maps / 6)


def test_what_was_planted_is_said_in_one_sentence() -> None:
    split, groups, explained = planted()
    found = describe(explained, groups, split)
    assert [each.name for each in found] == list(groups.names)
    looks, are, *_ = found[1].sentence.split("; ")
    assert looks.startswith(
        "In these images of “cat” the classifier looks at the upper left corner, where all of them have"
    )
    assert looks.endswith("the same black patch (none of the others)")
    assert are == "all of them are mostly blue (none of the others)"
    assert found[0].patch is not None
    assert found[0].patch.lacking
    blue = next(each for each in found[1].differences if each.name == "blue against yellow")
    assert blue.matters
    assert blue.effect == pytest.approx(1)
    assert blue.words == "are bluer"
    assert found[1].relevance is not None
    assert found[1].relevance.share > 0.5


def test_numbers_of_images_and_comparisons_are_right() -> None:
    split, groups, explained = planted()
    found = describe(explained, groups, split)
    counts = groups.counts()
    assert [each.images for each in found] == counts.tolist()
    assert [each.others for each in found] == [counts[1], counts[0], counts[3], counts[2]]
    assert all(each.compared == 80 for each in found)
    assert len({each.tested for each in found}) == 1


def test_both_ways_round_are_mirror_images_and_count_once() -> None:
    split, groups, explained = planted()
    first, second, *_ = describe(explained, groups, split, metadata={"age": np.arange(160.0) % 37})
    mirrored = {each.name: each for each in second.differences}
    ages = [each for each in first.differences if each.kind == "metadata"]
    assert len(ages) == 1
    assert ages[0].effect == pytest.approx(-mirrored["age"].effect)
    assert ages[0].p_value == pytest.approx(mirrored["age"].p_value)


def test_random_groups_hardly_ever_differ() -> None:
    """The error of a whole description is controlled: far fewer than 5 % of random groupings differ in anything."""
    split, named = pictures(80), 0
    explained = explained_of(split, np.random.default_rng(0).random((80, 1, 6, 6)))
    rng = np.random.default_rng(1)
    metadata = {"place": rng.choice(["sea", "land", "wood"], 80).tolist(), "age": rng.random(80)}
    for _ in range(20):
        found = describe(explained, halves(split, rng.integers(0, 2, 80)), split, metadata=metadata)
        named += any(each.named or each.patch or (each.relevance and each.relevance.apart) for each in found)
    assert named <= 2


def test_true_groups_make_no_difference() -> None:
    split, groups, explained = planted()
    truth = TrueGroups(groups.index, groups.names)
    assert describe(explained, groups, replace(split, truth=truth)) == describe(explained, groups, split)


def test_it_can_be_written_and_read() -> None:
    split, groups, explained = planted()
    found = describe(explained, groups, split, metadata={"place": ["sea", "land"] * 80})
    tree = json.loads(json.dumps([each.to_json() for each in found], allow_nan=False))
    assert descriptions_from_json(tree) == found
    assert str(found[1]).endswith(found[1].sentence + ")")


def test_metadata_and_facts_of_files_are_compared() -> None:
    split, _, _ = planted()
    split = pictures()
    parts = parts_of(split)
    season = np.where(parts == 1, "winter", "summer")
    found = describe(
        explained_of(split),
        halves(split, parts),
        split,
        metadata={"season": season.tolist(), "number": list(range(160))},
        files=lambda rows: {"bytes": (1000 + 500 * parts + np.arange(160))[rows].tolist()},
    )
    assert found[1].sentence == (
        "All of these images of “cat” have season “winter” (none of the others); they are larger files than the others."
    )
    assert found[1].remarks == (
        "Column number has another value for nearly every image, or one for all, and was left out.",
    )
    assert {each.kind for each in found[1].named} == {"metadata", "file"}


def test_metadata_and_facts_are_taken_from_the_split_where_it_has_them() -> None:
    class Files(ArrayImages):
        def facts(self, indices: IntArray) -> dict[str, list[int]]:
            return {"bytes": [1000 + 500 * int(row // 2 % 4 == 0) + int(row) for row in indices]}

    split = pictures()
    split = replace(split, images=Files(split.images.array))
    found = describe(explained_of(split), halves(split, parts_of(split)), split)
    assert found[1].named[0].name == "bytes"


def test_without_images_relevance_alone_is_described() -> None:
    split, groups, explained = planted()
    missing = replace(split, images=MissingImages(len(split), split.images.shape))
    with_split, without = describe(explained, groups, missing), describe(explained, groups)
    assert with_split == without
    assert with_split[1].sentence.startswith(
        "In these images of “cat” the classifier looks at the upper left corner more"
    )
    assert "not at hand" in with_split[1].remarks[0]


def test_without_heatmaps_prototypes_are_those_of_features() -> None:
    split, groups, _ = planted()
    found = describe(explained_of(split), groups, split)
    assert found[1].relevance is None
    assert len(found[1].prototypes) == 6
    assert all(groups.index[row] == 1 for row in found[1].prototypes)
    assert found[1].prototype_ids == tuple(split.ids[row] for row in found[1].prototypes)


def test_prototypes_are_most_like_the_mean_heatmap() -> None:
    split, groups, explained = planted()
    maps = explained.maps()
    values = np.array(maps.values)
    odd = int(np.flatnonzero(groups.index == 1)[0])
    values[odd] = values[odd][:, ::-1]
    found = describe(replace(explained, heatmaps=replace(maps, values=values)), groups, split)
    assert odd not in found[1].prototypes


def test_a_whole_class_an_empty_group_and_unassigned_images() -> None:
    split = pictures()
    index = np.where(split.labels == 0, 0, -1)
    groups = Groups(index, ("all cats", "nothing"), "given", (), classes=(0, 1))
    whole, empty = describe(explained_of(split), groups, split)
    assert whole.sentence == "All images of “cat” are in this group."
    assert (empty.images, empty.sentence) == (0, "No image is in this group.")
    assert (whole.differences, empty.differences) == ((), ())


def test_a_group_of_no_one_class_is_compared_with_all_others() -> None:
    split, _, explained = planted()
    groups = Groups(parts_of(split), ("rest", "special"), "errors", ())
    found = describe(explained, groups, split)
    assert (found[1].class_name, found[1].others) == ("", 120)
    assert found[1].sentence.startswith("In these images the classifier looks at the upper left corner")


def test_of_many_images_some_of_each_group_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    split, groups, explained = planted()
    monkeypatch.setattr(strategies, "MOST_IMAGES", 60)
    found = describe(explained, groups, split, seed=3)
    assert sum(each.images for each in found) == 160
    assert found[1].compared + found[3].compared == 60
    assert found == describe(explained, groups, split, seed=3)
    assert found[1].sentence == describe(explained, groups, split, seed=4)[1].sentence


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 4, 4)])
def test_images_that_cannot_be_measured_are_said(shape: tuple[int, int, int]) -> None:
    split = pictures()
    strange = replace(split, images=ArrayImages(np.zeros((len(split), *shape), dtype=np.uint8)))
    found = describe(explained_of(split), halves(split, parts_of(split)), strange)
    assert "Only images of 1 or 3 channels" in found[0].remarks[0]


def test_grey_images_have_no_colour() -> None:
    split, groups, explained = planted()
    grey = replace(split, images=ArrayImages(split.images.batch(np.arange(len(split)))[:, :1]))
    found = describe(explained, groups, grey)
    assert found[1].patch is not None
    assert not any(each.topic == "colour" for each in found[1].differences)


def test_other_images_are_refused() -> None:
    split, groups, explained = planted()
    with pytest.raises(DataError, match="same images"):
        describe(explained, groups, split.rows(np.arange(20)))
    with pytest.raises(DataError, match="one length"):
        describe(explained, groups, split, metadata={"place": ["sea"]})


def test_it_tells_how_far_it_is() -> None:
    split, groups, explained = planted()
    heard: list[Progress] = []
    describe(explained, groups, split, listen=heard.append)
    assert {each.task for each in heard} == {"look at images", "describe"}
    assert heard[-1].done == heard[-1].total == 4


def test_the_planted_data_set_is_described_by_its_patch() -> None:
    split = planted_shortcut(sizes=(4, 200, 4), correlation=0.8, seed=2).val
    truth = split.true_groups()
    groups = Groups(truth.index, ("a", "b", "c", "d"), "given", (), classes=(0, 0, 1, 1))
    found: tuple[StrategyDescription, ...] = describe(explained_of(split), groups, split)
    for each in found:
        assert each.patch is not None
        assert (each.patch.where, each.patch.share, each.patch.share_others) == ("upper left corner", 1.0, 0.0)
