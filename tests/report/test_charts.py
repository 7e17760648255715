from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from exmap.report.charts import INK, data_chart, eigenvalue_chart, score_chart, share_chart

VALUES = np.array([0, 0.001, 0.02, 0.03, 0.04])
SVG = "{http://www.w3.org/2000/svg}"


def test_the_gap_is_marked_after_the_clusters_it_counts() -> None:
    chart = ET.fromstring(eigenvalue_chart(VALUES, 2, "five eigenvalues"))
    words = [element.text for element in chart.iter(f"{SVG}text")]
    assert "the gap: 2 clusters" in words
    assert [word for word in words if word in "12345"] == list("12345")


def test_a_gap_of_ratios_is_drawn_on_a_scale_that_shows_ratios_and_keeps_what_is_zero() -> None:
    plain, ratios = (eigenvalue_chart(VALUES, 2, "five eigenvalues", ratios=log) for log in (False, True))
    marks = [len(re.findall(r"<use [^>]*", text)) for text in (plain, ratios)]
    assert plain != ratios
    assert min(marks) >= len(VALUES)
    ET.fromstring(ratios)
    ET.fromstring(eigenvalue_chart(np.zeros(4), 4, "four components", ratios=True))


def test_without_a_gap_among_those_shown_none_is_marked() -> None:
    assert "the gap" not in eigenvalue_chart(VALUES, 5, "five eigenvalues")


@pytest.mark.parametrize("shares", [[], [np.nan], [0.0, 0.0], np.linspace(-0.5, 1.5, 200), [-1e20, 0.5, 1e30]])
def test_any_shares_give_a_chart(shares: list[float]) -> None:
    ET.fromstring(share_chart(np.array(shares, dtype=np.float32), "shares"))


def test_a_chart_takes_the_pages_ink_and_brings_no_names_fonts_or_styles() -> None:
    text = eigenvalue_chart(VALUES, 2, "one")
    assert INK not in text
    assert "currentColor" in text
    assert "font-family" not in text
    assert "<style" not in text
    other = eigenvalue_chart(VALUES, 2, "another")
    ids = [set(re.findall(r' id="([^"]+)"', each)) for each in (text, other)]
    assert not ids[0] & ids[1]


def test_the_description_is_escaped_and_read_out() -> None:
    chart = ET.fromstring(eigenvalue_chart(VALUES, 2, 'a "b" <c> & d'))
    assert (chart.get("role"), chart.get("aria-label")) == ("img", 'a "b" <c> & d')


def test_the_same_numbers_give_the_same_text() -> None:
    assert share_chart(np.arange(9, dtype=np.float32), "x") == share_chart(np.arange(9, dtype=np.float32), "x")


def test_the_chosen_grouping_is_named_and_one_that_may_not_be_chosen_is_hollow() -> None:
    scores, marks = np.array([-0.2, -0.5, -0.1]), ["chosen", "runner-up", ""]
    charts = [score_chart(scores, marks, np.array([True, True, may]), "three", as_is=-1.0) for may in (True, False)]
    words = [element.text for element in ET.fromstring(charts[1]).iter(f"{SVG}text")]
    assert {"chosen", "runner-up"} <= set(words)
    filled, hollow = (len(re.findall(r'style="[^"]*fill: none; stroke: #7f8c9b', text)) for text in charts)
    assert hollow == filled + 1


@pytest.mark.parametrize("scores", [[0.0], [-1.0, -1.0], [-0.2, -3.5, -0.1]])
def test_any_scores_give_a_chart(scores: list[float]) -> None:
    n = len(scores)
    ET.fromstring(score_chart(np.array(scores), [""] * n, np.ones(n, dtype=bool), "scores", as_is=scores[0]))


def test_the_data_curve_counts_the_images_and_those_of_the_smallest_group() -> None:
    worst, spread = np.array([0.5, 0.8]), np.array([0.1, 0.0])
    chart = ET.fromstring(data_chart([300, 3000], [2.0, 31.3], worst, spread, "two amounts"))
    words = [element.text for element in chart.iter(f"{SVG}text")]
    assert {"300", "2", "3,000", "31"} <= set(words)
