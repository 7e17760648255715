from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_page import (
    BREAKS_OUT,
    HOSTILE,
    as_it_is,
    sample_choice,
    sample_maps,
    sample_page,
    sample_record,
    sample_trust,
)

import exmap.report
from exmap.errors import DataError
from exmap.report.cards import Interval
from exmap.report.choice_card import ChoiceCard
from exmap.report.page import SCRIPTS, render_page
from exmap.report.percentages import percent
from exmap.report.points import Points
from exmap.report.trust_card import TrustCard
from exmap.results import ClassFinding

ASSETS = Path(exmap.report.__file__).parent / "assets"
SCRIPT = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)


@cache
def whole() -> str:
    """Return the page with everything in it."""
    return render_page(sample_page(choice=sample_choice()))


def without_charts(**changes: Any) -> str:
    """Return a page that is drawn quickly."""
    quick = {"clusterings": [], "trust": TrustCard(sample_maps(None, np.zeros(5)), sample_trust())}
    return render_page(sample_page(**(quick | changes)))


def embedded(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def numbers(packed: object) -> np.ndarray:
    return np.frombuffer(base64.b64decode(str(packed)), dtype="<u2")


def test_the_same_page_gives_the_same_text() -> None:
    assert render_page(sample_page(choice=sample_choice())) == whole()


def test_the_page_needs_nothing_but_itself() -> None:
    text = whole()
    assert not re.search(r"""(src|href)=(?!["']?(#|data:))""", text.replace(SCRIPT, ""))
    assert not re.search(r"url\((?!data:|#)", text)
    assert "@import" not in text
    assert "<!--" not in text


def test_a_hostile_name_is_never_markup() -> None:
    text = render_page(sample_page(hostile=True, choice=sample_choice(hostile=True)))
    assert HOSTILE not in text
    assert "<img" not in text
    assert text.count("<script") == text.count("</script") == 2
    data = embedded(text)
    assert HOSTILE in str(data["ids"])
    assert BREAKS_OUT in data["classes"]


def test_the_script_cannot_end_its_own_element() -> None:
    assert "</script" not in SCRIPT
    assert "<!--" not in SCRIPT
    assert "innerHTML" not in SCRIPT


def test_no_id_is_given_twice() -> None:
    ids = re.findall(r'\sid="([^"]+)"', whole())
    assert len(ids) == len(set(ids))


def test_the_map_keeps_places_and_groups() -> None:
    page = sample_page()
    data = embedded(whole())
    x, y = numbers(data["x"]).astype(float), numbers(data["y"]).astype(float)
    places = page.points.places
    across, down = np.ptp(places, axis=0) / 65_534
    np.testing.assert_allclose((x - x[0]) * across, places[:, 0] - places[0, 0], atol=2 * across)
    np.testing.assert_allclose((y[0] - y) * down, places[:, 1] - places[0, 1], atol=2 * down)  # the screen's y falls
    assert np.array_equal(numbers(data["group"]), page.points.group)


def test_a_long_map_is_widened_to_half_its_length_at_most() -> None:
    points = sample_page().points
    long = replace(points, places=points.places * np.array([100, 1], dtype=np.float32))
    data = embedded(without_charts(points=long))
    y = numbers(data["y"])
    assert np.ptp(numbers(data["x"])) == 65_534
    assert np.ptp(y) == pytest.approx(65_534 * 2 * np.ptp(points.places[:, 1]) / np.ptp(long.places[:, 0]), abs=2)
    assert (int(y.max()) + int(y.min())) / 2 == pytest.approx(65_534 / 2, abs=2)


def test_what_has_no_group_or_picture_is_marked_so() -> None:
    page = sample_page()
    points = page.points
    changed = Points(
        points.places,
        np.full(300, -1),
        points.label,
        points.predicted,
        points.repaired,
        np.full(300, -1),
        np.full(300, -1),
        [],
        300,
        "PCA",
    )
    data = embedded(without_charts(points=changed))
    assert set(numbers(data["group"])) == set(numbers(data["picture"])) == set(numbers(data["truth"])) == {65_535}


def test_a_map_of_many_points_stays_small() -> None:
    n = 50_000
    rng = np.random.default_rng(0)
    column = rng.integers(0, 3, n)
    points = Points(rng.normal(size=(n, 2)).astype(np.float32), *[column] * 6, [], n, "UMAP")
    assert len(without_charts(points=points)) < 1_500_000


def test_columns_of_other_lengths_and_too_many_groups_are_refused() -> None:
    five, places = np.zeros(5, dtype=np.int64), np.zeros((5, 2), dtype=np.float32)
    with pytest.raises(DataError, match="the columns of the map must have one length"):
        Points(places, *[five] * 5, np.zeros(4, dtype=np.int64), [], 5, "PCA")
    with pytest.raises(DataError, match="at most 65,534 groups, classes and pictures, got 65,536"):
        Points(places, *[five] * 5, five + 65_535, [], 5, "PCA")


def test_an_empty_run_is_still_a_page() -> None:
    none = np.zeros(0, dtype=np.int64)
    points = Points(np.zeros((0, 2), dtype=np.float32), *[none] * 6, [], 0, "PCA")
    text = without_charts(points=points, strategies=[], pictures=None, heats=None, means=None, clusterings=[])
    assert "0 of 0 images are on the map" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"),
        (0.0004, "< 0.1 %"),
        (0.434, "43.4 %"),
        (0.99951, "> 99.9 %"),
        (1, "100 %"),
        (float("nan"), "unknown"),
    ],
)
def test_shares_are_written_as_percentages(value: float, text: str) -> None:
    assert percent(value).replace("\xa0", " ") == text


