from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.faithfulness import area_between_curves, patch_ranks, perturbation_curves, share_inside

SIDE = 12
RELEVANT = (slice(None), slice(None), slice(4, 8), slice(8, 12))  # the patch in row 1 and column 2 of nine


class OnePatch(nn.Module):
    """A classifier that looks at one patch alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x[RELEVANT].mean(dim=(1, 2, 3))
        return torch.stack([-seen, seen], dim=1)


def _images(number: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1, (number, channels, SIDE, SIDE)).astype(np.float32)


def _area(relevance: np.ndarray, images: np.ndarray, **given: object) -> np.ndarray:
    most, least = (
        perturbation_curves(OnePatch(), images, relevance, order=order, **given)
        for order in ("most_relevant_first", "least_relevant_first")
    )
    return area_between_curves(most.logit, least.logit, most.share)


def test_the_true_patch_scores_best_and_its_opposite_worst() -> None:
    images = _images()
    true = np.zeros_like(images)
    true[RELEVANT] = images[RELEVANT]
    best, worst = _area(true, images), _area(-true, images)
    seen = images[RELEVANT].mean(axis=(1, 2, 3))
    # the logit falls at the first of nine steps, or at the last: 8 of 9 steps lie between
    np.testing.assert_allclose(best, seen * 8 / 9, rtol=1e-5)
    np.testing.assert_allclose(worst, -best, rtol=1e-5)
    for seed in range(20):
        random = np.random.default_rng(seed).standard_normal(images.shape)
        assert (_area(random, images) <= best + 1e-6).all()


def test_an_order_without_meaning_has_no_area_on_average() -> None:
    images = _images(300)
    area = _area(np.random.default_rng(0).standard_normal(images.shape), images)
    assert abs(area.mean()) < 3 * area.std() / np.sqrt(len(area))


def test_curves_begin_with_the_image_and_end_with_the_baseline() -> None:
    images, model = _images(), OnePatch()
    mean = images.mean(axis=0)
    curves = perturbation_curves(model, images, images, baseline=mean, steps=4)
    assert curves.outputs.shape == (5, 5, 2)
    np.testing.assert_allclose(curves.share, np.round(np.linspace(0, 9, 5)) / 9)
    np.testing.assert_allclose(curves.outputs[:, 0], model(torch.from_numpy(images)), rtol=1e-6)
    np.testing.assert_allclose(curves.outputs[:, -1], model(torch.from_numpy(mean)[None]).expand(5, 2), rtol=1e-6)
    assert (curves.target == 1).all()


def test_each_step_replaces_the_next_patches_and_nothing_else() -> None:
    images, seen = _images(2), []

    def predict(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.clone())
        return batch.mean(dim=(2, 3))

    relevance = np.random.default_rng(1).standard_normal((2, SIDE, SIDE))
    perturbation_curves(predict, images, relevance, patch=4, baseline=7.0, batch_size=3)
    steps = torch.cat(seen).reshape(2, 10, 3, SIDE, SIDE)
    scores = relevance.reshape(2, 3, 4, 3, 4).sum(axis=(2, 4)).reshape(2, 9)
    for image in range(2):
        replaced = np.zeros((3, 3), dtype=bool)
        for step, place in enumerate([None, *np.argsort(-scores[image])]):
            if place is not None:
                replaced.flat[place] = True
            wide = np.kron(replaced, np.ones((4, 4))).astype(bool)
            expected = np.where(wide, np.float32(7), images[image])
            np.testing.assert_array_equal(steps[image, step], expected)


def test_batches_patches_and_kinds_of_array_do_not_matter() -> None:
    images = _images()
    relevance = np.random.default_rng(0).standard_normal(images.shape).astype(np.float32)
    whole = perturbation_curves(OnePatch(), images, relevance, target=[0, 1, 0, 1, 0])
    x, r = torch.from_numpy(images), torch.from_numpy(relevance)
    parts = perturbation_curves(OnePatch(), x, r, patch=(4, 4), target=[0, 1, 0, 1, 0], batch_size=1)
    np.testing.assert_allclose(whole.outputs, parts.outputs, rtol=1e-6)
    np.testing.assert_allclose(whole.logit[1], whole.outputs[1, :, 1])
    np.testing.assert_allclose(whole.probability[0], torch.from_numpy(whole.outputs[0]).softmax(dim=1)[:, 0], rtol=1e-6)


def test_patches_at_the_edge_may_be_smaller_and_ties_are_broken_always_alike() -> None:
    ranks = patch_ranks(np.arange(15.0).reshape(1, 3, 5), 2)
    assert ranks.shape == (1, 3, 5)
    # sums of patches: 12, 20, 13 in the first two rows, 21, 25, 14 in the last: the corner is one pixel
    np.testing.assert_array_equal(ranks[0, ::2, ::2], [[5, 2, 4], [1, 0, 3]])
    ties = patch_ranks(np.zeros((2, 8, 8)), 4)
    assert sorted(ties[0, ::4, ::4].ravel()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(ties[0], ties[1])


def test_one_order_is_the_reverse_of_the_other() -> None:
    images = _images(1)
    most = perturbation_curves(lambda x: x.mean(dim=(2, 3)), images, np.zeros_like(images))
    least = perturbation_curves(
        lambda x: x.mean(dim=(2, 3)), images, np.zeros_like(images), order="least_relevant_first"
    )
    lost, left = (curves.outputs[0, 0] - curves.outputs[0] for curves in (most, least))
    np.testing.assert_allclose(lost, lost[-1] - left[::-1], atol=1e-6)


def test_share_inside_counts_positive_relevance_summed_over_channels() -> None:
    relevance = np.zeros((3, 2, 2, 2))
    relevance[0, :, 0] = [[1, 1], [2, -1]]  # 3 and 0 in the first row
    relevance[0, 0, 1, 1] = 1
    relevance[1] = -1
    mask = np.zeros((3, 2, 2), dtype=bool)
    mask[:, 0] = True
    share = share_inside(torch.from_numpy(relevance), mask)
    assert share[0] == pytest.approx(0.75)
    assert np.isnan(share[1:]).all()
    assert share_inside(np.ones((1, 2, 2)), np.full((1, 2, 2), 0.25))[0] == pytest.approx(0.25)


def test_what_does_not_fit_is_refused() -> None:
    images = _images()
    with pytest.raises(DataError, match="one value per pixel"):
        perturbation_curves(OnePatch(), images, images[:, :, :4])
    with pytest.raises(DataError, match="finite"):
        perturbation_curves(OnePatch(), images, np.full_like(images, np.nan))
    with pytest.raises(SettingsError, match="most_relevant_first"):
        perturbation_curves(OnePatch(), images, images, order="most_relevant")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 1"):
        perturbation_curves(OnePatch(), images, images, steps=0)
    with pytest.raises(DataError, match=r"\(images, steps\)"):
        area_between_curves(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(DataError, match="mask"):
        share_inside(images, np.ones((5, 3, 3)))
    with pytest.raises(DataError, match="at least one image"):
        perturbation_curves(OnePatch(), images[:0], images[:0])


@pytest.mark.filterwarnings("ignore")
def test_pixel_flipping_equals_that_of_quantus() -> None:
    quantus = pytest.importorskip("quantus")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    images = rng.uniform(0.5, 1, (4, 1, 8, 8)).astype(np.float32)
    relevance = rng.standard_normal(images.shape).astype(np.float32)
    target = np.array([0, 1, 2, 1])
    black = images.min(axis=(1, 2, 3), keepdims=True)  # what Quantus calls black: each image's own smallest value
    for features, softmax in ((1, False), (4, True)):
        metric = quantus.PixelFlipping(
            features_in_step=features, perturb_baseline="black", normalise=False, disable_warnings=True
        )
        wanted = np.array(metric(model, images, target, a_batch=relevance, softmax=softmax, device="cpu"))
        curves = perturbation_curves(
            model, images, relevance, patch=1, baseline=black, target=target, steps=64 // features
        )
        followed = curves.probability if softmax else curves.logit
        np.testing.assert_allclose(followed[:, 1:], wanted, rtol=1e-4, atol=1e-5)
