"""Sections that name a thing and take its options, and the rows that describe all settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from exmap.errors import SettingsError
from exmap.registry import CLUSTERERS
from exmap.retrain import DFR, SUBG
from exmap.settings import (
    ClusterSettings,
    RetrainSettings,
    Settings,
    change_settings,
    describe_settings,
    dump_settings,
    load_settings,
    parse_settings,
)


def refusal(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings("digits", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "section", "options"),
    [
        (["retrain.strengths=[1, 0.5]", "retrain.subsamples=3"], "retrain", {"strengths": (1.0, 0.5), "subsamples": 3}),
        (["retrain.learner=subg", "retrain.smallest_group=3"], "retrain", {"smallest_group": 3}),
        (["retrain.learner=exmap.retrain:SUBG", "retrain.smallest_group=3"], "retrain", {"smallest_group": 3}),
        (["explain.explainer=occlusion", "explain.patch=4"], "explain", {"patch": 4}),
        (["cluster.method=kmeans", "cluster.fit_most=100"], "cluster", {"fit_most": 100}),
        (["cluster.method=sklearn.cluster:HDBSCAN", "cluster.min_samples=4"], "cluster", {"min_samples": 4}),
    ],
)
def test_options_of_what_a_section_names_stand_beside_its_settings(
    overrides: list[str], section: str, options: dict[str, object]
) -> None:
    settings = load_settings("digits", overrides)
    assert getattr(settings, section).options == options
    assert parse_settings(dump_settings(settings)) == settings
    assert change_settings(settings, ["seed=4"]).model_dump()[section] == settings.model_dump()[section]


def test_without_options_there_are_none() -> None:
    settings = Settings()
    assert settings.retrain.options == settings.cluster.options == settings.explain.options == {}
    assert dump_settings(settings)["retrain"] == {"learner": "dfr", "repeats": 5, "most_images": 100_000}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["retrain.subsmples=3"], "setting retrain: unknown option of the learner dfr 'subsmples' (did you mean 'subs"),
        (["retrain.repeat=3"], "setting retrain: unknown option of the learner dfr 'repeat' (did you mean 'repeats'?)"),
        (
            ["retrain.learner=lff", "retrain.strengths=[1]"],
            "setting retrain: unknown option of the learner lff 'strengths' (did you mean 'steps'?); choose ",
        ),
        (
            ["retrain.subsamples=0"],
            "setting retrain: option subsamples of the learner dfr: input should be greater than 0, got 0",
        ),
        (["retrain.strengths=[]"], "setting retrain: option strengths of the learner dfr: "),
        (
            ["retrain.learner=dfrr", "retrain.subsamples=3"],
            "setting retrain: unknown learner 'dfrr' (did you",
        ),
        (
            ["cluster.metod=kmeans"],
            "setting cluster: unknown option of the clustering method spectral 'metod'",
        ),
        (["explain.patch=4"], "setting explain: unknown option of the explainer lrp 'patch'"),
        (
            ["groups.george={method: kmeans, fit_mst: 3}"],
            "setting groups.george: unknown option of the clustering method",
        ),
    ],
)
def test_an_option_that_is_not_there_or_does_not_fit_is_refused(overrides: list[str], said: str) -> None:
    assert refusal(*overrides).startswith(said)


def test_options_of_a_preset_go_with_the_learner_that_they_are_for(tmp_path: Path) -> None:
    usual = load_settings("cmnist-10")
    assert usual.retrain.options == {"strengths": (1.0, 0.3, 0.1), "tuning_splits": 2, "subsamples": 5}
    assert load_settings("cmnist-10", ["retrain.learner=subg"]).retrain.options == {}
    assert change_settings(usual, retrain__learner="afr").retrain.options == {"tuning_splits": 2}
    assert load_settings("cmnist-10", ["retrain.learner=class_balanced"]).retrain.options == usual.retrain.options
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: cmnist-10\nretrain: {learner: subg, smallest_group: 2}\n")
    assert load_settings(mine).retrain.options == {"smallest_group": 2}
    with pytest.raises(SettingsError, match="unknown option of the learner subg 'subsamples'"):
        load_settings("cmnist-10", ["retrain.learner=subg", "retrain.subsamples=7"])


def test_a_section_alone_is_checked_and_frozen() -> None:
    with pytest.raises(ValidationError, match="unknown option of the clustering method"):
        ClusterSettings(method="kmeans", linkage="single")
    section = RetrainSettings(subsamples="3")
    assert section.options == {"subsamples": 3}
    section.options["subsamples"] = 5
    assert section.options == {"subsamples": 3}
    with pytest.raises(ValidationError, match="frozen"):
        section.repeats = 2  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    rows = describe_settings()
    assert all(row.meaning and row.allowed for row in rows)
    assert len({row.name for row in rows}) == len(rows)
    by_name = {row.name: row for row in rows}
    assert by_name["data.correlation"].allowed == "number, at least 0.1, at most 1.0"
    assert by_name["retrain.repeats"][:4] == ("retrain.repeats", "integer, at least 1, at most 10000", 5, 5)
    assert by_name["retrain.learner"].allowed.startswith("adapters or afr or bpa or ")
    assert by_name["retrain.subsamples"] == (
        "retrain.subsamples",
        "integer, above 0",
        20,
        20,
        "Balanced subsets whose heads are averaged.",
        "exmap.retrain.last_layer.DFR",
    )
    assert by_name["retrain.strengths"].allowed == "list of number, above 0"


def test_the_rows_follow_what_the_settings_name() -> None:
    chosen = load_settings("digits", ["retrain.learner=jtt", "retrain.up_weight=20", "explain.explainer=occlusion"])
    by_name = {row.name: row for row in describe_settings(chosen)}
    assert (by_name["retrain.up_weight"].default, by_name["retrain.up_weight"].value) == (50, 20)
    assert "retrain.strengths" not in by_name
    assert by_name["explain.patch"].owner == "exmap.explain.occlusion.Occlusion"
    assert by_name["train.epochs"].value == chosen.train.epochs


def numbers() -> Iterator[tuple[str, str]]:
    """Yield every setting that may be a number, with what is allowed in words."""
    for row in describe_settings():
        if not row.owner and ("integer" in row.allowed or "number" in row.allowed):
            yield row.name, row.allowed


@pytest.mark.parametrize(("name", "allowed"), [*numbers()])
def test_every_number_has_an_upper_bound_and_is_finite(name: str, allowed: str) -> None:
    if name not in ("model.outputs", "images.random_crop", "explain.target", "images.normalize"):  # in other words
        assert "at most" in allowed or "below" in allowed
    for value in ("1e400", ".inf", "-.inf", ".nan", "1e300"):
        assert refusal(f"{name}={value}").startswith(f"setting {name}")


def test_options_of_what_is_registered_are_finite_and_bounded_too() -> None:
    assert "input should be a finite number, got " in refusal("retrain.strengths=[1, .inf]")
    assert "input should be a finite number, got inf" in refusal("explain.explainer=occlusion", "explain.baseline=.inf")
    assert "a whole number should be less than or equal to 1,000,000,000" in refusal("retrain.subsamples=1000000000000")
    assert "truth values" in refusal("retrain.subsamples=yes")
    with pytest.raises(SettingsError, match="option strengths of the learner dfr: input should be a finite number"):
        DFR(strengths=(1.0, float("inf")))
    with pytest.raises(
        SettingsError, match=r"option epochs of the learner subg: input should be greater than 0, got -1"
    ):
        SUBG(epochs=-1)
    assert DFR(strengths=np.array([1.0, 0.5])).subsamples == 20


def test_what_is_no_thing_of_the_kind_is_refused_before_it_is_used() -> None:
    for chosen in ("os:sep", "math:pi"):
        with pytest.raises(SettingsError, match="must be a class or a function"):
            CLUSTERERS.build(chosen)
    with pytest.raises(SettingsError, match="the clustering method builtins:len cannot be made"):
        CLUSTERERS.build("builtins:len")
    assert [1] not in CLUSTERERS
