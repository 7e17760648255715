"""The figures of a finished run, and what is said of those that cannot be drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exmap.draw import draw_figures, figure_names
from exmap.errors import SettingsError
from exmap.finished import open_finished
from running import Said, command, copy_run, finished_run, moved_run

Give = Callable[..., Said]
NEED_IMAGES = {"comparison", "strategies", "true-groups", "mistakes"}


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    return lambda *words: command(monkeypatch, capsys, *words)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def moved(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return copy_run(moved_run(tmp_path_factory.getbasetemp()), tmp_path / "moved")


def test_every_figure_of_a_finished_run_is_drawn(give: Give, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures"
    said = give("figures", finished, "--out", out)
    assert said.code == 0, said.err
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}.{kind}" for name in figure_names() for kind in ("png", "pdf")
    )
    assert said.out.splitlines() == [
        f"Figure: {out / f'{n}.{kind}'}" for n in figure_names() for kind in ("png", "pdf")
    ]
    assert all(path.stat().st_size < 1_000_000 for path in out.iterdir())


def test_the_same_run_gives_the_same_files(finished: Path, tmp_path: Path) -> None:
    names = ["comparison", "mistakes", "true-groups"]
    first, second = (draw_figures(open_finished(finished), tmp_path / place, names) for place in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert [path.read_bytes() for path in one.paths] == [path.read_bytes() for path in other.paths]


def test_only_the_figures_asked_for_are_drawn_into_the_run_folder(give: Give, finished: Path, tmp_path: Path) -> None:
    run = copy_run(finished, tmp_path / "run")
    assert give("figures", run, "--only", "true-groups, comparison").code == 0
    assert sorted(path.stem for path in (run / "figures").glob("*.pdf")) == ["comparison", "true-groups"]


def test_an_unknown_figure_is_refused_with_the_closest_name(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'mistakes'"):
        draw_figures(open_finished(finished), tmp_path / "out", ["mistake"])
    assert not (tmp_path / "out").exists()


def test_where_the_data_moved_what_needs_no_images_is_drawn_and_the_rest_is_named(
    give: Give, moved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = give("figures", moved)
    assert said.code == 0, said.err
    assert {path.name for path in (moved / "figures").iterdir()} == {"embedding.png", "embedding.pdf"}
    left = [line for line in said.out.splitlines() if "left out" in line]
    assert {line.split(":")[0] for line in left} == NEED_IMAGES
    assert sum("--data-dir" in line for line in left) == 2
    assert sum(f"exmap evaluate {moved}" in line for line in left) == 2  # this run is not retrained
    said = give("figures", moved, "--data-dir", tmp_path_factory.getbasetemp() / "moved-data", "--only", "true-groups")
    assert (moved / "figures" / "true-groups.pdf").exists()


def test_without_true_groups_the_figures_of_them_are_left_out_with_a_sentence(moved: Path) -> None:
    notes = json.loads((moved / "cluster" / "clusters.json").read_text())
    del notes["oracle"]
    (moved / "cluster" / "clusters.json").write_text(json.dumps(notes))
    drawn = {each.name: each for each in draw_figures(open_finished(moved), moved / "f", ["true-groups", "embedding"])}
    assert drawn["true-groups"].paths == ()
    assert "no true groups" in drawn["true-groups"].note
    assert [path.name for path in drawn["embedding"].paths] == ["embedding.png", "embedding.pdf"]
    assert "stand alone" in drawn["embedding"].note


def test_an_unfinished_run_is_refused_in_one_sentence(give: Give, moved: Path) -> None:
    (moved / "cluster" / "done.json").unlink()
    said = give("figures", moved)
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert f"exmap evaluate {moved}" in said.err
    said = give("figures", moved / "nothing")
    assert (said.code, said.is_one_sentence()) == (2, True)


def test_the_classifiers_of_the_comparison_say_what_they_predicted(finished: Path) -> None:
    found = open_finished(finished)
    head, outputs, test = found.repaired_head(), found.outputs("test"), found.splits["test"]
    assert head is not None
    import torch

    images = torch.from_numpy(test.images.batch(np.arange(40)))
    with torch.no_grad():
        trained, repaired = (found.model(stage)(images).argmax(dim=1).numpy() for stage in ("train", "retrain"))
    np.testing.assert_array_equal(trained, outputs.predicted[:40])
    np.testing.assert_array_equal(repaired, head.predict(outputs.features[:40]))
