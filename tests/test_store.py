from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.errors import DataError, RunFolderError
from exmap.pipeline.disk import (
    array_file,
    differences,
    digest_of,
    digest_of_file,
    read_json,
    save_arrays,
    slug,
    write_json,
    write_text,
)
from exmap.pipeline.store import FORMAT, RunFolder, sole_writer

IDENTITY = {"seed": 0, "data": {"name": "digits", "correlation": 0.9}, "strengths": (1.0, 0.5)}
OTHER = {**IDENTITY, "seed": 1}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", create=True)
    folder.write_settings({"seed": 0})
    return folder


def interrupt(run: RunFolder, identity: dict[str, object], text: str) -> None:
    def killed() -> None:
        with run.begin("train", identity) as part:
            (part.path / "half.txt").write_text(text)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()


def test_a_finished_step_is_found_by_its_identity_alone(run: RunFolder) -> None:
    assert not run.is_finished("train", IDENTITY)
    with run.begin("train", IDENTITY) as part:
        assert not part.resumed
        (part.path / "weights.txt").write_text("w")
        assert not run.is_finished("train", IDENTITY)
        assert not run.folder("train").exists()
    assert run.is_finished("train", IDENTITY)
    assert not run.is_finished("train", OTHER)
    assert not run.is_finished("explain", IDENTITY)
    assert (run.folder("train") / "weights.txt").read_text() == "w"
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.yaml", "train"]


