"""The command line: what it prints, what it refuses in one sentence, and its exit codes."""

from __future__ import annotations

import gzip
import itertools
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import exmap
from exmap.cli import app
from exmap.cli.progress import ProgressBars
from exmap.model import build_model, save_weights
from exmap.pipeline.store import sole_writer
from exmap.records import Progress
from exmap.settings import ModelSettings
from running import (
    CHEAP,
    KEPT,
    LONGEST,
    STAGE_NAMES,
    Give,
    Said,
    as_options,
    bring_up,
    cheap_settings,
    command,
    copy_run,
    modification_times,
    redone,
    results_of,
    start_process,
)
from trees import picture, waterbirds_tree

COMMANDS = [*STAGE_NAMES, "run", "auto", "figures", "export", "settings", "check-model", "bench", "data", "cache"]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *words: command(monkeypatch, capsys, *words)


def refused(said: Said) -> bool:
    return said.refused()


# Start


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["cluster", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = """
import atexit, sys
heavy = {"torch", "sklearn", "matplotlib", "zennit", "numpy", "scipy"}
if sys.argv[1] == "--help":  # typer itself takes pydantic, where it is installed, to read the words of a command
    heavy.add("pydantic")
atexit.register(lambda: print("heavy:", sorted(heavy & set(sys.modules))))
from exmap.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=LONGEST, check=False
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_installed_command_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("exmap")
    ways = [[sys.executable, "-m", "exmap"], *([[script]] if script.exists() else [])]
    for way in ways:
        done = subprocess.run([*way, "run", "digist"], capture_output=True, text=True, timeout=LONGEST, check=False)
        assert refused(Said(done.returncode, done.stdout, done.stderr)), done.stderr
        assert "did you mean 'digits'" in done.stderr


def test_the_version_is_that_of_the_installed_package(give: Give) -> None:
    said = give("--version")
    assert (said.code, said.out, said.err) == (0, f"exmap {exmap.__version__}\n", "")


def test_the_help_lists_every_command_and_each_command_has_help_of_its_own(give: Give) -> None:
    said = give("--help")
    assert [name for name in COMMANDS if f" {name} " not in said.out] == []
    assert "--install-completion" in said.out
    for name in COMMANDS:
        own = give(name, "--help")
        assert own.code == 0
        assert f"exmap {name} [OPTIONS]" in own.out


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_EXMAP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "exmap eval")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        app(prog_name="exmap")
    assert capsys.readouterr().out.split() == ["evaluate"]


def test_settings_are_listed_with_values_limits_and_meanings_and_follow_the_learner(
    give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    said = give("settings", "digits", "--set", "retrain.learner=jtt", "--set", "retrain.up_weight=20")
    assert said.code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["data.correlation"][:2] == ["0.9", "number, at least 0.1, at most 1.0"]
    assert by_name["retrain.up_weight"][0] == "20"
    assert "retrain.strengths" not in by_name
    assert all(row[2] for name, row in by_name.items() if name)
    plain = give("settings")
    assert "retrain.strengths" in plain.out
    assert refused(give("settings", "digist"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "missing argument 'PRESET_OR_YAML'; run exmap run --help to see its options"),
        (["cluster"], "missing argument 'RUN_DIR'; run exmap cluster --help to see its options"),
        (["rnu", "digits"], "unknown command 'rnu' (did you mean 'run'?); choose one of: audit, "),
        (["data", "lst"], "unknown command 'lst' (did you mean 'list'?); choose one of: check, compose, list, prepare"),
        (
            ["run", "digits", "--sead", "1"],
            "unknown option of exmap run '--sead' (did you mean '--seed'?); choose one of",
        ),
        (["run", "digits", "--seed", "x"], "invalid value for '--seed': "),
        (["run", "digits", "--seed"], "option '--seed' requires an argument; run exmap"),
        (["run", "digits", "two\nlines"], "got unexpected extra argument"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(give: Give, words: list[str], said: str) -> None:
    found = give(*words)
    assert refused(found), found.err
    assert found.err.startswith(f"exmap: {said}") or said in found.err


def test_without_words_the_help_is_shown(give: Give) -> None:
    for words in ([], ["data"]):
        found = give(*words)
        assert (found.code, found.err) == (0, "")
        assert "Usage: exmap" in found.out


# Names and values that are not known


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("trian.epochs=1", "did you mean 'train"),
        ("clusters.method=kmeans", "did you mean 'cluster'"),
        ("train.epoch=1", "did you mean 'train.epochs'"),
        ("groups.sources=[exmap, geroge]", "unknown group source 'geroge' (did you mean 'george'?)"),
        ("cluster.method=spektral", "unknown clustering method 'spektral' (did you mean 'spectral'?)"),
        ("groups.george.method=kmens", "did you mean 'kmeans'"),
        ("explain.explainer=lpr", "unknown explainer 'lpr' (did you mean 'lrp'?)"),
        ("explain.composite=atuo", "unknown composite 'atuo' (did you mean 'auto'?)"),
        ("explain.target=margn", "explain.target: must be predicted, true, margin or the number of a class"),
        ("cluster.representation=pixel", "cluster.representation: input should be 'pixels' or 'channels', got 'pixel'"),
        ("groups.george.representation=channels", "the george source clusters features"),
        ("explain.composite=epsilon_pluss", "unknown composite 'epsilon_pluss' (did you mean 'epsilon_plus'?)"),
        ("train.epochs=-1", "setting train.epochs: input should be greater than or equal to 0, got -1"),
        ("data.name=cmist", "unknown data set 'cmist' (did you mean 'cmnist'?)"),
        ("data.name=cmnst", "'cmnist'"),
        ("groups.sources=[classes]", "must contain exmap"),
        ("seed", "section.key=value"),
        ("train.epochs=[", "must be plain YAML"),
    ],
)
def test_an_unknown_name_or_value_is_refused_in_one_sentence(give: Give, tmp_path: Path, item: str, hint: str) -> None:
    said = give("run", "digits", "--out", tmp_path / "run", "--set", item)
    assert refused(said)
    assert hint in said.err
    assert not (tmp_path / "run" / "train.part").exists()


def test_an_unknown_preset_is_refused_with_the_closest_one(give: Give) -> None:
    said = give("run", "cmnits")
    assert refused(said)
    assert (
        "unknown preset 'cmnits' (did you mean 'cmnist'?); choose one of: audit, celeba, cmnist, cmnist-10" in said.err
    )


def test_a_settings_file_that_does_not_exist_or_is_no_mapping_is_refused(give: Give, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name, reason in (("none.yaml", "does not exist"), ("list.yaml", "must hold a mapping")):
        said = give("run", tmp_path / name, "--out", tmp_path / "run")
        assert refused(said)
        assert reason in said.err


@pytest.mark.parametrize(
    ("stage", "items"),
    [
        ("cluster", ["cluster.method=kmeans", "cluster.n_clusters=1000"]),
        ("retrain", ["retrain.strengths=[]"]),
        ("retrain", ["retrain.strengths=[0]"]),
        ("retrain", ["retrain.learner=subg", "retrain.strengths=[1]"]),
        ("train", ["train.batch_size=1"]),
    ],
    ids=["more clusters than samples", "no strength", "strength zero", "another learner's option", "batches of one"],
)
def test_a_value_that_cannot_be_computed_with_is_refused(
    give: Give, copied: Path, stage: str, items: list[str]
) -> None:
    assert refused(give(stage, copied, *as_options(*items)))


def test_more_neighbours_than_samples_are_refused(give: Give, copied: Path) -> None:
    said = give("cluster", copied, "--set", "cluster.n_neighbors=451")
    assert refused(said)
    assert "n_neighbors must be at most the number of images that are clustered together, 450" in said.err
    assert "got 451" in said.err


# Data


def write_idx(path: Path, shape: tuple[int, ...], *, missing: int = 0) -> None:
    size = 1
    for side in shape:
        size *= side
    header = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(header + bytes(size - missing))


def test_cmnist_without_a_data_folder_is_refused(give: Give, tmp_path: Path) -> None:
    said = give("run", "cmnist", "--out", tmp_path / "run")
    assert refused(said)
    assert "--data-dir" in said.err


def test_a_missing_idx_file_is_named(give: Give, tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", (4, 2, 2))
    said = give("run", "cmnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert refused(said)
    assert "train-labels-idx1-ubyte" in said.err
    assert str(tmp_path) in said.err


def test_a_truncated_idx_file_is_refused_with_both_sizes(give: Give, tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", (4, 2, 2), missing=1)
    write_idx(tmp_path / "train-labels-idx1-ubyte", (4,))
    said = give("run", "cmnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert refused(said)
    assert "must hold 32 bytes by its header, found 31; it is truncated" in said.err


def test_a_truncated_gzip_file_is_refused(give: Give, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 0x803, 1, 28, 28) + bytes(784))[:-9]
    )
    write_idx(tmp_path / "train-labels-idx1-ubyte", (4,))
    said = give("run", "cmnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert refused(said)
    assert "not a whole gzip file" in said.err


def test_the_data_folder_may_come_from_the_environment(
    give: Give, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXMAP_DATA_DIR", str(tmp_path / "from-environment"))
    said = give("run", "cmnist", "--out", tmp_path / "run")
    assert refused(said)
    assert "from-environment must hold mnist's IDX files" in said.err
    said = give("run", "cmnist", "--out", tmp_path / "run", "--data-dir", tmp_path / "from-option")
    assert "from-option must hold mnist's IDX files" in said.err


# Weights


def test_weights_of_another_architecture_are_refused_by_their_first_layer(
    give: Give, copied: Path, tmp_path: Path
) -> None:
    save_weights(build_model(ModelSettings(stem="3x3"), 2, seed=0), tmp_path / "other.safetensors")
    other = f"model={{name: resnet18, weights: {tmp_path / 'other.safetensors'}}}"
    said = give("train", copied, "--set", other)
    assert refused(said)
    assert "'conv1.weight' has shape (64, 3, 7, 7) in the model and (64, 3, 3, 3) in" in said.err


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickled_file_as_weights_is_refused_and_not_executed(give: Give, copied: Path, tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Harm(mark)))
    said = give("train", copied, "--set", f"model.weights={file}")
    assert refused(said)
    assert "must be a whole file of weights" in said.err
    assert not mark.exists()


# The run folder


def test_a_run_made_with_other_settings_is_refused_by_the_key_that_differs(give: Give, copied: Path) -> None:
    before = modification_times(copied)
    said = give("run", "digits", "--out", copied, *as_options(*CHEAP, "train.batch_size=64"))
    assert refused(said)
    assert "train.batch_size (32 there, 64 here)" in said.err
    assert modification_times(copied) == before


def test_out_must_be_no_file(give: Give, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = give("run", "digits", "--out", tmp_path / "file")
    assert refused(said)
    assert "must be a directory" in said.err
    assert (tmp_path / "file").read_text() == "mine"


def test_out_must_hold_nothing_else(give: Give, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = give("run", "digits", "--out", tmp_path)
    assert refused(said)
    assert "holds other files" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("stage", STAGE_NAMES[:-1])
def test_a_stage_of_no_run_folder_is_refused(give: Give, tmp_path: Path, stage: str) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        said = give(stage, folder)
        assert refused(said)
        assert "is not a run folder" in said.err
        assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("there", [1, 3])
def test_a_run_folder_of_another_format_is_refused_by_every_command(give: Give, tmp_path: Path, there: int) -> None:
    (tmp_path / "run" / "train").mkdir(parents=True)
    (tmp_path / "run" / "settings.yaml").write_text(f"format: {there}\nsettings: {{seed: 0}}\n")
    words = [[name] for name in (*STAGE_NAMES, "auto", "figures", "check-model")]
    for each in (*words, ["export", "--to", "parquet"], ["run", "digits", "--out"]):
        said = give(*each, tmp_path / "run")
        assert refused(said), (each, said.err)
        found = f"must be of run-folder format 2, found {there}; open it with the version of exmap that made it"
        assert found in said.err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["settings.yaml", "train"]


@pytest.mark.parametrize("text", ["- 1\n", "format: ]\n", "format: 2\n", "format: 2\nsettings: {sead: 1}\n"])
def test_a_damaged_settings_file_in_the_run_folder_is_refused(give: Give, copied: Path, text: str) -> None:
    (copied / "settings.yaml").write_text(text)
    assert refused(give("cluster", copied))


# What is printed, kept and made again


def test_a_finished_run_prints_its_table_and_where_things_are(give: Give, copied: Path) -> None:
    said = give("run", "digits", "--out", copied, *as_options(*CHEAP))
    assert said.code == 0
    assert said.out.splitlines()[: len(KEPT)] == KEPT
    methods = results_of(copied)["methods"]
    lines = {line.split()[1]: line for line in said.out.splitlines() if line.startswith("│")}
    assert list(lines)[:2] == ["erm", "exmap+dfr"]
    assert set(lines) == set(methods)
    for name, row in methods.items():
        assert f"{row['worst_group_accuracy']:.1%}" in lines[name]
        assert f"{row['mean_accuracy']:.1%}" in lines[name]
        assert ("true groups" in lines[name]) == (name == "oracle+dfr")
    for name in ("results.json", "report/report.html", "report/strategies.png"):
        assert str(copied / name) in said.out


def test_without_out_the_folder_is_named_after_preset_and_seed(
    give: Give, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    copy_run(finished, tmp_path / "runs" / "digits-seed0")
    monkeypatch.chdir(tmp_path)
    said = give("run", "digits", *as_options(*CHEAP))
    assert said.code == 0
    assert said.out.splitlines()[: len(KEPT)] == KEPT


@pytest.mark.parametrize("number", range(5))
def test_a_stage_command_keeps_what_is_finished_up_to_its_stage(give: Give, copied: Path, number: int) -> None:
    before = modification_times(copied)
    said = give(STAGE_NAMES[number], copied)
    assert said.code == 0
    assert said.steps() == KEPT[: number + 1]
    assert modification_times(copied) == before


def test_a_stage_command_makes_its_stage_again_for_other_settings(give: Give, copied: Path) -> None:
    said = give("cluster", copied, "--set", "cluster.n_clusters=2")
    assert said.code == 0
    assert said.steps()[:3] == [*KEPT[:2], "cluster, groups of the val split by exmap: started"]
    names = pq.read_table(copied / "groups-val-exmap" / "groups.parquet")["group_name"].to_pylist()
    assert {name.split(" / ")[1] for name in names} == {"cluster 0", "cluster 1"}
    assert give("cluster", copied).steps() == KEPT[:3]


def test_a_picture_of_other_groups_is_not_offered(give: Give, copied: Path) -> None:
    said = give("evaluate", copied, "--set", "cluster.n_clusters=3", "--set", "groups.sources=[exmap]")
    assert said.code == 0
    assert "Results: " in said.out
    assert "strategies.png" not in said.out


def test_the_report_alone_is_made_again_and_nothing_else(give: Give, copied: Path) -> None:
    before = modification_times(copied)
    said = give("report", copied)
    assert said.code == 0
    assert said.steps() == ["report: started"]
    assert redone(before, copied) == {"report"}


# Interruption


def test_what_is_interrupted_says_how_to_go_on_and_exits_with_130(
    give: Give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does it, once an epoch of training is finished."""
    folder = tmp_path / "run"
    show = ProgressBars.__call__

    def interrupted(bars: ProgressBars, progress: Progress) -> None:
        if (folder / "train.part" / "state.safetensors").exists():
            raise KeyboardInterrupt
        show(bars, progress)

    words = ("run", "digits", "--out", folder, *as_options(*CHEAP))
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBars, "__call__", interrupted)
        said = give(*words)
    assert said.code == 130
    assert said.is_one_sentence()
    assert "the same command continues" in said.err
    assert not (folder / "train.part" / "done.json").exists()
    assert bring_up(folder, cheap_settings(), until="train") == ["train, classifier: continued"]


