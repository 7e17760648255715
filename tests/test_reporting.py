"""The report of a whole run: what stands in it, what makes it again, and what a run that is not whole leads to."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from exmap.config import load_settings
from exmap.report.page import percent
from running import CHEAP, Said, bring_up, command, copy_run, finished_run
from trees import waterbirds_tree

HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return copy_run(finished, tmp_path / "run")


@pytest.fixture
def text(finished: Path) -> str:
    return (finished / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def results(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished / "results.json").read_text())
    return found


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def numbers(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype="<u2")


def words(text: str) -> str:
    """Return what a reader sees of a page."""
    body = re.sub(r"<(style|script|svg).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str | Path) -> Said:
    return command(monkeypatch, capsys, "report", *args)


def test_every_image_is_on_the_map_with_its_group_class_and_predictions(finished: Path, text: str) -> None:
    data = embedded(text)
    table = pq.read_table(finished / "cluster" / "exmap.parquet")
    assert np.array_equal(numbers(data["group"]), table["group"].to_numpy())
    assert np.array_equal(numbers(data["label"]), table["class"].to_numpy())
    assert np.array_equal(numbers(data["predicted"]), table["predicted"].to_numpy())
    pictures = numbers(data["picture"])
    ids = table["id"].to_pylist()
    assert sorted(pictures) == list(range(450))
    assert [data["ids"][picture] for picture in pictures] == ids
    oracle = pq.read_table(finished / "cluster" / "oracle.parquet")
    assert [data["truths"][number] for number in numbers(data["truth"])] == oracle["group_name"].to_pylist()


def test_accuracies_are_those_of_the_results(text: str, results: dict[str, Any]) -> None:
    said = words(text)
    for method in ("erm", "exmap+dfr"):
        row = results["methods"][method]
        for value in (row["worst_group_accuracy"], row["mean_accuracy"]):
            assert percent(value).replace("\xa0", " ") in said
    before, after = (f"{100 * results['methods'][m]['worst_group_accuracy']:.0f} %" for m in ("erm", "exmap+dfr"))
    assert f"On test images retraining takes the worst group from {before} to {after}." in said
    assert "evaluation: true groups" in said


def test_a_card_says_how_large_and_how_right_its_group_is(finished: Path, text: str) -> None:
    table = pq.read_table(finished / "cluster" / "exmap.parquet").to_pandas()
    said = words(text)
    for name, rows in table.groupby("group_name"):
        share = percent(len(rows) / (table["class"] == rows["class"].iloc[0]).sum())
        before = percent(rows["correct"].mean())
        wanted = f"{name} {len(rows)} images, {share} of its class before {before}".replace("\xa0", " ")
        assert wanted in said


def test_the_grouping_is_named_for_those_who_edit_it(finished: Path, text: str) -> None:
    assert embedded(text)["grouping"] == json.loads((finished / "cluster" / "done.json").read_text())["identity"]


def test_the_page_tells_whether_to_trust_it(text: str) -> None:
    said = words(text)
    assert re.search(r"Clustered again on random parts \( ?80.% of the images", said.replace("\xa0", " "))
    assert len(re.findall(r"<tr><td>360</td><td>\d+</td><td>-?\d\.\d\d</td></tr>", text)) == 5
    assert re.search(r"Plain input . gradient on 450 random images, .* at ARI -?\d\.\d\d\.", said)
    plain = said.replace("\xa0", " ")
    assert re.search(r"the image's pixels hold \d+ %, biases and other constants \d+ %; [\d.]+ % is unaccounted", plain)
    assert "The heatmaps are by lrp with symmetric_gamma, of the predicted class." in said


def test_the_command_and_the_settings_make_the_run_again(text: str, finished: Path) -> None:
    found = re.search(r'<pre tabindex="0" aria-label="Command">(.*?)</pre>', text, re.DOTALL)
    assert found is not None
    given = shlex.split(unescape(found[1]))
    assert given[:5] == ["exmap", "run", "digits", "--seed", "0"]
    overrides = [given[i + 1] for i, word in enumerate(given) if word == "--set"]
    kept = yaml.safe_load((finished / "settings.yaml").read_text())["settings"]
    assert load_settings("digits", overrides, seed=0).model_dump(mode="json") == kept


def test_no_place_on_the_machine_is_in_the_page(text: str, finished: Path) -> None:
    assert str(finished) not in text
    assert os.path.expanduser("~") + "/" not in text
    assert "cache_dir" not in text


def test_the_report_command_makes_the_same_page_anew_and_nothing_else(
    copied: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "report")
    stamp = (copied / "evaluate" / "done.json").stat().st_mtime_ns
    said = report(monkeypatch, capsys, copied)
    assert (said.code, said.err) == (0, "")
    assert f"Report: {copied / 'report/report.html'}" in said.out
    made = (copied / "report" / "report.html").read_text(encoding="utf-8")
    assert re.sub(r"\d+ min \d+ s|\d+\.\d s", "", made) == re.sub(r"\d+ min \d+ s|\d+\.\d s", "", text)
    assert (copied / "report" / "strategies.png").is_file()
    assert (copied / "evaluate" / "done.json").stat().st_mtime_ns == stamp
    settings = load_settings("digits", CHEAP)
    assert bring_up(copied, settings)[-1] == "report: finished before, kept"


def test_where_there_are_too_many_images_the_page_shows_some_of_every_group_and_says_how_many(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("MOST_POINTS", 200), ("MOST_PICTURES", 120), ("PICTURE_BYTES", 6_000)):
        monkeypatch.setattr(f"exmap.reporting.{name}", value)
    assert report(monkeypatch, capsys, copied).code == 0
    text = (copied / "report" / "report.html").read_text(encoding="utf-8")
    data = embedded(text)
    table = pq.read_table(copied / "cluster" / "exmap.parquet").to_pandas()
    sizes = np.bincount(table["group"])
    shown = np.bincount(numbers(data["group"]))
    assert shown.sum() == 200
    assert all(shown[sizes <= 20] == sizes[sizes <= 20])  # small groups are whole
    assert shown.min() >= min(sizes.min(), 20)
    pictured = int((numbers(data["picture"]) < 65_535).sum())
    assert pictured == len(data["ids"]) < 120
    assert f"200 of 450 images are on the map, {pictured} of them with pictures" in words(text)
    cards = re.findall(r'class="sample" data-point="(\d+)"', text)
    assert all(numbers(data["picture"])[int(point)] < 65_535 for point in cards)
    assert sum(len(uri) for uri in re.findall(r"url\(data:[^)]*\)", text)) < 40_000


@pytest.mark.parametrize("stage", ["train", "cluster", "evaluate"])
def test_a_run_that_is_not_whole_is_refused(
    copied: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / stage / "done.json").unlink()
    said = report(monkeypatch, capsys, copied)
    assert said.code == 2
    assert said.is_one_sentence()
    assert said.err.strip() == (
        f"exmap: a report needs a whole run, but stage {stage} of {copied} is not finished; bring it up to date with: "
        f"exmap evaluate {copied}"
    )


def test_a_run_whose_settings_were_changed_since_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((copied / "settings.yaml").read_text())
    tree["settings"]["cluster"]["n_clusters"] = 3
    (copied / "settings.yaml").write_text(yaml.safe_dump(tree))
    said = report(monkeypatch, capsys, copied)
    assert said.code == 2
    assert "stage cluster" in said.err
    assert "was made with other settings or by an older version" in said.err


def test_a_folder_of_another_format_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((copied / "settings.yaml").read_text())
    (copied / "settings.yaml").write_text(yaml.safe_dump({**tree, "format": 0}))
    said = report(monkeypatch, capsys, copied)
    assert said.code == 2
    assert "must be of run-folder format 1, found 0" in said.err


def test_moved_images_give_a_page_of_heatmaps_and_moved_back_one_with_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = waterbirds_tree(tmp_path / "wb", {0: (30, 8, 8, 30), 1: (12, 7, 7, 12), 2: (6, 6, 6, 6)})
    folder = tree / "waterbird_complete95_forest2water2"
    (folder / "001.Some_Bird" / "Some_Bird_1_0000.jpg").rename(folder / "001.Some_Bird" / HOSTILE)
    table = (folder / "metadata.csv").read_text().replace("Some_Bird_1_0000.jpg", HOSTILE, 1)
    (folder / "metadata.csv").write_text(table)
    small = (
        "model={name: resnet18, stem: imagenet}",
        "images={resize: 20, crop: 16, workers: 0, cache: never}",
        "train={epochs: 1, batch_size: 16}",
        "explain={size: 8, batch_size: 32}",
        "retrain={repeats: 1, subsamples: 2, tuning_splits: 2}",
        "runtime.precision=32-true",
    )
    folder = tmp_path / "run"
    bring_up(folder, load_settings("waterbirds", small, data__dir=str(tree)))
    text = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert any(HOSTILE in name for name in embedded(text)["ids"])
    whole = words(text)
    assert "waterbird, land" in whole
    tree.rename(tmp_path / "elsewhere")

    said = report(monkeypatch, capsys, folder)
    assert said.code == 0
    assert "report: without pictures, because" in said.out
    text = (folder / "report" / "report.html").read_text(encoding="utf-8")
    alone = words(text)
    assert "The images were not at hand" in alone
    assert "gradient was not computed: it needs the images" in alone
    assert "waterbird, land" in alone  # true groups are known from the run folder
    assert embedded(text)["pictures"] is False
    assert str(tmp_path) not in text
    assert (folder / "report" / "strategies.png").is_file()
    assert re.findall(r"<h3>Class (\w+)", text) == ["landbird", "waterbird"]

    said = report(monkeypatch, capsys, folder, "--data-dir", tmp_path / "elsewhere")
    assert said.code == 0
    assert embedded((folder / "report" / "report.html").read_text(encoding="utf-8"))["pictures"] is True
    assert words((folder / "report" / "report.html").read_text(encoding="utf-8")) == whole


def test_other_images_under_the_same_name_are_not_shown_as_those_of_the_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "train" / "identity.json"
    identity = json.loads(path.read_text())
    identity["before"]["inputs"] = {"digits": "0" * 64}
    path.write_text(json.dumps(identity))
    said = report(monkeypatch, capsys, copied)
    assert said.code == 0
    assert "without pictures, because the images found are not those of the run" in said.out