def test_a_finished_step_says_how_long_it_took_in_all_processes(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    part = run.path / "train.part"
    attempt = json.loads((part / "attempt.json").read_text())
    (part / "attempt.json").write_text(json.dumps({"seconds_before": 100.0, "started": attempt["started"]}))
    with run.begin("train", IDENTITY) as made:
        made.measured["images_per_second"] = float("nan")
    record = run.record("train")
    assert record is not None
    assert record["format"] == FORMAT
    assert record["identity"] == digest_of(IDENTITY)
    assert 100 <= record["seconds"] < 160
    assert record["peak_memory_mib"] > 1
    assert record["images_per_second"] is None


def test_an_interrupted_step_is_never_taken_for_finished(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    assert run.record("train") is None
    assert not run.is_finished("train", IDENTITY)
    assert not run.folder("train").exists()


def test_the_same_identity_continues_from_what_was_left(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    with run.begin("train", IDENTITY) as part:
        assert part.resumed
        assert (part.path / "half.txt").read_text() == "half"
    assert run.is_finished("train", IDENTITY)


def test_another_identity_drops_what_was_left(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    with run.begin("train", OTHER) as part:
        assert not part.resumed
        assert sorted(path.name for path in part.path.iterdir()) == ["attempt.json", "identity.json"]
    assert run.is_finished("train", OTHER)
    assert not run.is_finished("train", IDENTITY)


def test_a_step_made_again_replaces_the_old_one_only_when_it_is_whole(run: RunFolder) -> None:
    with run.begin("train", IDENTITY) as part:
        (part.path / "old.txt").write_text("old")
    interrupt(run, OTHER, "half")
    assert run.is_finished("train", IDENTITY)
    with run.begin("train", OTHER) as part:
        (part.path / "new.txt").write_text("new")
    assert run.is_finished("train", OTHER)
    assert sorted(path.name for path in run.folder("train").iterdir()) == [
        "done.json",
        "half.txt",
        "identity.json",
        "new.txt",
    ]


def test_a_step_without_a_whole_marker_is_not_finished(run: RunFolder) -> None:
    with run.begin("train", IDENTITY):
        pass
    marker = run.folder("train") / "done.json"
    marker.write_text(marker.read_text()[:20])
    assert not run.is_finished("train", IDENTITY)


def test_what_a_kill_left_of_the_step_before_is_deleted(run: RunFolder) -> None:
    with run.begin("train", IDENTITY):
        pass
    (run.path / "train.old").mkdir()
    assert run.is_finished("train", IDENTITY)
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.yaml", "train"]


def test_what_interrupted_steps_left_is_deleted_when_all_is_done_and_nothing_else(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    (run.path / "mine.part").mkdir()
    run.tidy()
    assert sorted(path.name for path in run.path.iterdir()) == ["mine.part", "settings.yaml"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_whatever_stands_in_the_place_of_a_step_is_replaced(run: RunFolder, tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    for name in ("train", "train.part"):
        if kind == "file":
            (run.path / name).write_text("")
        else:
            (run.path / name).symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with run.begin("train", IDENTITY):
        pass
    assert run.is_finished("train", IDENTITY)
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.yaml", "train"]


def test_a_step_is_known_by_size_and_content_of_its_files(run: RunFolder) -> None:
    with run.begin("train", IDENTITY) as part:
        (part.path / "below").mkdir()
        (part.path / "below" / "weights.txt").write_text("abc")
    weights = run.folder("train") / "below" / "weights.txt"
    with run.reading("train") as folder:
        assert folder == run.folder("train")
    weights.write_text("abd")
    assert run.is_finished("train", IDENTITY)  # it is opened only where it is needed
    with pytest.raises(RunFolderError, match=r"weights.txt is damaged \(its content is not what was written\); delete"):
        run.check("train")
    weights.write_text("abcd")
    for look in (lambda: run.is_finished("train", IDENTITY), lambda: run.check("train")):
        with pytest.raises(
            RunFolderError, match=r"is damaged \(it had 3 bytes when it was written, and has 4\); delete"
        ):
            look()
    assert not run.is_finished("train", OTHER)  # it is made again


def test_what_is_wrong_beside_the_files_of_a_step_is_not_called_damaged(run: RunFolder) -> None:
    with run.begin("train", IDENTITY):
        pass
    with pytest.raises(DataError, match=r"^a model of one's own failed$"), run.reading("train"):
        raise DataError("a model of one's own failed")
    fault = r"train is damaged \(its files do not fit together: KeyError 'a'\); delete"
    with pytest.raises(RunFolderError, match=fault), run.reading("train"):
        raise KeyError("a")


@pytest.mark.parametrize("old_moved_away", [False, True])
def test_a_step_killed_between_its_marker_and_its_rename_is_recovered(run: RunFolder, old_moved_away: bool) -> None:
    with run.begin("train", OTHER) as part:
        (part.path / "old.txt").write_text("old")
    os.rename(run.folder("train"), run.path / "kept")
    with run.begin("train", IDENTITY) as part:
        (part.path / "new.txt").write_text("new")
    os.rename(run.folder("train"), run.path / "train.part")
    os.rename(run.path / "kept", run.path / ("train.old" if old_moved_away else "train"))
    assert run.is_finished("train", IDENTITY)
    assert (run.folder("train") / "new.txt").read_text() == "new"
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.yaml", "train"]


def test_a_marker_left_by_a_kill_does_not_finish_the_next_attempt(run: RunFolder) -> None:
    with run.begin("train", IDENTITY):
        pass
    os.rename(run.folder("train"), run.path / "train.part")  # killed between the marker and the rename
    interrupt(run, IDENTITY, "half")
    assert not run.is_finished("train", IDENTITY)


def test_a_marker_half_written_by_a_kill_is_no_file_of_the_step(run: RunFolder) -> None:
    interrupt(run, IDENTITY, "half")
    (run.path / "train.part" / "done.json.part").write_text("{")
    with run.begin("train", IDENTITY) as part:
        assert part.resumed
    assert run.is_finished("train", IDENTITY)
    assert not list(run.folder("train").rglob("*.part"))


def test_settings_are_kept_and_read_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run", create=True)
    assert folder.settings() is None
    folder.write_settings({"seed": 3, "data": {"name": "digits"}})
    assert RunFolder(tmp_path / "deep" / "run").settings() == {"seed": 3, "data": {"name": "digits"}}
    assert RunFolder(tmp_path / "deep" / "run", create=True).settings() == folder.settings()


def test_a_file_is_refused_as_a_run_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for create in (False, True):
        with pytest.raises(RunFolderError) as caught:
            RunFolder(path, create=create)
        assert str(caught.value) == f"a run folder must be a directory, but {path} is a file; choose another --out"


def test_a_path_below_a_file_is_refused_as_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path / "file" / "run", create=True)


def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path, create=True)
    assert str(caught.value) == (
        f"a run folder must be new, empty or an earlier run, but {tmp_path} holds other files; choose another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_reading_what_is_no_run_folder_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path)
    assert str(caught.value) == (
        f"{path} is not a run folder: it holds no settings.yaml; start one with exmap run PRESET --out DIR"
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "found"), [("format: 1\nsettings: {}\n", "1"), ("settings: {}\n", "None"), ("", "None")]
)
def test_a_folder_of_another_format_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path, create=True)
    assert str(caught.value) == (
        f"{tmp_path} must be of run-folder format {FORMAT}, found {found}; open it with the version of exmap that "
        "made it, or run it again with another --out"
    )


@pytest.mark.parametrize("text", ["- 1\n", "format: [", "words"])
def test_a_folder_with_a_settings_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from exmap.pipeline.store import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time_writes_into_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(RunFolderError, match=f"{folder}, and another is running; wait"), sole_writer(folder):
            pytest.fail("two at a time")
        with sole_writer(tmp_path / "other"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with sole_writer(folder):
        assert RunFolder(folder, create=True).path == folder  # the lock is no foreign file
    assert list(folder.iterdir()) == []


def test_a_lock_leaves_the_error_to_whoever_opens_what_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with sole_writer(path), pytest.raises(RunFolderError):
            RunFolder(path, create=True)
    assert file.read_text() == "mine"


def test_an_error_in_the_work_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at work"), sole_writer(tmp_path):
        raise ValueError("at work")
    with sole_writer(tmp_path):
        pass


def test_differences_name_every_changed_added_and_removed_value() -> None:
    old = {"seed": 0, "data": {"name": "digits", "dir": None, "gone": 1}, "same": [1]}
    new = {"seed": 1, "data": {"name": "cmnist", "dir": None}, "same": [1], "added": True}
    assert differences(old, new) == [
        "seed (0 there, 1 here)",
        "data.name ('digits' there, 'cmnist' here)",
        "data.gone (1 there, None here)",
        "added (None there, True here)",
    ]
    assert differences(old, dict(reversed(old.items()))) == []


def test_digests_depend_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": (1, 2)}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_json_holds_null_for_nan_and_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": float("nan"), "b": [1, (2.5, float("nan"))]})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, [2.5, None]]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", {"a": float("inf")})
    assert not (tmp_path / "y.json").exists()


def test_names_that_are_no_text_are_written_out(tmp_path: Path) -> None:
    write_text(tmp_path / "z.txt", "half \udc80")
    write_json(tmp_path / "z.json", {"n\udcff": ["\udc80", "Vögel"]})
    assert (tmp_path / "z.txt").read_text(encoding="utf-8") == r"half \udc80"
    assert json.loads((tmp_path / "z.json").read_text(encoding="utf-8")) == {r"n\udcff": [r"\udc80", "Vögel"]}
    assert json.dumps(read_json(tmp_path / "z.json"), ensure_ascii=False).encode()


def test_json_that_is_missing_or_cut_reads_as_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "missing.json") is None
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "pipe.json") is read_json(tmp_path / "deep.json") is None
    (tmp_path / "cut.json").write_text('{"a": 1')
    assert read_json(tmp_path / "cut.json") is None