def test_one_command_at_a_time_writes_into_a_run(give: Give, copied: Path) -> None:
    before = modification_times(copied)
    with sole_writer(copied):
        for words in (("evaluate", copied), ("report", copied), ("run", "digits", "--out", copied)):
            beside = give(*words)
            assert refused(beside), beside.err
            assert "another is running; wait until it has ended" in beside.err
    assert modification_times(copied) == before
    assert give("evaluate", copied).code == 0


@pytest.mark.slow  # the same in this process above; tests/robustness/test_campaigns.py interrupts other processes
def test_an_interrupted_process_lets_no_other_in_says_how_to_go_on_and_exits_with_130(give: Give, copied: Path) -> None:
    process = start_process("train", copied, "--set", "train.epochs=600")
    deadline = time.monotonic() + LONGEST
    while not (copied / "train.part" / "state.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beside = give("evaluate", copied)
    assert refused(beside)
    assert "another is running; wait until it has ended" in beside.err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST)
    said = Said(process.returncode, out, err)
    assert said.code == 130
    assert said.is_one_sentence()
    assert (copied / "train.part" / "state.safetensors").exists()
    assert not (copied / "train.part" / "done.json").exists()


# Data sets


def test_every_data_set_is_listed(give: Give) -> None:
    said = give("data", "list")
    assert said.code == 0
    assert all(
        name in said.out for name in ("waterbirds-fg", "celeba", "urbancars-coobj", "two-shortcuts", "huggingface")
    )


