"""The figures of an analysis, and what is said of those that cannot be drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from exmap.analysis import Analysis
from exmap.draw import draw_figures, figure_names, sample_rows, save_strategies
from exmap.errors import SettingsError
from sample_analysis import sample_analysis, without_images

NEED_IMAGES = {"comparison", "strategies", "true-groups", "mistakes"}
FEW = {"COMPARED": 3, "MISTAKES": 3, "PSEUDO_GROUPS_SHOWN": 2, "PSEUDO_GROUP_SAMPLES": 2, "TRUE_GROUP_SAMPLES": 2}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few images: figures of many take seconds."""
    for name, value in FEW.items():
        monkeypatch.setattr(f"exmap.draw.{name}", value)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return sample_analysis()


def test_every_figure_is_drawn_as_png_and_pdf(analysis: Analysis, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures"
    drawn = draw_figures(analysis, out)
    assert [each.name for each in drawn] == figure_names()
    assert [each.note for each in drawn] == [""] * len(drawn)
    wanted = [out / f"{name}.{kind}" for name in figure_names() for kind in ("png", "pdf")]
    assert [path for each in drawn for path in each.paths] == wanted
    assert all(0 < path.stat().st_size < 1_000_000 for path in wanted)


def test_only_the_figures_asked_for_are_drawn_and_the_same_each_time(analysis: Analysis, tmp_path: Path) -> None:
    for place in ("a", "b"):
        draw_figures(analysis, tmp_path / place, ["strategies"])
    first, second = (sorted((tmp_path / place).iterdir()) for place in ("a", "b"))
    assert [path.name for path in first] == ["strategies.pdf", "strategies.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_an_unknown_figure_is_refused_with_the_closest_name(analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'mistakes'"):
        draw_figures(analysis, tmp_path / "out", ["mistake"])
    assert not (tmp_path / "out").exists()


def test_without_images_what_needs_none_is_drawn_and_the_rest_is_named(analysis: Analysis, tmp_path: Path) -> None:
    moved = without_images(analysis)
    drawn = {each.name: each for each in draw_figures(moved, tmp_path)}
    assert {path.name for path in tmp_path.iterdir()} == {"embedding.png", "embedding.pdf"}
    assert {name for name, each in drawn.items() if each.note == moved.no_images} == NEED_IMAGES
    save_strategies(moved, tmp_path / "strategies.png")
    assert not (tmp_path / "strategies.png").exists()


def test_before_retraining_there_is_no_figure_of_the_repaired_classifier(analysis: Analysis, tmp_path: Path) -> None:
    drawn = draw_figures(replace(analysis, fits={}), tmp_path, ["comparison", "mistakes"])
    assert [each.paths for each in drawn] == [(), ()]
    assert all("exmap evaluate" in each.note for each in drawn)


def test_without_true_groups_the_figures_of_them_are_left_out_with_a_sentence(
    analysis: Analysis, tmp_path: Path
) -> None:
    drawn = {
        each.name: each for each in draw_figures(replace(analysis, oracle=None), tmp_path, ["true-groups", "embedding"])
    }
    assert drawn["true-groups"].paths == ()
    assert "no true groups" in drawn["true-groups"].note
    assert len(drawn["embedding"].paths) == 2
    assert "stand alone" in drawn["embedding"].note


def test_a_repaired_classifier_without_mistakes_has_no_figure_of_them(analysis: Analysis, tmp_path: Path) -> None:
    fit = replace(analysis.fits["exmap+dfr"], predicted=analysis.task.test.labels[None])
    (drawn,) = draw_figures(replace(analysis, fits={"exmap+dfr": fit}), tmp_path, ["mistakes"])
    assert drawn.note == "the repaired classifier gets every test image right"


@pytest.mark.parametrize("network", [False, True])
def test_the_classifiers_of_the_comparison_say_what_they_predicted(network: bool) -> None:
    analysis = sample_analysis(network=network)
    images = torch.from_numpy(analysis.task.test.images.batch(np.arange(90)))
    with torch.no_grad():
        trained, repaired = (
            model(images).argmax(dim=1).numpy() for model in (analysis.network(), analysis.repair(analysis.method))
        )
    np.testing.assert_array_equal(trained, analysis.test.predicted)
    np.testing.assert_array_equal(repaired, analysis.fit(analysis.method).predicted[0])


def test_a_repaired_network_is_shown_on_test_images(tmp_path: Path) -> None:
    (drawn,) = draw_figures(sample_analysis(network=True), tmp_path, ["mistakes"])
    assert len(drawn.paths) == 2


def test_the_groups_that_are_wrong_most_come_first(analysis: Analysis) -> None:
    groups, correct = analysis.pseudo_groups, analysis.explained.correct
    rows = sample_rows(analysis, groups, 2, 4, np.random.default_rng(0))
    order = sorted(range(len(groups.names)), key=lambda g: correct[groups.index == g].mean())
    assert [row[0].split("\n")[0] for row in rows] == [groups.names[g] for g in order[:2]]
    for (_, images, maps), group in zip(rows, order, strict=False):
        assert len(images) == len(maps) == min(4, groups.counts()[group])


def test_the_picture_of_strategies_is_a_png(analysis: Analysis, tmp_path: Path) -> None:
    save_strategies(analysis, tmp_path / "strategies.png")
    with Image.open(tmp_path / "strategies.png") as picture:
        assert picture.format == "PNG"