def test_an_array_file_has_its_size_at_once_and_holds_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    mapped = array_file(path, (10, 3, 4, 4))
    assert path.stat().st_size >= mapped.nbytes == 1920
    assert np.array_equal(np.load(path, mmap_mode="r", allow_pickle=False), np.zeros((10, 3, 4, 4), dtype=np.float32))


def test_an_array_file_without_room_is_an_error_at_once(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, pathlib\n"
        "from exmap.pipeline.disk import array_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "array_file(pathlib.Path(sys.argv[1]), (900,))\n"
        "try:\n"
        "    array_file(pathlib.Path(sys.argv[1]), (1 << 18,))\n"
        "except OSError as error:\n"
        "    print('refused:', error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.bin"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")


def test_arrays_that_cannot_be_written_are_the_errors_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "a.safetensors"
    with pytest.raises(FileNotFoundError) as refused:
        save_arrays({"a": np.zeros(3)}, path)
    assert refused.value.filename == str(path)


def test_a_file_that_is_not_there_has_the_digest_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_bytes(b"x")
    digests = [digest_of_file(tmp_path / name) for name in ("missing", "empty", "full")]
    assert digests[0] == digests[1] != digests[2]


def test_a_discarded_step_is_made_again(run: RunFolder) -> None:
    with run.begin("train", IDENTITY):
        pass
    run.discard("train")
    run.discard("never made")
    assert not run.is_finished("train", IDENTITY)
    assert not run.folder("train").exists()


# Names of files


@given(st.text(min_size=1).filter(lambda text: text.strip(".")))
def test_a_name_of_a_file_is_safe_and_always_the_same(text: str) -> None:
    name = slug(text)
    assert slug(text) == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+@=.,_-")
    assert 0 < len(name) <= 85
    assert name not in (".", "..")


def test_different_texts_have_different_names() -> None:
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list("ab+@[]=,/ _\u00e4"), size=size)) for size in rng.integers(1, 12, 3000)}
    texts |= {"x" * size for size in range(70, 120)} | {f"exmap[size={n}]+dfr" for n in range(100)}
    assert len(texts) > 2000
    assert len({slug(text) for text in texts}) == len(texts)