def test_an_accuracy_without_an_interval_has_no_whisker() -> None:
    page = sample_page()
    row = page.comparisons[1].__class__("All", Interval(0.5), Interval(0.6))
    assert 'class="whisker"' not in without_charts(comparisons=[row], strategies=[])


def test_a_page_before_retraining_shows_the_classifier_as_it_is() -> None:
    page = as_it_is(replace(sample_page(), clusterings=[]))
    text = render_page(page)
    assert not page.retrained
    assert 'class="track after"' not in text
    assert "Accuracy on the test images; in brackets and as whiskers, 95 % bootstrap intervals" in text
    assert "flatters" not in text
    assert set(numbers(embedded(text)["repaired"])) == {65_535}


def test_what_is_no_run_cannot_be_made_again_and_its_groups_are_not_edited() -> None:
    text = without_charts(command="", grouping="").replace(SCRIPT, "")
    assert "To repeat the run" not in text
    assert "edits.yaml" not in text
    assert "<form" not in text
    assert 'id="saving"' in text  # which the script asks for


def test_a_page_before_evaluation_has_no_accuracies_on_test_images() -> None:
    text = without_charts(comparisons=[], choice=None)
    assert "Accuracy on the test images" not in text
    assert 'class="bars"' not in text


def test_heatmaps_that_are_all_broken_leave_an_empty_chart() -> None:
    broken = sample_maps(np.ones(5), np.zeros(5), finite=False)
    trust = sample_trust(reruns=(), gradient=None)
    text = render_page(sample_page(trust=TrustCard(broken, trust)))
    assert "No heatmap is finite." in text
    assert "No image is in a cluster" in text
    assert "it needs the images" in text


def test_where_trust_was_not_measured_the_page_says_so() -> None:
    text = render_page(sample_page(trust=TrustCard(sample_maps(None, np.zeros(5)))))
    assert text.count("Not measured yet.") == 2
    assert "is not known." in text
    assert "The heatmaps are by" not in text


