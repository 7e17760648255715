"""How many threads are taken: one for each core that is free, and never more than torch was told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info

from exmap import threads
from exmap.pipeline.graph import Graph, Step
from exmap.pipeline.runner import Runner
from exmap.settings import RuntimeSettings, Settings, change_settings
from exmap.threads import choose_threads, computing_threads, usable_cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make this an idle computer of 8 cores with 16 threads, all of which torch takes."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(threads, "usable_cores", lambda physical: 8 if physical else 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return monkeypatch


def test_an_idle_computer_gives_every_core(eight: pytest.MonkeyPatch) -> None:
    assert str(choose_threads(RuntimeSettings())) == "8 threads, one for each core that this process may use (8)"


def test_a_named_number_is_taken_as_it_is(eight: pytest.MonkeyPatch) -> None:
    assert str(choose_threads(RuntimeSettings(threads=12))) == "12 threads, as runtime.threads says"


def test_threads_are_no_more_than_torch_was_told(eight: pytest.MonkeyPatch) -> None:
    eight.setattr(torch, "get_num_threads", lambda: 1)
    assert str(choose_threads(RuntimeSettings())) == "1 thread, as torch was told, on 8 cores"


@pytest.mark.parametrize(
    ("load", "now", "number"),
    [(12.1, 12.4, 4), (12.0, 0.3, 8), (0.4, 16.0, 8), (40.0, 16.0, 1), (6.0, 6.0, 8)],
    ids=["busy", "this process's own past", "a moment", "overloaded", "other cores are free"],
)
def test_cores_that_others_keep_busy_are_left_to_them(
    eight: pytest.MonkeyPatch, load: float, now: float, number: int
) -> None:
    eight.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    eight.setattr(threads, "_busy_now", lambda _: now)
    chosen = choose_threads(RuntimeSettings())
    assert chosen.number == number
    assert ("other programs keep" in chosen.why) == (number < 8)


def test_how_busy_the_processors_are_is_read_from_linux(eight: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    eight.setattr(threads, "STAT", stat)
    stat.write_text("cpu  100 0 0 300 0 0 0 0 0 0\n")
    eight.setattr("time.sleep", lambda _: stat.write_text("cpu  125 0 0 350 25 0 0 0 0 0\n"))
    assert threads._busy_now(9.0) == 16 * 25 / 100
    stat.write_text("nothing\n")
    eight.setattr("time.sleep", lambda _: None)
    assert threads._busy_now(9.0) == 9.0


def test_the_cores_of_this_computer_are_counted() -> None:
    assert 1 <= usable_cores(physical=True) <= usable_cores() <= (os.cpu_count() or 1)


def test_threads_are_as_before_after_the_block() -> None:
    def told() -> tuple[int, set[int]]:
        return torch.get_num_threads(), {library["num_threads"] for library in threadpool_info()}

    before = told()
    with computing_threads(3):
        assert told() == (3, {3})
    assert told() == before
    with pytest.raises(ZeroDivisionError), computing_threads(3):
        _ = 1 / 0
    assert told() == before


def test_steps_are_made_with_the_threads_that_are_said() -> None:
    said: list[str] = []
    settings = change_settings(Settings(), runtime__threads=3)
    step = Step("look", "data", "look", lambda _: torch.get_num_threads())
    runner = Runner(settings, Graph([step]), lambda: pytest.fail("no data are needed"), say=said.append)
    assert runner.record("look") == 3
    assert said == ["runtime: 3 threads, as runtime.threads says"]
    assert torch.get_num_threads() == 1
