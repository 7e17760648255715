"""The report page of an analysis: what stands in it, what it says where something is missing, and never says."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exmap.analysis import Analysis
from exmap.records import Progress
from exmap.report.compose import write_page
from exmap.report.percentages import percent
from exmap.settings import change_settings, dump_settings, load_settings
from sample_analysis import HOSTILE, sample_analysis, with_choice, with_edits, without_images

Page = Callable[[Analysis], str]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """Write the page of an analysis and return its text; charts, which take seconds, are left out."""
    for chart in (
        "trust_card.share_chart",
        "cards.eigenvalue_chart",
        "choice_card.score_chart",
        "choice_card.data_chart",
    ):
        monkeypatch.setattr(f"exmap.report.{chart}", lambda *_, **__: None)

    def write(analysis: Analysis) -> str:
        write_page(analysis, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert sample_analysis().report(path) == path
    return path.read_text(encoding="utf-8")


def embedded(text: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    data: dict[str, Any] = json.loads(match[1])
    return data


def numbers(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype="<u2")


@cache
def words(text: str) -> str:
    """Return what a reader sees of a page."""
    body = re.sub(r"<(style|script|svg).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def spoken(share: float) -> str:
    return percent(share).replace("\xa0", " ")


# What stands in the page


def test_every_image_is_on_the_map_with_its_group_class_and_predictions(text: str) -> None:
    data, analysis = embedded(text), sample_analysis()
    explained = analysis.explained
    assert np.array_equal(numbers(data["group"]), analysis.pseudo_groups.index)
    assert np.array_equal(numbers(data["label"]), explained.labels)
    assert np.array_equal(numbers(data["predicted"]), explained.predicted)
    head = analysis.fits["exmap+dfr"].heads[0]
    assert np.array_equal(numbers(data["repaired"]), head.predict(explained.features))
    pictures = numbers(data["picture"])
    assert sorted(pictures) == list(range(len(explained)))
    assert [data["ids"][picture] for picture in pictures] == list(explained.ids)
    assert analysis.oracle is not None
    assert np.array_equal(numbers(data["truth"]), analysis.oracle.index)
    assert data["truths"] == list(analysis.oracle.names)


def test_accuracies_are_those_of_the_results(text: str) -> None:
    results, said = sample_analysis().results, words(text)
    assert results is not None
    rows = [results.methods[method] for method in ("erm", "exmap+dfr")]
    for row in rows:
        for value in (row.worst_group_accuracy, row.mean_accuracy):
            assert spoken(value) in said
    before, after = (f"{100 * row.worst_group_accuracy:.0f} %" for row in rows)
    assert f"On test images retraining takes the worst group from {before} to {after}." in said
    assert "evaluation: true groups" in said


def test_a_card_says_how_large_and_how_right_its_group_is(text: str) -> None:
    analysis, said = sample_analysis(), words(text)
    groups, explained = analysis.pseudo_groups, analysis.explained
    for number, name in enumerate(groups.names):
        rows = groups.index == number
        share = spoken(rows.sum() / (explained.labels == groups.classes[number]).sum())
        before = spoken(float(explained.correct[rows].mean()))
        assert f"{name} {rows.sum()} images, {share} of its class before {before} after " in said


def test_the_weakest_group_of_a_class_comes_first(text: str) -> None:
    names = re.findall(r'<h4 id="name-\d+">(.*?)</h4>', text)
    groups, correct = sample_analysis().pseudo_groups, sample_analysis().explained.correct
    accuracy = [correct[groups.index == groups.names.index(name)].mean() for name in names]
    classes = [groups.classes[groups.names.index(name)] for name in names]
    assert list(zip(classes, accuracy, strict=True)) == sorted(zip(classes, accuracy, strict=True))
    assert f"Class bar 0 splits into {classes.count(0)} groups of heatmaps" in words(text)


def test_three_classes_each_have_their_cards(page: Page) -> None:
    text = page(sample_analysis(3))
    assert re.findall(r"<h3>Class (bar \d)", text)[:3] == ["bar 0", "bar 1", "bar 2"]
    assert embedded(text)["classes"] == ["bar 0", "bar 1", "bar 2"]


def test_the_grouping_is_named_for_those_who_edit_it(text: str) -> None:
    assert embedded(text)["grouping"] == "0123abcd"


def test_the_page_tells_whether_to_trust_it(text: str) -> None:
    said = words(text)
    assert re.search(r"Clustered again on random parts \( ?80.% of the images", said)
    assert len(re.findall(r"<tr><td>72</td><td>\d+</td><td>-?\d\.\d\d</td></tr>", text)) == 5
    assert re.search(r"Plain input . gradient on 90 random images, .* at ARI -?\d\.\d\d\.", said)
    assert re.search(r"the image's pixels hold \d+ %, biases and other constants \d+ %; [\d.]+ % is unaccounted", said)
    assert "The heatmaps are by lrp with symmetric_gamma, of the predicted class." in said


def test_what_each_clustering_said_is_there_with_its_eigenvalues(text: str) -> None:
    said = words(text)
    for note, name in zip(sample_analysis().pseudo_groups.clusters.notes, ("bar 0", "bar 1"), strict=True):  # type: ignore[union-attr]
        assert f"Class {name}, {note['n_samples']} images: {note['n_clusters']} clusters {note['note']}" in said
    assert said.count("Eigenvalues of the graph's Laplacian") == 2
    assert said.count("Silhouette") == 2


def test_times_are_those_of_the_stages(text: str) -> None:
    assert "Time train 1 min 1 s explain 2.5 s Settings" in words(text)


def test_the_same_analysis_gives_the_same_page(page: Page) -> None:
    assert page(sample_analysis()) == page(sample_analysis())


def test_progress_is_heard_of(page: Page, tmp_path: Path) -> None:
    heard: list[Progress] = []
    write_page(sample_analysis(), tmp_path / "report.html", listen=heard.append)
    assert [(each.done, each.total) for each in heard if each.task == "report"] == [(n, 3) for n in range(4)]


# Where it comes from


def test_the_command_and_the_settings_make_the_run_again(text: str) -> None:
    match = re.search(r'<pre tabindex="0" aria-label="Command">(.*?)</pre>', text, re.DOTALL)
    assert match is not None
    given = shlex.split(unescape(match[1]))
    assert given[:5] == ["exmap", "run", "digits", "--seed", "0"]
    overrides = [given[i + 1] for i, word in enumerate(given) if word == "--set"]
    assert load_settings("digits", overrides, seed=0) == sample_analysis().settings
    assert "python 3.12" in words(text)


def test_no_place_on_the_machine_is_in_the_page(page: Page) -> None:
    analysis = sample_analysis()
    places = {"data__dir": "/secret/data", "images__cache_dir": "/secret/cache", "model__weights": "/secret/weights"}
    text = page(replace(analysis, settings=change_settings(analysis.settings, **places)))
    assert "secret" not in text
    assert "--data-dir DATA_DIR --set model.weights=WEIGHTS" in words(text)


def test_an_analysis_that_is_no_run_has_no_command(page: Page) -> None:
    text = page(replace(sample_analysis(), grouping=""))
    assert "exmap run" not in words(text)
    assert "edits.yaml" not in words(text)


# What is left out or added


def test_where_there_are_too_many_images_the_page_shows_some_of_every_group_and_says_how_many(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_POINTS", 40), ("MOST_PICTURES", 30), ("PICTURE_BYTES", 4_000)):
        monkeypatch.setattr(f"exmap.report.choose_pictures.{name}", value)
    monkeypatch.setattr("exmap.report.choose_pictures.SAMPLES", 1)
    text, groups = page(sample_analysis()), sample_analysis().pseudo_groups
    data = embedded(text)
    shown, sizes = np.bincount(numbers(data["group"])), groups.counts()
    assert shown.sum() == 40
    assert all(shown[sizes <= 5] == sizes[sizes <= 5])  # small groups are whole
    pictured = int((numbers(data["picture"]) < 65_535).sum())
    assert pictured == len(data["ids"]) < 30
    assert f"40 of 90 images are on the map, {pictured} of them with pictures" in words(text)
    cards = re.findall(r'class="sample" data-point="(\d+)"', text)
    assert all(numbers(data["picture"])[int(point)] < 65_535 for point in cards)


def test_without_images_the_page_shows_heatmaps_and_says_so(page: Page) -> None:
    text = page(without_images(sample_analysis()))
    said = words(text)
    assert said.count("The images were not at hand") == 1
    assert "gradient was not computed: it needs the images" in said
    assert "bar 0, patch 1" in said  # true groups are known all the same
    assert embedded(text)["pictures"] is False
    assert "after retraining" in said
    assert "url(data:image/webp" in text


def test_without_true_groups_nothing_is_said_of_them(page: Page) -> None:
    text = page(without_images(sample_analysis(), truth=False))
    assert embedded(text)["truths"] == []
    assert "Made of, by true groups" not in words(text)


def test_before_retraining_the_page_shows_the_classifier_as_it_is(page: Page) -> None:
    analysis = sample_analysis()
    assert analysis.results is not None
    results = analysis.results.changed(methods={"erm": analysis.results.methods["erm"]})
    said = words(page(replace(analysis, fits={}, results=results)))
    worst = f"{100 * results.methods['erm'].worst_group_accuracy:.0f} %"
    assert f"On test images the worst group is right {worst} of the time." in said
    assert "Nothing was retrained yet" in said
    assert "after" not in said.lower().split()
    assert "before retraining" not in said


def test_before_evaluation_the_page_shows_the_groups(page: Page) -> None:
    text = page(replace(sample_analysis(), results=None, fits={}, trust=None))
    said = words(text)
    assert "Nothing was evaluated on test images yet" in said
    assert "Class bar 0 splits into" in said
    assert "On test images" not in said
    assert "Clustered again" not in said
    assert "Labels used" not in said
    assert "Time" not in said
    assert re.search(r"the image's pixels hold \d+ %", said)  # what the heatmaps themselves say


def test_a_whole_network_is_run_on_the_grouped_images(page: Page) -> None:
    analysis = sample_analysis(network=True)
    text = page(analysis)
    head = sample_analysis().fits["exmap+dfr"].heads[0]  # the same weights
    assert np.array_equal(numbers(embedded(text)["repaired"]), head.predict(analysis.explained.features))
    said = words(text)
    assert "before and after retraining the whole network (exmap+subg)" in said
    assert "the whole network was chosen by these" in said


def test_a_whole_network_without_images_leaves_out_what_it_says_of_the_grouped_images(page: Page) -> None:
    text = page(without_images(sample_analysis(network=True)))
    assert set(numbers(embedded(text)["repaired"])) == {65_535}
    assert "flatters" not in words(text)
    assert "On test images retraining takes the worst group from" in words(text)


def test_a_method_that_is_not_by_the_groups_found_is_named(page: Page) -> None:
    analysis = sample_analysis()
    assert analysis.results is not None
    methods = {"erm": analysis.results.methods["erm"], "class_balanced": analysis.results.methods["exmap+dfr"]}
    fits, results = {"class_balanced": analysis.fits["exmap+dfr"]}, analysis.results.changed(methods=methods)
    said = words(page(replace(analysis, fits=fits, results=results)))
    assert "before and after retraining the last layer (class_balanced)" in said


def test_a_classifier_that_was_left_alone_is_said_to_be(page: Page) -> None:
    analysis = sample_analysis()
    fit = replace(analysis.fits["exmap+dfr"], left_alone="it has no last linear layer")
    said = words(page(replace(analysis, fits={"exmap+dfr": fit})))
    assert "Nothing was retrained, so accuracies before and after are equal: it has no last linear layer." in said


def test_what_retraining_on_edited_groups_gave_is_said(page: Page) -> None:
    analysis = with_edits(sample_analysis())
    assert analysis.results is not None
    text, worst = page(analysis), analysis.results.methods["exmap-edited+dfr"].worst_group_accuracy
    said = words(text)
    assert "The groups below are as found. After retraining on what a person made of them" in said
    assert f"the test images is right {spoken(worst)} of the time" in said
    assert "looks at the bar</h4>" not in text


def test_a_choice_of_groups_has_a_section_with_what_retraining_on_them_gave(page: Page) -> None:
    said = words(page(with_choice(sample_analysis())))
    assert "The chosen grouping A shortcut was found in class digit 0-4 and digit 5-9" in said.replace(
        "and class", "and"
    )
    assert "Accuracy on the test images, before and after retraining on the chosen groups." in said
    assert said.count("Worst group: bar 0, patch 1") == 2


def test_clustering_by_channels_is_said(page: Page) -> None:
    analysis = sample_analysis()
    maps = analysis.explained.maps()
    maps = replace(maps, channels=np.asarray(analysis.explained.features), check={**maps.check, "layer": "features.1"})
    settings = change_settings(analysis.settings, ["cluster.representation=channels"])
    analysis = replace(analysis, settings=settings, explained=replace(analysis.explained, heatmaps=maps))
    assert "Images were grouped by the relevance of the channels of layer features.1" in words(page(analysis))
    assert dump_settings(settings)["cluster"]["representation"] == "channels"


def test_names_that_would_do_harm_are_text(page: Page) -> None:
    text = page(sample_analysis(hostile=True))
    assert HOSTILE not in text
    assert HOSTILE in embedded(text)["ids"]
    assert "<b>bar 0</b>" not in text
    assert "Class <b>bar 0</b> splits into" in words(text)