def test_a_check_names_every_defect_in_full_and_exits_with_1(give: Give, tmp_path: Path) -> None:
    tree = waterbirds_tree(tmp_path / "wb", {0: (4, 3, 3, 4), 1: (2, 2, 2, 2), 2: (2, 2, 2, 2)})
    root = tree / "waterbird_complete95_forest2water2"
    (root / "001.Some_Bird/Some_Bird_0_0001.jpg").unlink()
    (root / "002.Some_Bird/Some_Bird_1_0001.jpg").write_bytes(b"")
    picture(root / "001.Some_Bird/[red]stray<b>.jpg")
    said = give("data", "check", "waterbirds", tree)
    assert said.code == 1
    folded = "".join(part.strip() for line in said.out.splitlines() for part in line.split("│")[2:3])
    assert "001.Some_Bird/Some_Bird_0_0001.jpg" in folded
    assert "002.Some_Bird/Some_Bird_1_0001.jpg" in folded
    assert "001.Some_Bird/[red]stray<b>.jpg" in folded
    assert "the file is empty" in said.out
    assert "-3,494" in said.out  # of the 3,498 landbirds on land that the paper counts


def test_a_set_is_composed_checked_and_prepared_by_commands(give: Give, tmp_path: Path) -> None:
    for kind, name in itertools.product(("a", "b"), range(12)):
        rng = np.random.default_rng(name + 100 * (kind == "b"))
        cut = rng.integers(0, 255, size=(20, 20, 4)).astype(np.uint8)
        cut[:, :, 3] = 0
        cut[5:15, 5:15, 3] = 255
        (tmp_path / "cut" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(cut).save(tmp_path / "cut" / kind / f"{name}.png")
        picture(tmp_path / "back" / kind / f"{kind}{name}.png", (10 * name, 90, 90), (40, 40))
    words = (
        "--foregrounds",
        tmp_path / "cut",
        "--backgrounds",
        tmp_path / "back",
        "--correlation",
        "0.75",
        "0.5",
        "0.5",
    )
    said = give("data", "compose", tmp_path / "made", *words)
    assert said.code == 0
    assert f"exmap run waterbirds --data-dir {tmp_path / 'made'}" in said.out
    assert give("data", "check", "waterbirds", tmp_path / "made").code == 0
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made", "made")
    said = give("data", "prepare", "waterbirds", "--source", tmp_path / "made.tar.gz", "--to", tmp_path / "here")
    assert said.code == 0
    assert f"--data-dir {tmp_path / 'here'}" in said.out
    assert refused(give("data", "compose", tmp_path / "made", *words))


def test_what_cannot_be_prepared_is_said_with_what_to_get(give: Give, tmp_path: Path) -> None:
    said = give("data", "prepare", "celeba", "--to", tmp_path / "celeba")
    assert refused(said)
    assert "img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt" in said.err
    said = give("data", "prepare", "urbancars", "--download", "--to", tmp_path / "cars")
    assert refused(said)
    assert "ask its authors" in said.err
    assert "did you mean 'waterbirds'" in give("data", "check", "waterbird", tmp_path).err


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What is written of progress that is told at given seconds."""

    def tell(*told: tuple[float, Progress]) -> list[str]:
        bars = ProgressBars()
        for moment, progress in told:
            monkeypatch.setattr("exmap.cli.progress.time.monotonic", lambda now=moment: float(now))
            bars(progress)
        return capsys.readouterr().err.splitlines()

    return tell


def test_the_rate_of_work_that_begins_again_is_that_of_its_second_time(logged: Callable[..., list[str]]) -> None:
    moments = ((0, 0), (40, 4_000), (80, 8_000), (90, 100), (130, 2_100))
    assert logged(*((moment, Progress("train", done, 10_000)) for moment, done in moments)) == [
        "train 4,000/10,000 images, 100/s, 60 s left ",
        "train 8,000/10,000 images, 100/s, 20 s left ",
        "train 2,100/10,000 images, 50/s, 3 min left ",
    ]


def test_work_of_few_pieces_says_how_long_each_takes(logged: Callable[..., list[str]]) -> None:
    moments = ((0, 0), (40, 0), (80, 1))
    assert logged(*((moment, Progress("report", done, 4, "parts", "pictures")) for moment, done in moments)) == [
        "report 0/4 parts pictures",
        "report 1/4 parts, 80 s each, 4 min left pictures",
    ]
