"""A short form of the campaigns, and what they were worth nothing without: faults are seen, and cases repeat."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from damage import damage_bytes, damage_file
from forked import Said
from judging import faults_of_saying, left_overs, signature
from kills import scenarios
from materials import CHEAP, Materials, encoded, make_weights
from reader import Reader, judged, try_readers
from reader_cases import readers
from whole_cases import KINDS

from campaign import Tally, order
from running import finished_run
from sharing import shared

CAMPAIGN = Path(__file__).with_name("campaign.py")
WITHOUT_MATERIALS = Materials(Path("nowhere"))
KINDS_OF_READERS = sorted(readers(WITHOUT_MATERIALS))
SHORT = 15  # inputs of each kind


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    def make(folder: Path) -> None:
        (folder / "weights").mkdir(parents=True)
        make_weights(folder / "weights")

    found = Materials(shared(tmp_path_factory, "campaigns", make))
    found.run = finished_run(tmp_path_factory)
    return found


@pytest.mark.parametrize("kind", KINDS_OF_READERS)
def test_readers_take_what_is_right_and_refuse_the_rest_in_a_sentence(made: Materials, kind: str) -> None:
    tried, faults = try_readers(readers(made)[kind], 1, SHORT)
    assert tried > SHORT // 2
    assert faults == []


@pytest.mark.long
def test_the_whole_program_is_never_silently_wrong_and_never_ends_in_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, CAMPAIGN, "whole", "--cases", "40", "--work", tmp_path, "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 40 cases, 0 faults" in done.stdout


@pytest.mark.long
def test_nothing_is_lost_when_commands_are_killed(tmp_path: Path) -> None:
    words = [sys.executable, CAMPAIGN, "crash", "--cases", "12", "--work", tmp_path, "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr


def said(code: int | None, out: str = "", err: str = "") -> Said:
    return Said(code, out.encode(), err.encode("utf-8", "surrogateescape"), 0.1)


@pytest.mark.parametrize(
    ("heard", "fault"),
    [
        (said(None), "hang"),
        (said(1, err='Traceback (most recent call last):\n  File "/x/exmap/y.py", line 3\nKeyError: 1'), "traceback"),
        (said(-11), "exit code -11"),
        (said(1, err="exmap: no"), "exit code 1"),
        (said(2), "not one sentence"),
        (said(2, err="exmap: one\nexmap: two"), "not one sentence"),
        (said(2, err="exmap: [Errno 2] x"), "inner words"),
        (said(2, err="exmap: " + "x" * 3000), "a sentence of"),
        (said(0, out="a\x1b[31m"), "control characters"),
        (said(0, err="UserWarning: x"), "noise"),
    ],
)
def test_what_is_wrong_with_how_a_command_ended_is_seen(heard: Said, fault: str) -> None:
    faults = faults_of_saying(heard, ["run"])
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_a_sentence_and_progress_are_no_fault() -> None:
    assert (
        faults_of_saying(said(2, err="images opened 3/7 images, 2/s\nexmap: no such file; give another\n"), ["run"])
        == []
    )
    assert faults_of_saying(said(1, out="a shortcut was found"), ["audit"]) == []


def test_an_error_of_ours_is_no_fault_and_any_other_is() -> None:
    from exmap.errors import DataError

    def refuse(_: object) -> list[str]:
        raise DataError("give another")

    def break_down(_: object) -> list[str]:
        raise KeyError("x")

    assert judged(refuse, None) == []
    assert judged(break_down, None)[0].startswith("KeyError: 'x'")


def test_inputs_of_a_seed_are_the_same_again() -> None:
    seen: list[list[str]] = [[], []]
    for values in seen:
        try_readers(
            Reader(
                readers(WITHOUT_MATERIALS)["labels"].draw,
                lambda value, values=values: values.append(repr(value)) or [],
                1,
            ),
            5,
            10,
        )
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 3


def test_damages_of_a_seed_are_the_same_again(tmp_path: Path) -> None:
    whole = encoded(0, 1)
    made = [damage_bytes(whole, ".png", random.Random(7)) for _ in range(2)]
    assert made[0] == made[1]
    for number in range(40):
        file = tmp_path / str(number) / "a" / "x.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(whole)
        how = damage_file(file, random.Random(number))
        assert how
        assert not file.is_file() or file.is_symlink() or file.read_bytes() != whole or how == "spliced"


def test_a_campaign_goes_on_where_it_ended(tmp_path: Path) -> None:
    tally = Tally()
    tally.count("a", "a:0", "what", ["traceback: KeyError 'x' [exmap/y.py:3]"])
    tally.count("a", "a:1", "what", ["traceback: KeyError 'y' [exmap/y.py:4]"])
    tally.save(tmp_path / "state.json")
    again = Tally.load(tmp_path / "state.json")
    assert again == tally
    assert [fault["times"] for fault in again.faults.values()] == [2]
    assert str(again).startswith("2 cases, 2 faults of 1 kinds")


def test_shards_share_the_cases_out() -> None:
    shares = {"a": 3, "b": 1}
    seen = [next_ones for shard in range(2) for next_ones in taken(shares, (shard, 2))]
    assert len(set(seen)) == len(seen)
    assert sorted(number for kind, number in seen if kind == "a") == list(
        range(len([1 for kind, _ in seen if kind == "a"]))
    )
    assert taken(shares, (0, 1), {"a": 3, "b": 1})[0] in {("a", 3), ("b", 1)}


def taken(shares: dict[str, int], shard: tuple[int, int], done: dict[str, int] | None = None) -> list[tuple[str, int]]:
    names = order(shares, done or {}, shard)
    return [next(names) for _ in range(8)]


def test_left_overs_are_seen(tmp_path: Path) -> None:
    for name in ("train.part/x.json", "evaluate.old/y", "kept/results.json", "z.png.part", "parted.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert left_overs(tmp_path) == ["evaluate.old", "evaluate.old/y", "train.part", "train.part/x.json", "z.png.part"]


def test_faults_are_of_a_kind_whatever_their_names_and_numbers() -> None:
    assert signature("3 images of 'a' at 17") == signature("44 images of 'b' at 2")


def test_all_kinds_have_a_share() -> None:
    assert all(share > 0 for _, share in KINDS.values())
    assert len(scenarios(WITHOUT_MATERIALS)) > 5
    assert "images.workers=0" in CHEAP
