"""What a notebook shows of an analysis."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

from exmap.report.notebook import analysis_html
from exmap.report.percentages import percent
from sample_analysis import HOSTILE, sample_analysis, without_images


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_it_says_what_was_found_and_shows_methods_and_groups() -> None:
    analysis = sample_analysis()
    html = analysis_html(analysis)
    said = words(html)
    assert said.startswith("Class bar 0 splits into")
    assert "On test images retraining takes the worst group from" in said
    assert "exmap+dfr" in said
    groups, correct = analysis.pseudo_groups, analysis.explained.correct
    for number, name in enumerate(groups.names):
        rows = groups.index == number
        right = percent(float(correct[rows].mean())).replace("\xa0", " ")
        assert f"{name} {rows.sum()} {right} bar" in said
    assert html.count("<table>") == html.count("</table>") == 2


def test_the_weakest_group_of_each_class_comes_first() -> None:
    analysis = sample_analysis()
    groups, correct = analysis.pseudo_groups, analysis.explained.correct
    names = re.findall(r"<td[^>]*>(class bar \d / cluster \d)</td>", analysis_html(analysis))
    numbers = [groups.names.index(name) for name in names]
    keys = [(groups.classes[number], correct[groups.index == number].mean()) for number in numbers]
    assert keys == sorted(keys)


def test_without_retraining_evaluation_images_and_true_groups_it_shows_the_groups() -> None:
    analysis = without_images(replace(sample_analysis(), fits={}, results=None, trust=None), truth=False)
    html = analysis_html(analysis)
    assert "Nothing was retrained yet" in words(html)
    assert "mostly" not in words(html)
    assert html.count("<table>") == 1


def test_it_has_no_script_and_names_are_text() -> None:
    html = analysis_html(sample_analysis(hostile=True))
    assert "<script" not in html
    assert "<b>" not in html
    assert HOSTILE not in html
    assert "class &lt;b&gt;bar 0&lt;/b&gt; / cluster 0" in html