@pytest.mark.parametrize(
    ("shares", "errors", "said"),
    [
        (
            [0.93],
            [1e-6],
            "Of the explained logit, the image's pixels hold 93 %, biases and other constants 7 %; 0.0001 % is "
            "unaccounted for.",
        ),
        (
            [-0.2, 0.1, np.nan],
            [0, 0, 0.02],
            "pixels hold -5 %, biases and other constants 105 %; 0 % is unaccounted for. These are medians over the "
            "images; for 95 % of them at most 2 % is unaccounted for.",
        ),
        (
            [0.5, 0.7],
            [np.nan, np.nan],
            "sum to 60 % of the explained logit (median); this explainer promises no sum",
        ),
        ([np.nan], [0.5], "How much of the explained logit the pixels hold is not known."),
        ([], [], "is not known."),
        (None, [0.5], "is not known."),
    ],
)
def test_what_of_the_logit_is_accounted_for_is_said_in_words(
    shares: list[float] | None, errors: list[float], said: str
) -> None:
    card = TrustCard(sample_maps(None if shares is None else np.array(shares), np.array(errors)))
    assert said in card.accounted.replace("\xa0", " ")
    assert (card.chart is None) == ("not known" in said)


def test_what_made_the_heatmaps_and_whether_rules_were_needed_is_said() -> None:
    assert "The heatmaps are by lrp with symmetric_gamma, of the predicted class." in whole()
    plain = TrustCard(sample_maps(None, np.zeros(5)), sample_trust(gradient=None, is_gradient=True))
    assert "These heatmaps are plain input &times; gradient, without relevance rules." in without_charts(trust=plain)


def section(text: str) -> str:
    """Return what a reader sees of the choice of groups."""
    found = re.search(r'<section id="choice".*?</section>', text, re.DOTALL)
    assert found is not None
    body = re.sub(r"<svg.*?</svg>", "", found[0], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_a_run_that_does_not_choose_its_groups_has_no_section_of_it() -> None:
    text = without_charts()
    assert "The chosen grouping" not in text
    assert 'href="#choice"' not in text


def test_the_choice_is_shown_with_its_verdict_its_reasons_and_all_that_was_weighed() -> None:
    choice, text = sample_choice(), whole()
    said = section(text)
    for sentence in (choice.verdict, choice.record.why, choice.confidence, choice.last_layer, choice.more_images):
        assert sentence in said
    assert "cat: shortcut found , p < 0.001, error rate +64 points (at least +48). 20 of 30 images" in said
    assert "dog: no shortcut found . Its heatmaps form no cluster that stands apart." in said
    assert "cow: not tested ." in said
    assert "Worst group: cat, red before 50.0" in said
    assert "exmap[size=3,scope=local,gap=relative] = exmap[size=7] -0.20 3 1.00 chosen" in said
    assert "error_set -0.10 4 0.30 cannot be chosen" in said
    assert "Scores of 4 groupings; chosen exmap[size=3,scope=local,gap=relative] -0.20; runner-up" in text
    assert "50.0\xa0% with 30 images, 70.0\xa0% with 150 images" in text


def test_a_classifier_that_is_left_as_it_is_has_no_accuracy_after() -> None:
    said = section(without_charts(choice=sample_choice(found=False)))
    assert said.startswith("The chosen grouping No shortcut was found; the classifier is left as it is.")
    assert "before and after" not in said
    assert "cat: no shortcut found , p = 0.200" in said


def test_where_nothing_can_be_concluded_the_sentence_stands_alone() -> None:
    why = "Nothing can be concluded: class cat has 3 images to judge groupings by."
    nothing = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
    record = sample_record().changed(
        **nothing,
        candidates=(),
        data_curve=(),
        repaired=False,
        shortcut={"cat": ClassFinding.nothing(None, "not tested")},
        why=why,
        remarks=(why,),
    )
    text = without_charts(choice=ChoiceCard(record))
    assert section(text).count(why) == 1
    assert "Why this grouping?" not in text
    assert "Is the last layer enough?" not in text
