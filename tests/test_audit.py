"""``exmap audit`` from end to end on a small classifier that takes a planted shortcut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audited import Net, audit, digests, photographs, user
from exmap.data import Split
from exmap.data.planted import planted_shortcut
from exmap.pipeline.store import sole_writer
from exmap.results import Findings
from running import Said, little_choices

HOSTILE = ("$(x) [red]m\x1b[31m<script>alert(1)</script>".replace("/", "|"), "zoë\x1b]0;t\x07[bold]\nb'\"")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return user(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def audited(mine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said, dict[str, str]]:
    """Return the folder of a finished audit, what was said, and the user's files as they were before."""
    place, before = tmp_path_factory.mktemp("audited"), digests(mine)
    photographs(place / "photographs")
    return place, shortcut_audit(mine, place, "--fail-on-shortcut"), before


def shortcut_audit(mine: Path, place: Path, *words: str) -> Said:
    with little_choices():
        return audit(f"{mine}/net.py:two", place / "photographs", place / "out", *words, weights=mine / "two.pt")


def test_a_shortcut_is_found_said_and_repaired(audited: tuple[Path, Said, dict[str, str]]) -> None:
    place, said, _ = audited
    assert said.code == 1
    assert said.err == ""
    found = findings_in(place / "out")
    assert found.verdict == "shortcut"
    assert found.summary in said.out
    assert found.shortcuts
    assert "patch" in " ".join(found.shortcuts)
    assert found.data.images == sum(found.data.by_class.values()) == 160
    assert found.repair.repaired
    worst = min(found.groups, key=lambda group: group.before.value)
    assert worst.after is not None
    assert worst.after.value > worst.before.value + 0.5
    assert found.overall.after is not None
    assert found.overall.after.value > found.overall.before.value
    card = (place / "out" / "model_card.md").read_text()
    assert "## Before and after" in card
    assert "| all | 160 |" in card
    assert (place / "out" / "report" / "report.html").is_file()


def test_the_steps_speak_of_the_images_and_of_no_splits(audited: tuple[Path, Said, dict[str, str]]) -> None:
    steps = audited[1].steps()
    assert steps[1:3] == ["train, classifier (taken as it is): started", "explain, heatmaps of the images: started"]
    assert not [line for line in steps if "split" in line or "finished before" in line]
    assert "The classifier is right on" in audited[1].out


def test_the_users_files_stay_as_they_are(mine: Path, audited: tuple[Path, Said, dict[str, str]]) -> None:
    assert {name: digests(mine)[name] for name in audited[2]} == audited[2]
    found = findings_in(audited[0] / "out")
    assert found.model.digest == audited[2]["two.pt"]


def test_the_repaired_classifier_opens_in_the_users_network(
    mine: Path, audited: tuple[Path, Said, dict[str, str]]
) -> None:
    saved = audited[0] / "out" / "model"
    state, old = (torch.load(path, weights_only=True) for path in (saved / "repaired.pt", mine / "two.pt"))
    assert list(state) == list(old)
    assert [name for name in old if not torch.equal(old[name], state[name])] == ["fc.weight", "fc.bias"]
    head = load_file(saved / "head.safetensors")
    assert torch.equal(head["weight"], state["fc.weight"])
    other = planted_shortcut(2, sizes=(4, 4, 400), seed=5).test
    worst = []
    for weights in (old, state):
        model = Net(2)
        model.load_state_dict(weights)
        with torch.no_grad():
            right = model(torch.from_numpy(other.images.batch(np.arange(400)))).argmax(1).numpy() == other.labels
        worst.append(min(right[other.true_groups().index == group].mean() for group in range(4)))
    assert worst[0] < 0.3
    assert worst[1] > 0.8


def test_the_same_command_again_keeps_all_and_ends_well(mine: Path, audited: tuple[Path, Said, dict[str, str]]) -> None:
    place = audited[0]
    before = (place / "out" / "findings.json").read_text()
    said = shortcut_audit(mine, place)
    assert said.code == 0  # without --fail-on-shortcut
    assert {line for line in said.steps() if "kept" not in line} == set()
    assert (place / "out" / "findings.json").read_text() == before


def test_the_folder_of_another_audit_is_refused(mine: Path, audited: tuple[Path, Said, dict[str, str]]) -> None:
    said = shortcut_audit(mine, audited[0], "--seed", "3")
    assert said.refused()
    assert "made with other settings: seed" in said.err
    with sole_writer(audited[0] / "out"):
        said = shortcut_audit(mine, audited[0])
    assert said.refused()
    assert "another is running" in said.err


