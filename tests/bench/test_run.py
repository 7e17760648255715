"""A whole bench on the embedded digits: what it leaves, that it continues, and that failures stay where they are."""

from __future__ import annotations

import csv
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from exmap.bench import bench_names, load_bench, plan, run_bench, work
from exmap.errors import SettingsError
from exmap.pipeline.disk import read_json, slug
from exmap.results import read_cell
from running import (
    CHEAP,
    LONGEST,
    as_options,
    bring_up,
    changed,
    cheap_settings,
    command,
    copy_run,
    finished_run,
    in_process,
    start_process,
)

QUICK = [*CHEAP, "train.epochs=1"]
PUBLISHED = ["retrain.harm=warn"]  # as a bench measures its methods
METHODS = [
    "erm",
    "exmap+dfr",
    "oracle+dfr",
    "random+dfr",
    "class_balanced",
    "afr@exmap",
    "eiil[steps=50]+dfr",
    "exmap[method=kmeans,n_clusters=2,size=4]+dfr",
    "exmap[method=kmeans,n_clusters=2,representation=channels]+dfr",
    "exmap+subg",
    "jtt[up_weight=2]",
    "jtt[up_weight=2]@oracle",
]


def bring(
    folder: Path, methods: list[str], *settings: str, jobs: int = 1, **changes: Any
) -> tuple[list[Any], list[Any], list[str]]:
    said: list[str] = []
    bench = load_bench(datasets=["digits"], methods=methods, seeds=1, settings=[*CHEAP, *settings])
    rows, cells = run_bench(bench, plan(bench), folder, jobs=jobs, say=said.append, **changes)
    return rows, cells, said


