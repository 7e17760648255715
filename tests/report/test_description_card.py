"""What the report and a notebook show of how images differ: the sentence, the numbers behind it, typical images."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import cache
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exmap.analysis import Analysis
from exmap.describe import describe
from exmap.groups import ExMapGroups, crossed_groups
from exmap.report.compose import write_page
from exmap.report.description_card import DescriptionCard, chosen_descriptions
from exmap.report.notebook import analysis_html
from exmap.results import ClassFinding, StrategyDescription
from sample_analysis import sample_analysis, with_choice, without_images


@pytest.fixture(autouse=True)
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out charts, which take seconds."""
    for chart in (
        "trust_card.share_chart",
        "cards.eigenvalue_chart",
        "choice_card.score_chart",
        "choice_card.data_chart",
    ):
        monkeypatch.setattr(f"exmap.report.{chart}", lambda *_, **__: None)


def words(html: str) -> str:
    body = re.sub(r"<(style|script|svg).*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@cache
def with_descriptions(*, hostile: bool = False) -> Analysis:
    analysis = sample_analysis(hostile=hostile)
    found = describe(analysis.explained, analysis.pseudo_groups, analysis.grouped)
    return replace(analysis, descriptions={ExMapGroups.name: found})


@cache
def with_shortcut() -> Analysis:
    """Return an analysis in which a shortcut was found by exchange, whose groups are the chosen ones."""
    analysis = with_choice(with_descriptions())
    assert analysis.results is not None
    assert analysis.results.auto is not None
    explained, record = analysis.explained, analysis.results.auto
    names = explained.class_names
    against = (np.arange(len(explained)) % 5 == 0).astype(np.int64)
    groups = crossed_groups(explained.labels, against, names, source="auto")
    finding = ClassFinding.nothing(False, "").changed(
        found=True, property="colour", candidate="exchange[property=colour]", why="It was seen."
    )
    record = record.changed(
        chosen="exchange[property=colour]",
        shortcut={names[0]: finding, names[1]: ClassFinding.nothing(False, "Nothing was seen.")},
        repaired=True,
    )
    found = describe(explained, groups, analysis.grouped, record=record)
    return replace(
        analysis,
        groups={**analysis.groups, "auto": groups},
        descriptions={**analysis.descriptions, "auto": found},
        results=analysis.results.changed(auto=record),
    )


def page(analysis: Analysis, folder: Path) -> str:
    write_page(analysis, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_each_card_has_its_sentence_and_numbers(tmp_path: Path) -> None:
    analysis = with_descriptions()
    text = page(analysis, tmp_path)
    said = words(text)
    for each in analysis.descriptions[ExMapGroups.name]:
        assert " ".join(each.sentence.split()) in said
        for row in DescriptionCard(each).rows:
            assert " ".join(f"{row.words} {row.about}".split()) in said
    assert text.count('class="sentence"') == len(analysis.pseudo_groups.names)
    assert "What differs need not be what the classifier reads." in said


def test_without_descriptions_cards_are_as_before(tmp_path: Path) -> None:
    text = page(sample_analysis(), tmp_path)
    assert 'class="sentence"' not in text
    assert "chosen-group" not in re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)


def test_rows_are_what_matters_with_the_patch_and_the_place_first() -> None:
    found = with_descriptions().descriptions[ExMapGroups.name]
    each = next(each for each in found if each.patch is not None)
    rows = DescriptionCard(each).rows
    assert each.patch is not None
    first = [row.words for row in rows[:2]]
    assert f"{each.patch.looks} patch at the {each.patch.where}" in first
    assert len(rows) <= 14
    assert all(abs(row.effect) >= 1 / 3 for row in rows if row.effect is not None)


def test_the_chosen_groups_are_shown_where_the_page_shows_others(tmp_path: Path) -> None:
    analysis = with_shortcut()
    chosen = chosen_descriptions(analysis)
    name = analysis.explained.class_names[0]
    assert [(each.class_name, each.against) for each in chosen] == [(name, True), (name, False)]
    said = words(page(analysis, tmp_path))
    for each, title in zip(chosen, ("another class", name), strict=True):
        assert f"{name}: colour speaks for {title} {each.images} images" in said
        assert " ".join(each.sentence.split()) in said
    assert each.sentence.startswith(f"Predictions for “{name}” follow the colour, which speaks for “{name}”")


def test_their_prototypes_have_pictures(tmp_path: Path) -> None:
    analysis = with_shortcut()
    text = page(analysis, tmp_path)
    parts = re.findall(r'<div class="chosen-group">(.*?)</div>\s*</div>', text, re.DOTALL)
    assert len(parts) == 2
    for part, each in zip(parts, chosen_descriptions(analysis), strict=True):
        assert all(f'title="{name}, ' in part for name in each.prototype_ids)


def test_chosen_groups_that_are_shown_anyway_are_not_shown_twice() -> None:
    analysis = with_shortcut()
    same = replace(analysis, groups={**analysis.groups, "auto": analysis.pseudo_groups})
    assert chosen_descriptions(same) == []
    assert chosen_descriptions(sample_analysis()) == []


def test_names_and_values_cannot_do_harm(tmp_path: Path) -> None:
    analysis = with_descriptions(hostile=True)
    hostile = "<img src=x onerror=alert(1)>"
    places = [hostile if group == 0 else "sea" for group in analysis.pseudo_groups.index]
    found = describe(analysis.explained, analysis.pseudo_groups, metadata={"<b>place</b>": places})
    analysis = replace(analysis, descriptions={ExMapGroups.name: found})
    assert any(hostile in each.sentence for each in found)
    for html in (page(analysis, tmp_path), analysis_html(analysis)):
        assert hostile not in html
        assert "<b>place" not in html


def test_a_description_that_was_written_makes_the_same_card() -> None:
    each = with_descriptions().descriptions[ExMapGroups.name][0]
    read = StrategyDescription.from_json(json.loads(json.dumps(each.to_json())))
    assert DescriptionCard(read).rows == DescriptionCard(each).rows
    assert DescriptionCard(read).area == DescriptionCard(each).area


# In a notebook


def test_a_notebook_shows_a_card_with_pictures_for_each_group() -> None:
    analysis = with_descriptions()
    html = analysis_html(analysis)
    for each in analysis.descriptions[ExMapGroups.name]:
        assert each.sentence in unescape(html)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == len(analysis.pseudo_groups.names)
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(pictures[0]))))
    assert picture.shape[0] == pytest.approx(2 * 72, abs=8)
    assert picture.shape[1] == 5 * 72


def test_a_notebook_shows_the_chosen_groups_of_a_shortcut() -> None:
    html = analysis_html(with_shortcut())
    name = with_shortcut().explained.class_names[0]
    assert f"{name}: colour speaks for another class" in html
    assert html.count("<img") == 2


def test_a_notebook_without_images_or_descriptions_shows_heatmaps() -> None:
    html = analysis_html(without_images(sample_analysis()))
    assert "typical heatmaps of" in html
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert picture is not None
    assert Image.open(BytesIO(base64.b64decode(picture[1]))).height == pytest.approx(72, abs=4)
