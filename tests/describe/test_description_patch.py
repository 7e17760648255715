"""A patch with the same pixels is found where there is one, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.describe.patch import find_patches

N, SIDE = 60, 28


def noise(seed: int = 0, n: int = N) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 200, (n, 3, SIDE, SIDE)).astype(np.uint8)


def stamped(share: float, other: float = 0.0, *, at: tuple[int, int] = (0, 0), size: int = 5) -> NDArray[np.uint8]:
    """Return pictures of which a share of the first half, and another of the second, has a bright patch."""
    small, rng = noise(), np.random.default_rng(1)
    half = N // 2
    has = np.concatenate([rng.permutation(half) < share * half, rng.permutation(half) < other * half])
    top, left = at
    small[has, :, top : top + size, left : left + size] = 250
    return small


FIRST, SECOND = np.arange(N // 2), np.arange(N // 2, N)


def test_a_patch_is_found_where_it_is_and_counted() -> None:
    found = find_patches(stamped(0.8, 0.1, at=(23, 23)), FIRST, SECOND)
    assert len(found) == 1
    patch = found[0].described
    assert (patch.where, patch.looks, patch.lacking) == ("lower right corner", "bright", False)
    assert (patch.top, patch.left, patch.bottom, patch.right) == pytest.approx((23 / 28, 23 / 28, 1, 1))
    assert patch.share == pytest.approx(0.8, abs=0.2)
    assert patch.share_others == pytest.approx(0.1, abs=0.15)
    assert patch.p_value < 0.01


def test_a_patch_that_only_the_others_have_is_lacking() -> None:
    found = find_patches(stamped(0.0, 1.0), FIRST, SECOND)
    assert [each.described.lacking for each in found] == [True]
    assert (found[0].described.share, found[0].described.share_others) == (0.0, 1.0)


def test_two_patches_are_found_where_each_has_its_own() -> None:
    small = stamped(1.0)
    small[SECOND, :, 23:, 23:] = 250
    found = find_patches(small, FIRST, SECOND)
    assert [each.described.where for each in found] == ["upper left corner", "lower right corner"]
    assert [each.described.lacking for each in found] == [False, True]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_none_is_found_where_as_many_others_have_it(share: float) -> None:
    assert find_patches(stamped(share, share), FIRST, SECOND) == []


@pytest.mark.parametrize("seed", range(5))
def test_none_is_found_in_noise_nor_in_blank_pictures(seed: int) -> None:
    assert find_patches(noise(seed), FIRST, SECOND) == []
    assert find_patches(np.zeros((N, 3, SIDE, SIDE), dtype=np.uint8), FIRST, SECOND) == []


def test_a_place_that_is_empty_is_no_patch() -> None:
    """Figures stand at the top in one half and at the bottom in the other; elsewhere is nothing to see."""
    small = np.zeros((N, 3, SIDE, SIDE), dtype=np.uint8)
    figures = np.random.default_rng(0).integers(30, 255, (N, 1, 12, 12)).astype(np.uint8)
    small[FIRST, :, :12, 8:20], small[SECOND, :, 16:, 8:20] = figures[FIRST], figures[SECOND]
    assert find_patches(small, FIRST, SECOND) == []


def test_few_images_are_not_asked() -> None:
    assert find_patches(stamped(1.0), FIRST[:5], SECOND) == []


def test_painting_over_leaves_no_patch_and_all_else() -> None:
    small = stamped(1.0, 0.0)
    painted = find_patches(small, FIRST, SECOND)[0].painted_over(small)
    assert find_patches(painted, FIRST, SECOND) == []
    assert np.array_equal(painted[:, :, 8:], small[:, :, 8:])
    assert small[0, 0, 0, 0] == 250


@pytest.mark.parametrize(
    ("colour", "looks"), [((250, 20, 20), "red"), ((60, 10, 10), "dark red"), ((4, 4, 4), "black")]
)
def test_it_is_said_what_a_patch_looks_like(colour: tuple[int, ...], looks: str) -> None:
    small = noise() // 2 + 100
    small[FIRST, :, :5, :5] = np.array(colour, dtype=np.uint8)[:, None, None]
    assert find_patches(small, FIRST, SECOND)[0].described.looks == looks