Finished = tuple[Path, list[Any], list[Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A bench whose classifier is that of the finished run, so that only groups and fits are made."""
    folder = tmp_path_factory.mktemp("bench") / "b"
    run = copy_run(finished_run(tmp_path_factory), folder / "runs" / "digits-seed0")
    changed(run, *PUBLISHED)
    (folder / "bench.yaml").touch()
    rows, cells, _ = bring(folder, METHODS)
    return folder, rows, cells


def test_every_cell_is_there_in_the_order_given(finished: Finished) -> None:
    folder, rows, cells = finished
    assert [cell["method"] for cell in cells] == [row.method for row in rows] == METHODS
    assert {cell["status"] for cell in cells} == {"done"}
    for cell in cells:
        path = folder / "cells" / "digits" / f"{slug(cell['method'])}-seed0.json"
        assert read_json(path) == {k: v for k, v in cell.items() if k != "label"}
        arrays = load_file(path.with_suffix(".safetensors"))
        right = arrays["correct"].mean(axis=0)
        assert right.mean() == pytest.approx(cell["mean_accuracy"])
        worst = [
            min(repeat[arrays["group"] == g].mean() for g in np.unique(arrays["group"])) for repeat in arrays["correct"]
        ]
        assert np.mean(worst) == pytest.approx(cell["worst_group_accuracy"])


def test_true_groups_are_used_by_nothing_that_does_not_say_oracle(
    finished: Finished,
) -> None:
    for cell in finished[2]:
        used = cell["labels_used"]
        asked = {label for step in ("training", "fitting", "selection") for label in used[step]}
        assert ("true groups" in asked) == ("oracle" in cell["method"]), cell["method"]
        assert used["evaluation"] == ["true groups"]
    by_name = {cell["method"]: cell["labels_used"] for cell in finished[2]}
    assert by_name["exmap+dfr"]["fitting"] == by_name["exmap+dfr"]["selection"] == ["exmap groups"]
    assert by_name["jtt[up_weight=2]"]["selection"] == ["class labels"]
    assert by_name["afr@exmap"] == {**by_name["afr@exmap"], "fitting": ["class labels"], "selection": ["exmap groups"]}


def test_a_cell_is_written_as_its_schema_says(finished: Finished) -> None:
    for cell in finished[2]:
        read = read_cell({key: value for key, value in cell.items() if key != "label"})
        assert read.to_json() == {key: value for key, value in cell.items() if key != "label"}


def test_a_cell_has_the_numbers_of_a_run(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> None:
    methods = read_json(finished_run(tmp_path_factory) / "results.json")["methods"]
    compared = [cell for cell in finished[2] if cell["method"] in methods]
    assert {cell["method"] for cell in compared} >= {"erm", "exmap+dfr", "oracle+dfr", "random+dfr"}
    for cell in compared:
        for key in ("worst_group_accuracy", "mean_accuracy", "std", "group_accuracy"):
            assert cell[key] == methods[cell["method"]][key], cell["method"]


def test_the_folder_of_its_run_can_be_gone_on_with(finished: Finished, tmp_path: Path) -> None:
    run = copy_run(finished[0] / "runs" / "digits-seed0", tmp_path / "run")
    said = bring_up(run, cheap_settings(*PUBLISHED), until="evaluate")
    assert said[-2:] == ["retrain: finished before, kept", "evaluate: finished before, kept"]


def test_one_training_of_jtt_serves_both_its_choices(finished: Finished) -> None:
    trained = [path for path in (finished[0] / "runs" / "digits-seed0").iterdir() if path.name.startswith("fit-jtt")]
    assert len(trained) == 1
    assert list(read_json(trained[0] / "fit.json")) == ["jtt[up_weight=2]", "jtt[up_weight=2]@oracle"]


def test_the_tables_hold_every_row(finished: Finished) -> None:
    folder, rows, _ = finished
    for name in ("table.csv", "cells.csv"):
        found = list(csv.DictReader((folder / name).read_text().splitlines()))
        assert [line["method"] for line in found] == METHODS
    assert (folder / "figure-digits.png").read_bytes()[:4] == b"\x89PNG"
    assert "\\toprule" in (folder / "table.tex").read_text()
    text = (folder / "table.md").read_text()
    assert all(method.split("[")[0] in text for method in METHODS)
    compared = {row.method: row.difference for row in rows}
    assert compared["exmap+dfr"] is None
    assert all(compared[name] is not None for name in METHODS if name != "exmap+dfr")


def test_a_finished_bench_is_kept_and_a_missing_cell_made_again(
    finished: Finished,
) -> None:
    folder, _, cells = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*.json")}
    _, again, said = bring(folder, METHODS)
    assert again == cells
    assert said == ["12 of 12 cells were finished before, and are kept"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    lost = folder / "cells" / "digits" / "exmap+dfr-seed0.json"
    lost.unlink()
    _, again, said = bring(folder, METHODS)
    assert [{**c, "seconds": 0} for c in again] == [{**c, "seconds": 0} for c in cells]
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {lost}
    assert said[0] == "11 of 12 cells were finished before, and are kept"
    assert [line for line in said if "exmap+dfr" in line] == said[-1:]


def test_a_bench_that_was_stopped_continues_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["erm", "classes+dfr", "random+dfr"]
    write, finished = work.CellPlace.write, []

    def stopped(place: work.CellPlace, result: Any) -> Any:
        if len(finished) == 1:
            raise KeyboardInterrupt
        finished.append(place)
        return write(place, result)

    with monkeypatch.context() as patch:
        patch.setattr(work.CellPlace, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            bring(tmp_path / "b", methods)
    trained = tmp_path / "b" / "runs" / "digits-seed0" / "train" / "done.json"
    before = trained.stat().st_mtime_ns
    _, cells, said = bring(tmp_path / "b", methods)
    assert said[0] == "1 of 3 cells were finished before, and are kept"
    assert [cell["status"] for cell in cells] == ["done"] * 3
    assert trained.stat().st_mtime_ns == before
    whole = bring(tmp_path / "c", methods)[1]
    assert [{**cell, "seconds": 0} for cell in cells] == [{**cell, "seconds": 0} for cell in whole]


def test_other_settings_of_the_same_folder_make_its_steps_again(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    copy_run(finished[0] / "runs" / "digits-seed0", folder / "runs" / "digits-seed0")
    (folder / "bench.yaml").touch()
    trained = folder / "runs" / "digits-seed0" / "train" / "done.json"
    before = read_json(trained)["identity"]
    _, cells, _ = bring(folder, ["erm"], "train.batch_size=64")
    assert cells[0]["status"] == "done"
    assert read_json(trained)["identity"] != before


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_fails_is_marked_and_the_rest_goes_on(tmp_path: Path, jobs: int) -> None:
    methods = ["erm", "exmap[size=64]+dfr", "exmap[n_clusters=100000]+dfr", "class_balanced"]
    rows, cells, said = bring(tmp_path / "b", methods, "train.epochs=1", jobs=jobs)
    assert [cell["status"] for cell in cells] == ["done", "failed", "failed", "done"]
    assert "explain.size must be at most the image's side of 8 pixels, got 64" in cells[1]["reason"]
    assert "cluster.n_clusters must be at most" in cells[2]["reason"]
    assert sum("failed: " in line for line in said) == 2
    assert [bool(row.failed) for row in rows] == [False, True, True, False]
    assert "got 64" in (tmp_path / "b" / "table.md").read_text()


@pytest.mark.parametrize(
    ("word", "jobs"),
    [
        ("my_learner:Own", 1),
        ("my_learner.py:Own", 1),
        pytest.param("my_learner:Own", 2, marks=pytest.mark.slow),
        pytest.param("my_learner.py:Own", 2, marks=pytest.mark.long),
    ],
)
def test_a_learner_in_the_present_folder_is_found_in_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, jobs: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXMAP_MODULES", "{}")
    monkeypatch.delitem(sys.modules, "my_learner", raising=False)
    Path("my_learner.py").write_text("from exmap.retrain import DFR\nclass Own(DFR):\n    name = 'own'\n")
    _, cells, _ = bring(tmp_path / "b", [f"classes+{word}"], "train.epochs=1", jobs=jobs)
    assert [cell["status"] for cell in cells] == ["done"], cells[0].get("reason")


def test_a_diverging_loss_fails_all_cells_of_its_classifier(tmp_path: Path) -> None:
    _, cells, _ = bring(tmp_path / "b", ["erm", "classes+dfr"], "train.learning_rate=1e30")
    assert [cell["status"] for cell in cells] == ["failed", "failed"]
    assert all("the training loss of epoch 1 is" in cell["reason"] for cell in cells)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("exmap[representation=channels,size=7]+dfr", "representation=channels clusters none, got size=7"),
        ("exmap[scope=globl]+dfr", "input should be 'local' or 'global'"),
        ("jtt[up_weight=much]", "option up_weight of the learner jtt"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_any_work(method: str, said: str) -> None:
    bench = load_bench(datasets=["digits"], methods=["erm", method], seeds=1, settings=CHEAP)
    with pytest.raises(SettingsError, match=re.escape(said)):
        plan(bench)


def test_models_are_kept_on_request(tmp_path: Path) -> None:
    bring(tmp_path / "b", ["exmap+dfr", "exmap+subg"], "train.epochs=1", keep_models=True)
    found = sorted(path.name for path in (tmp_path / "b" / "models" / "digits").iterdir())
    assert found == ["exmap+dfr-seed0.safetensors", "exmap+subg-seed0.safetensors"]
    weights = [load_file(tmp_path / "b" / "models" / "digits" / name) for name in found]
    assert weights[0].keys() == weights[1].keys()
    base = load_file(tmp_path / "b" / "runs" / "digits-seed0" / "train" / "model.safetensors")
    assert {k for k in base if not np.array_equal(base[k], weights[0][k])} == {"11.weight", "11.bias"}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes where Linux lists them")
def test_no_worker_outlives_a_bench_that_is_killed(tmp_path: Path) -> None:
    words = ["bench", "--datasets", "digits", "--methods", "exmap+rwg[epochs=500]", "--seeds", "1", "--jobs", "2"]
    words += ["--out", str(tmp_path / "b"), *as_options(*QUICK)]

    def workers(of: int) -> set[int]:
        children = Path(f"/proc/{of}/task/{of}/children")
        return {
            int(pid)
            for pid in children.read_text().split()
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        }

    with start_process(*words) as process:
        deadline = time.monotonic() + LONGEST
        while not (tmp_path / "b" / "runs").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        started = workers(process.pid)
        process.kill()
    assert started
    deadline = time.monotonic() + LONGEST
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


@pytest.mark.long
def test_an_interrupted_bench_continues_and_takes_no_other_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    words = ["bench", "--datasets", "digits", "--methods", "erm,exmap+dfr,exmap+rwg", "--seeds", "1", "--jobs", "2"]
    words += ["--out", str(folder), *as_options(*QUICK)]
    with start_process(*words) as process:
        deadline = time.monotonic() + LONGEST
        while not (folder / "cells.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        beside = command(monkeypatch, capsys, *words)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONGEST)
    assert beside.code == 2
    assert beside.is_one_sentence()
    assert "another is running" in beside.err
    assert process.returncode == 130
    assert "rerun the same command to compute the missing cells" in err
    there = list((folder / "cells").rglob("*.json"))
    assert 1 <= len(there) < 3
    said = in_process(*words)
    assert said.code == 0, said.err
    assert f"{len(there)} of 3 cells were finished before, and are kept" in said.out
    assert len(list((folder / "cells").rglob("*.json"))) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--datasets", "digitz"], "unknown data set 'digitz' (did you mean 'digits'?)"),
        (["--datasets", "digits", "--methods", "exmap+dfrr"], "did you mean 'dfr'?"),
        ([], "a bench needs data sets, got none"),
        (["papr"], "unknown bench 'papr' (did you mean 'paper'?)"),
        (["--datasets", "digits", "--seeds", "0"], "the number of seeds must be at least 1, got 0"),
        (["--datasets", "digits", "--reference", "exmap"], "unknown learner 'exmap'"),
        (["--datasets", "digits", "--data-dir", "mnist=/tmp"], "unknown data set 'mnist'"),
        (["--datasets", "digits", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    found = command(monkeypatch, capsys, "bench", *words, "--out", str(tmp_path / "b"))
    assert found.code == 2
    assert found.is_one_sentence()
    assert said in found.err
    assert not (tmp_path / "b").exists()


def test_a_folder_with_other_things_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    found = command(monkeypatch, capsys, "bench", "--datasets", "digits", "--out", str(tmp_path))
    assert found.code == 2
    assert "holds other files" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_holds_a_grid(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "blocks:\n  - {datasets: [digits], methods: ['exmap[size={4,2}]+dfr', erm], seeds: [3, 1]}\n"
        "labels: {erm: as it was}\n"
    )
    bench = load_bench(tmp_path / "mine.yaml")
    assert [(c.seed, str(c.method)) for c in plan(bench)] == [
        (1, "exmap[size=4]+dfr"),
        (1, "exmap[size=2]+dfr"),
        (1, "erm"),
        (3, "exmap[size=4]+dfr"),
        (3, "exmap[size=2]+dfr"),
        (3, "erm"),
    ]
    assert bench.labels == {"erm": "as it was"}
    assert [cell.settings.seed for cell in plan(bench)] == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "blocks: [{datasets: [digits], method: [erm]}]",
            "unknown setting of a bench 'method' (did you mean 'methods'?)",
        ),
        ("block: []", "unknown setting of a bench 'block' (did you mean 'blocks'?)"),
        ("blocks: [{datasets: [digits], seeds: 0}]", "must be at least 1"),
        ("blocks: []", "bench setting blocks"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "cannot be parsed"),
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        load_bench(tmp_path / "mine.yaml")
    assert said in str(error.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text("data: {name: digits}\n")
    bench = load_bench(datasets=[str(tmp_path / name / "mine.yaml") for name in ("a", "b")], methods=["erm"])
    with pytest.raises(SettingsError, match="data sets must have names of their own"):
        plan(bench)


def test_every_grid_that_comes_along_can_be_planned() -> None:
    assert {"paper", "shortcuts"} <= set(bench_names())
    for name in bench_names():
        cells = plan(load_bench(name))
        assert len(cells) == len({(c.dataset, c.seed, str(c.method)) for c in cells})


def test_folders_of_data_may_be_named_for_data_sets_that_are_not_asked_for(tmp_path: Path) -> None:
    bench = load_bench(datasets=["digits", "dominoes"], methods=["erm"], seeds=1)
    cells = plan(bench, {"cmnist": tmp_path / "c", "dominoes": tmp_path / "d", "": tmp_path})
    assert [cell.settings.data.dir for cell in cells] == [tmp_path, tmp_path / "d"]


def test_an_oracle_without_true_groups_fails_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    small = ["images.resize=8", "images.crop=null", "images.workers=0", "model.pretrained=false", "explain.size=8"]
    settings = [*small, *QUICK, f"images.cache_dir={tmp_path / 'cache'}"]
    methods = ["erm", "oracle+dfr", "exmap[method=kmeans,n_clusters=2]+dfr"]
    bench = load_bench(datasets=["folder"], methods=methods, seeds=1, settings=settings)
    _, cells = run_bench(bench, plan(bench, {"": tmp_path / "pets"}), tmp_path / "b", jobs=1, say=lambda _: None)
    assert [cell["status"] for cell in cells] == ["done", "failed", "done"]
    assert cells[1]["reason"] == "split val has no true groups; evaluate by class, or name its group columns"
    assert cells[0]["labels_used"]["evaluation"] == ["class labels"]