def findings_in(folder: Path) -> Findings:
    """Return what an audit wrote for programs."""
    return Findings.from_json(json.loads((folder / "findings.json").read_text()))


def stop(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


def test_a_refused_and_an_interrupted_audit_go_on_in_the_same_folder_with_hostile_names(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photographs(tmp_path / "ph\x1b[2Jotos [red]", names=HOSTILE)
    (data / HOSTILE[0] / "z\x1b[31m<img src=x onerror=alert(1)>\n[b].png").write_bytes(b"no image")

    def again(*words: str) -> Said:
        with little_choices():
            return audit(f"{mine}/net.py:two", data, tmp_path / "out", *words, weights=mine / "two.pt")

    said = again("--set", "images.on_error=stop")
    assert said.refused()
    assert "1 of 161 images" in said.err
    assert "images.on_error=skip" in said.err
    skip = ("--set", "images.on_error=skip")
    with monkeypatch.context() as patch:
        patch.setattr("exmap.pipeline.plan_groups.find_candidates", stop, raising=False)
        patch.setattr("exmap.auto.choice.find_candidates", stop)
        stopped = again(*skip)
    assert stopped.code == 130
    assert stopped.is_one_sentence()
    said = again(*skip)
    assert said.code == 0
    assert "explain: finished before, kept" in said.out
    found = findings_in(tmp_path / "out")
    assert len(found.data.skipped) == 1
    assert found.model.classes == HOSTILE
    for text in (stopped.out, stopped.err, said.out, said.err, (tmp_path / "out" / "model_card.md").read_text()):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "m\\x1b[31m<script>" in said.out
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_a_class_without_images_is_left_out_of_the_test(mine: Path, tmp_path: Path) -> None:
    data = photographs(tmp_path / "photographs", 3, 180)
    shutil.rmtree(data / "bar 1")
    with little_choices():
        said = audit(
            f"{mine}/net.py:three",
            data,
            tmp_path / "out",
            "--classes",
            "bar 0,bar 1,bar 2",
            weights=mine / "three.pt",
        )
    assert said.code == 0
    found = findings_in(tmp_path / "out")
    assert found.data.by_class == {"bar 0": 60, "bar 1": 0, "bar 2": 60}
    assert found.verdict != "cannot say"
    assert {name for name, row in found.classes.items() if row.found is not None} == {"bar 0", "bar 2"}
    assert any("without images: 'bar 1'" in note for note in found.notes)


def test_classes_in_another_order_are_named_and_the_corrected_command_goes_on(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photographs(tmp_path / "photographs", images=60, names=("b", "a"))

    def again(*words: str) -> Said:
        return audit(f"{mine}/net.py:two", data, tmp_path / "out", *words, weights=mine / "two.pt")

    said = again()
    assert said.refused()
    assert "in the order b,a; give --classes" in said.err
    monkeypatch.setattr("exmap.pipeline.steps.explain_split", stop)
    said = again("--classes", "b,a")
    assert said.code == 130  # and not refused for its settings
    assert "If you know another figure, check the preprocessing" in said.out
    said = audit(f"{mine}/net.py:two", data, tmp_path / "b", "--classes", "a,b", weights=mine / "two.pt")
    assert said.code == 130  # an order that is given is not refused
    assert "Warning: the classifier is right on" in said.out
    assert "in the order b,a; check --classes" in said.out


def test_images_of_the_first_set_that_the_second_has_are_left_out(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, test = photographs(tmp_path / "one", images=80), photographs(tmp_path / "two", images=100)
    for path in sorted(data.glob("*/*.png"))[:3]:
        shutil.copy(path, test / "bar 0" / f"copy-{path.name}")
    seen: list[Split] = []

    def look(model: object, split: Split, *_: Any, **__: Any) -> None:
        seen.append(split)
        stop()

    monkeypatch.setattr("exmap.pipeline.steps.explain_split", look)
    said = audit(f"{mine}/net.py:two", data, tmp_path / "out", "--test", test, weights=mine / "two.pt")
    assert said.code == 130
    assert len(seen[0]) == 77
    record = (tmp_path / "out" / "data" / "data.json").read_text()
    assert "3 of 80 images of one are in two, too" in record
