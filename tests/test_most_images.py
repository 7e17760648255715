"""Last layers of very many images: a sample is fitted to and judged, all are predicted, and the fit says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exmap.analysis import Analysis, Fit
from exmap.methods import Method, Part
from exmap.pipeline import fitting
from exmap.pipeline.fitting import fit_last_layer
from exmap.pipeline.plan import Plan
from exmap.records import Groups, Progress
from exmap.retrain import DFR
from exmap.retrain.head import finite_part
from exmap.settings import Settings, change_settings
from sample_analysis import sample_analysis

QUICK = ("retrain.repeats=2", "retrain.strengths=[0.3]", "retrain.subsamples=2", "retrain.tuning_splits=1")


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return sample_analysis(3)


def fitted(
    analysis: Analysis, most: int, told: list[Progress] | None = None, tested: bool = True, left_out: int = 0
) -> Fit:
    split, settings = analysis.grouped, change_settings(Settings(), QUICK)
    retrain = settings.retrain.model_copy(update={"most_images": most})
    settings = settings.model_copy(update={"retrain": retrain})
    outputs = analysis.explained.outputs
    index = np.where(np.arange(len(split)) < left_out, -1, split.labels)
    groups = Groups(index, split.class_names, "own", ("class labels",))
    return fit_last_layer(
        Method(Part("dfr"), Part("own")),
        settings,
        analysis.network(),
        split,
        outputs,
        groups,
        outputs if tested else None,
        listen=(told if told is not None else []).append,
    )


@pytest.mark.parametrize("tested", [True, False])
def test_a_sample_is_fitted_to_and_all_are_predicted(
    analysis: Analysis, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, seen = len(analysis.grouped), []
    plain = DFR.fit_head

    def counted(self: DFR, features: np.ndarray, *args: object, **more: object) -> object:
        seen.append(len(features))
        return plain(self, features, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(DFR, "fit_head", counted)
    told: list[Progress] = []
    fit = fitted(analysis, 60, told, tested)
    assert max(seen) == 60
    assert fit.predicted.shape == (2, n)
    assert (fit.predicted >= 0).all()
    assert (fit.predicted == analysis.grouped.labels).mean() > 0.6
    assert [note for note in fit.notes if f"fitted by 60 of {n:,} images" in note]
    assert [(each.done, each.total) for each in told if each.task == "sample"] == [(60, n)]


def test_as_many_as_may_be_are_all_fitted_to(analysis: Analysis) -> None:
    n = len(analysis.grouped)
    all_, enough = fitted(analysis, 100_000), fitted(analysis, n)
    assert np.array_equal(all_.predicted, enough.predicted)
    assert np.array_equal(all_.heads[0].weight, enough.heads[0].weight)
    assert all_.notes == enough.notes


def test_images_without_a_group_are_not_drawn(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    n, seen = len(analysis.grouped), []

    def noted(features: Any, labels: Any, groups: Any, ids: Any = ()) -> Any:
        seen.append(list(ids))
        return finite_part(features, labels, groups, ids)

    monkeypatch.setattr(fitting, "finite_part", noted)
    fit = fitted(analysis, 60, left_out=n - 50)
    assert seen[0] == list(analysis.grouped.ids[n - 50 :])
    assert not [note for note in fit.notes if "drawn at random" in note]
    assert fit.predicted.shape == (2, n)


def test_a_limit_that_holds_nothing_back_is_no_part_of_what_a_run_is(analysis: Analysis) -> None:
    task, n = analysis.task, len(analysis.task.val)
    plan = Plan(change_settings(Settings(), ["retrain.most_images=1000"]), task, {})
    assert n < 1000
    assert plan.most_images("retrain.most_images", "val") == {}
    plan.tree["retrain"]["most_images"] = n - 1
    assert plan.most_images("retrain.most_images", "val") == {"retrain.most_images": n - 1}
