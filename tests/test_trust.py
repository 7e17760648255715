"""How far heatmaps and groups can be trusted: what is measured, and what cannot be without the images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exmap.analysis import Analysis
from exmap.records import Groups
from exmap.results import Trust
from exmap.trust import measure_trust
from sample_analysis import sample_analysis


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return sample_analysis()


def trust_of(analysis: Analysis, groups: Groups | None = None, **explain: str) -> Trust:
    settings = analysis.settings.model_copy(update={"explain": analysis.settings.explain.model_copy(update=explain)})
    return measure_trust(
        analysis.explained,
        analysis.pseudo_groups if groups is None else groups,
        settings,
        model=analysis.network,
        split=None if explain else analysis.grouped,
    )


def test_groups_are_inferred_again_from_parts_of_the_images(analysis: Analysis) -> None:
    trust = analysis.trust
    assert trust is not None
    assert [rerun.images for rerun in trust.reruns] == [72] * 5  # 80 % of 90
    assert all(0.5 < rerun.ari <= 1 for rerun in trust.reruns)
    assert trust == trust_of(analysis)  # the seed decides


def test_heatmaps_are_counted_and_their_sums_described(analysis: Analysis) -> None:
    trust = analysis.trust
    assert trust is not None
    assert (trust.images, trust.not_finite, trust.all_zero) == (90, 0, 0)
    assert trust.input_share is not None
    assert trust.input_share.median == pytest.approx(1)
    assert trust.conservation_error is not None
    assert trust.conservation_error.q95 < 1e-3
    assert trust.explained_by == "lrp with symmetric_gamma, of the predicted class"


def test_input_times_gradient_takes_the_place_of_the_heatmaps(analysis: Analysis) -> None:
    trust = analysis.trust
    assert trust is not None
    assert trust.gradient is not None
    assert trust.gradient.images == 90
    assert trust.gradient.ari > 0.5


def test_without_images_input_times_gradient_is_left_out_and_no_classifier_asked_for(analysis: Analysis) -> None:
    def refuse() -> None:
        raise AssertionError

    trust = measure_trust(
        analysis.explained,
        analysis.pseudo_groups,
        analysis.settings,
        model=refuse,
        split=None,  # type: ignore[arg-type]
    )
    assert trust.gradient is None
    assert not trust.is_gradient
    assert trust.reruns == analysis.trust.reruns  # type: ignore[union-attr]


def test_heatmaps_that_are_input_times_gradient_are_said_to_be(analysis: Analysis) -> None:
    maps = replace(analysis.explained.maps(), check={"explainer": "gradient_x_input"})
    plain = replace(analysis, explained=replace(analysis.explained, heatmaps=maps))
    trust = trust_of(plain)
    assert trust.is_gradient
    assert trust.gradient is None
    assert trust.explained_by == "gradient_x_input, of the predicted class"


def test_images_without_a_group_are_not_grouped_again(analysis: Analysis) -> None:
    groups = analysis.pseudo_groups
    index = groups.index.copy()
    index[:45] = -1
    trust = trust_of(analysis, replace(groups, index=index))
    assert [rerun.images for rerun in trust.reruns] == [36] * 5
    assert trust.gradient is not None
    assert trust.gradient.images == 45
    trust = trust_of(analysis, replace(groups, index=np.full_like(index, -1)))
    assert (trust.reruns, trust.gradient) == ((), None)


@pytest.mark.parametrize(
    ("target", "words"), [("true", "of the true class"), ("margin", "against the runner-up"), (1, "of the class 1")]
)
def test_the_class_that_is_explained_is_said_in_words(analysis: Analysis, target: str, words: str) -> None:
    assert words in trust_of(analysis, target=target).explained_by
