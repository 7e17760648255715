"""Graphs of steps, and the runner that makes what is missing of one: in memory and in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.data import Task, planted_shortcut
from exmap.pipeline.disk import read_json, write_json
from exmap.pipeline.graph import DATA, STAGES, Graph, Step, Work
from exmap.pipeline.runner import Runner
from exmap.pipeline.store import RunFolder
from exmap.settings import Settings

NEEDS: Mapping[str, tuple[str, ...]] = {
    "train": (DATA,),
    "explain": (DATA, "train"),
    "groups": ("explain",),
    "extra": ("explain",),
    "fit": ("groups", "train"),
    "repair": ("fit",),
    "evaluate": ("fit", "repair"),
}
ASKS: Mapping[str, tuple[str, ...]] = {"repair": ("extra",)}  # nothing else needs it
STAGE_OF: Mapping[str, str] = {
    DATA: "data",
    "train": "train",
    "explain": "explain",
    "groups": "cluster",
    "extra": "cluster",
    "fit": "retrain",
    "repair": "retrain",
    "evaluate": "evaluate",
}
TASK = planted_shortcut(2, (4, 4, 4), side=8)


class Fake:
    """Steps that say what they were made from, and count how often each was made."""

    def __init__(self, settings: Mapping[str, int] | None = None, *, ask: bool = False) -> None:
        self.settings, self.ask = dict(settings or {}), ask
        self.made: list[str] = []
        self.loaded: list[str] = []
        self.opened = 0
        names = (DATA, *NEEDS)
        self.graph = Graph(map(self.step, reversed(names)))  # in any order

    def step(self, name: str) -> Step:
        def make(work: Work) -> Any:
            self.made.append(name)
            task = work.task
            if name == DATA:
                return task
            from_others = {need: work[need] for need in NEEDS[name] if need != DATA}
            if name == "repair" and self.ask:
                from_others["extra"] = work["extra"]
            return {"step": name, "setting": self.settings.get(name, 0), "from": from_others}

        def load(_: Work, folder: Path) -> Any:
            self.loaded.append(name)
            return TASK if name == DATA else read_json(folder / "record.json")

        def save(_: Work, record: Any, folder: Path) -> None:
            write_json(folder / "record.json", None if name == DATA else record)

        return Step(
            name,
            STAGE_OF[name],
            name,
            make,
            save,
            load,
            needs=NEEDS.get(name, ()),
            asks=ASKS.get(name, ()),
            settings={"value": self.settings.get(name, 0)},
            images=name in ("train", "explain"),
        )

    def open(self) -> Task:
        self.opened += 1
        return TASK

    def runner(self, run: RunFolder | None = None, **more: Any) -> Runner:
        return Runner(Settings(), self.graph, self.open, run, **more)


def new_run(folder: Path) -> RunFolder:
    run = RunFolder(folder, create=True)
    run.write_settings({})
    return run


def after(name: str) -> set[str]:
    """Return the steps that are made from one, by following the table."""
    found = {name}
    for _ in NEEDS:
        found |= {step for step, needs in NEEDS.items() if found & {*needs, *ASKS.get(step, ())}}
    return found - {name}


# Graphs


def test_steps_come_after_what_they_need_and_ask_for() -> None:
    order = [step.name for step in Fake().graph]
    assert sorted(order) == sorted((DATA, *NEEDS))
    for step in Fake().graph:
        assert all(order.index(need) < order.index(step.name) for need in (*step.needs, *step.asks))


@pytest.mark.parametrize("changed", [DATA, *NEEDS])
def test_a_setting_changes_its_own_step_and_those_made_from_it(changed: str) -> None:
    before, now = Fake().graph, Fake({changed: 1}).graph
    others = {step.name for step in before if before.digest(step.name) != now.digest(step.name)}
    assert others == {changed} | after(changed)
    assert {step.name for step in now.made_from(changed)} == after(changed)


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[dict[str, Step], str]:
    size = draw(st.integers(1, 8))
    steps = {}
    for number in range(size):
        needs, asks = (
            tuple(f"s{n}" for n in range(number) if draw(st.booleans()) and n % 2 == side) for side in range(2)
        )
        steps[f"s{number}"] = Step(f"s{number}", "data", "", len, needs=needs, asks=asks, settings={"value": 0})
    return steps, f"s{draw(st.integers(0, size - 1))}"


@given(random_graphs())
def test_identities_of_any_graph_reach_what_is_made_from_a_step_and_nothing_else(
    drawn: tuple[dict[str, Step], str],
) -> None:
    steps, changed = drawn
    graph = Graph(steps.values())
    other = Graph({**steps, changed: replace(steps[changed], settings={"value": 1})}.values())
    differ = {name for name in steps if graph.digest(name) != other.digest(name)}
    assert differ == {changed, *(step.name for step in graph.made_from(changed))}
    assert {step.name for step in graph} == set(steps)


def test_an_identity_depends_on_nothing_but_settings_and_needs() -> None:
    steps = list(Fake().graph)
    renamed = [replace(step, title="another title", images=not step.images, shared=True) for step in steps]
    other = Graph(renamed)
    assert all(Fake().graph.digest(step.name) == other.digest(step.name) for step in steps)


def test_a_circle_is_no_graph() -> None:
    steps = [Step("a", "data", "", len, needs=("b",)), Step("b", "data", "", len, needs=("a",))]
    with pytest.raises(ValueError, match="cycle"):
        Graph(steps)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_made_with_all_before_it_and_without_what_is_only_asked_for(stage: str) -> None:
    last = STAGES.index(stage)
    names = [step.name for step in Fake().graph.until(stage)]
    wanted = {name for name, its in STAGE_OF.items() if STAGES.index(its) <= last} - {"extra"}
    assert set(names) == wanted


# In memory


def test_in_memory_all_that_is_needed_is_made_once() -> None:
    fake = Fake()
    runner = fake.runner()
    record = runner.record("evaluate")
    assert record is runner.record("evaluate")
    assert sorted(fake.made) == sorted({DATA, *NEEDS} - {"extra"})
    assert record["from"]["fit"]["from"]["train"]["step"] == "train"
    assert fake.opened == 1
    assert runner.task(images=True) is TASK


def test_what_is_asked_for_is_made_when_it_is_asked_for() -> None:
    fake = Fake(ask=True)
    record = fake.runner().record("evaluate")
    assert fake.made.count("extra") == 1
    assert record["from"]["repair"]["from"]["extra"]["step"] == "extra"


def test_records_that_are_given_are_used_and_not_made() -> None:
    fake, given = Fake(), {"step": "mine"}
    record = fake.runner(records={DATA: TASK, "train": given}).record("explain")
    assert fake.made == ["explain"]
    assert record["from"]["train"] is given


# In a folder


def test_a_folder_is_brought_up_and_the_next_time_left_alone(tmp_path: Path) -> None:
    run, fake, said = new_run(tmp_path / "run"), Fake(), []
    fake.runner(run, say=said.append).bring_up(fake.graph.until("evaluate"))
    assert fake.made == [step.name for step in fake.graph if step.name != "extra"]
    assert said[0].startswith("runtime: 1 thread")
    assert said[1] == "train: started"
    again, kept = Fake(), []
    runner = again.runner(run, say=kept.append)
    runner.bring_up(again.graph.until("evaluate"))
    assert (again.made, again.opened, again.loaded) == ([], 0, [])
    assert kept == [f"{stage}: finished before, kept" for stage in STAGES[1:-1]]
    assert runner.record("evaluate")["from"]["fit"]["step"] == "fit"
    assert again.loaded == ["evaluate"]  # and nothing that it was made from


@pytest.mark.parametrize("changed", ["train", "groups", "fit", "evaluate"])
def test_what_was_made_from_what_has_been_replaced_is_made_again(tmp_path: Path, changed: str) -> None:
    run, fake = new_run(tmp_path / "run"), Fake()
    fake.runner(run).bring_up(fake.graph.until("evaluate"))
    now = Fake({changed: 7})
    now.runner(run).bring_up(now.graph.until("evaluate"))
    assert set(now.made) == ({changed} | after(changed)) - {"extra"}
    record = now.runner(run).record("evaluate")
    assert f'"step": "{changed}", "setting": 7' in json.dumps(record)


def test_what_was_made_from_what_has_been_replaced_is_discarded_at_once(tmp_path: Path) -> None:
    run, fake = new_run(tmp_path / "run"), Fake(ask=True)
    fake.runner(run).bring_up(fake.graph.until("evaluate"))
    assert run.folder("extra").is_dir()
    write_json(run.path / "results.json", {})
    now = Fake({"explain": 7})
    now.runner(run).bring_up(now.graph.until("explain"))
    there = {path.name for path in run.path.iterdir()}
    assert there == {"settings.yaml", DATA, "train", "explain"}


def test_a_step_that_is_only_asked_for_has_no_folder_until_then(tmp_path: Path) -> None:
    run, fake = new_run(tmp_path / "run"), Fake()
    fake.runner(run).bring_up(fake.graph.until("evaluate"))
    assert not run.folder("extra").exists()
    asking = Fake({"repair": 1}, ask=True)
    asking.runner(run).bring_up(asking.graph.until("evaluate"))
    assert run.folder("extra").is_dir()
    assert set(asking.made) == {"extra", "repair", "evaluate"}


def test_an_interrupted_step_is_continued_in_its_folder(tmp_path: Path) -> None:
    run, fake = new_run(tmp_path / "run"), Fake()
    found: list[bool] = []

    def make(work: Work) -> Any:
        assert work.folder is not None
        half = work.folder / "half.txt"
        found.append(half.exists())
        half.write_text("half")
        if len(found) == 1:
            raise KeyboardInterrupt
        return {"step": "train"}

    steps = [replace(step, make=make) if step.name == "train" else step for step in fake.graph]
    said: list[str] = []
    for attempt in range(2):
        runner = Runner(Settings(), Graph(steps), fake.open, run, say=said.append)
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                runner.bring_up(Graph(steps).until("train"))
            assert not runner.is_finished("train")
        else:
            runner.bring_up(Graph(steps).until("train"))
    assert found == [False, True]
    assert [line for line in said if "runtime" not in line] == ["train: started", "train: continued"]


def test_a_step_that_writes_its_files_itself_is_loaded(tmp_path: Path) -> None:
    run, fake = new_run(tmp_path / "run"), Fake()

    def make(work: Work) -> None:
        assert work.folder is not None
        work.measured["images_per_second"] = 12.5
        write_json(work.folder / "record.json", {"step": "train", "by": "itself"})

    steps = [replace(step, make=make) if step.name == "train" else step for step in fake.graph]
    runner = Runner(Settings(), Graph(steps), fake.open, run)
    assert runner.record("explain")["from"]["train"] == {"step": "train", "by": "itself"}
    record = run.record("train")
    assert record is not None
    assert record["images_per_second"] == 12.5


def test_images_are_opened_for_steps_that_read_them_alone(tmp_path: Path) -> None:
    run, fake = new_run(tmp_path / "run"), Fake()
    fake.runner(run).bring_up(fake.graph.until("evaluate"))
    changes = {}
    for changed, opened in (("train", 1), ("groups", 0), ("evaluate", 0)):
        changes[changed] = 3
        now = Fake(changes)
        now.runner(run).record("evaluate")
        assert now.opened == opened, changed
