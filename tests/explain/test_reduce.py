from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exmap.errors import SettingsError
from exmap.explain import reduce, reduce_heatmaps, reduce_maps


def block_means(maps: np.ndarray, size: int) -> np.ndarray:
    """Mean over [floor(i * H / s), ceil((i + 1) * H / s)): every pixel counts, blocks overlap if s does not divide."""
    height, width = maps.shape[-2:]
    result = np.empty((*maps.shape[:2], size, size))
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            result[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "size"), [((8, 8), 4), ((8, 8), 1), ((7, 7), 3), ((10, 10), 7), ((6, 9), 4)])
def test_maps_are_area_averages_divided_by_their_peak(shape: tuple[int, int], size: int, seed: int) -> None:
    relevance = np.random.default_rng(seed).normal(size=(5, 3, *shape)).astype(np.float32)
    maps, finite, zero = reduce_maps(torch.from_numpy(relevance), size)
    wanted = block_means(relevance.astype(np.float64), size)
    wanted /= np.abs(wanted).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(maps.numpy(), wanted, atol=1e-5)
    assert finite.all()
    assert not zero.any()


def test_divisible_sizes_are_numpys_block_mean() -> None:
    relevance = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
    wanted = relevance.reshape(2, 3, 3, 2, 3, 2).mean(axis=(3, 5))
    maps, _, _ = reduce_maps(torch.from_numpy(relevance), 3)
    np.testing.assert_allclose(maps, wanted / np.abs(wanted).max(axis=(1, 2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [None, 5, 2])
def test_the_largest_absolute_value_is_one(seed: int, size: int | None) -> None:
    relevance = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 1e-4
    maps, _, _ = reduce_maps(relevance, size)
    assert torch.equal(maps.abs().amax(dim=(1, 2, 3)), torch.ones(6))


def test_no_size_keeps_the_images_own() -> None:
    relevance = torch.randn(2, 3, 4, 6)
    maps, _, _ = reduce_maps(relevance, None)
    assert torch.equal(maps, relevance / relevance.abs().amax(dim=(1, 2, 3), keepdim=True))


def test_a_zero_map_stays_zero_and_is_told_apart() -> None:
    relevance = torch.ones(3, 1, 4, 4)
    relevance[1] = 0
    maps, finite, zero = reduce_maps(relevance, 2)
    assert torch.equal(maps[1], torch.zeros(1, 2, 2))
    assert torch.equal(maps[0], torch.ones(1, 2, 2))
    assert zero.tolist() == [False, True, False]
    assert finite.all()


def test_a_map_that_averages_to_zero_is_a_zero_map() -> None:
    relevance = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 1, 2, 2)
    maps, finite, zero = reduce_maps(relevance, 1)
    assert (maps.item(), finite.item(), zero.item()) == (0.0, True, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_map_becomes_zeros_without_being_called_zero(bad: float) -> None:
    relevance = torch.ones(3, 2, 4, 4)
    relevance[2, 1, 0, 3] = bad
    maps, finite, zero = reduce_maps(relevance, 2)
    assert torch.equal(maps[2], torch.zeros(2, 2, 2))
    assert finite.tolist() == [True, True, False]
    assert not zero.any()
    assert torch.equal(maps[:2], torch.ones(2, 2, 2, 2))


def test_finite_relevance_near_the_largest_float_stays_finite() -> None:
    maps, finite, _ = reduce_maps(torch.full((1, 1, 4, 4), 3e38), 2)

    assert torch.isfinite(maps[finite]).all()


def test_a_size_above_the_image_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"explain\.size must be at most the image's side of 4 pixels, got 5"):
        reduce_maps(torch.ones(1, 1, 4, 6), 5)


def test_stored_heatmaps_are_reduced_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 3, 6, 6)).astype(np.float32)
    np.save(tmp_path / "maps.npy", values)
    wanted = reduce_maps(torch.from_numpy(values), 2)[0].flatten(1).numpy()
    monkeypatch.setattr(reduce, "AT_ONCE", 3)
    for given in (values, np.load(tmp_path / "maps.npy", mmap_mode="r")):
        reduced = reduce_heatmaps(given, 2)
        assert reduced.dtype == np.float32
        np.testing.assert_allclose(reduced, wanted, atol=1e-7)
