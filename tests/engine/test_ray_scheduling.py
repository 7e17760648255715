"""What the Ray engine does about workers that die, hang or fail, with a cluster that is played by this process.

The same on a real cluster is in ``test_ray.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import nn

from exmap.data import Split
from exmap.data.dataset import array_split
from exmap.engine import Job, Shard, on_ray, shards_of, workers
from exmap.errors import DataError, ProcessError, SettingsError
from exmap.records import Explained, Outputs
from exmap.settings import RuntimeSettings

IMAGES = np.arange(240, dtype=np.float32).reshape(240, 1, 1, 1)


class RayError(Exception):
    """As Ray's errors of workers and objects."""


class ActorDiedError(RayError):
    """As Ray's error of a worker that died."""

    preempted = False


class RayTaskError(RayError):
    """As Ray's error of code that failed in a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reference:
    """To the result of a call, which is made when it is asked for."""

    def __init__(self, actor: Actor, call: Callable[[], Any]) -> None:
        self.actor, self.call = actor, call
        self.made: Any = None
        self.error: Exception | None = None
        self.done = False

    def run(self) -> bool:
        """Make the call unless its worker hangs; return whether it is done."""
        if not self.done and not self.actor.hangs():
            self.done = True
            try:
                self.made = self.actor.run(self.call)
            except RayError as error:
                self.error = error
            except Exception as error:
                self.error = RayTaskError(error)
        return self.done


class Actor:
    """A worker."""

    def __init__(self, cluster: Cluster, thing: Any, number: int) -> None:
        self.cluster, self.thing, self.number, self.dead, self.shards = cluster, thing, number, False, 0

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*args: Any) -> Reference:
                if name == "compute":
                    self.shards += 1
                given = [arg.made if isinstance(arg, Reference) else arg for arg in args]
                return Reference(self, lambda: getattr(self.thing, name)(*given))

        return Method

    def hangs(self) -> bool:
        return self.number in self.cluster.hanging and self.shards > 0 and not self.dead

    def run(self, call: Callable[[], Any]) -> Any:
        if self.cluster.dies(self.number, self.shards) or self.dead:
            self.dead = True
            raise self.cluster.death("the worker died")
        return call()


class Cluster:
    """As much of the module ray as the engine uses."""

    class exceptions:
        RayError, RayTaskError = RayError, RayTaskError

    def __init__(self, resources: dict[str, float], hosts: int = 1) -> None:
        self.resources, self.hosts, self.turn = resources, hosts, 0
        self.dies: Callable[[int, int], bool] = lambda number, shards: False
        self.death: type[ActorDiedError] = ActorDiedError
        self.hanging: set[int] = set()
        self.actors: list[Actor] = []
        self.options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}] * self.hosts

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        cluster = self

        class Kind:
            @staticmethod
            def options(**options: Any) -> Any:
                cluster.options = options
                return Kind

            @staticmethod
            def remote() -> Actor:
                cluster.actors.append(Actor(cluster, kind(), len(cluster.actors)))
                return cluster.actors[-1]

        return Kind

    def wait(self, pending: Sequence[Reference], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        self.turn += 1
        for reference in [*pending[self.turn % len(pending) :], *pending]:  # each comes first at times
            if reference.run():
                return [reference], [other for other in pending if other is not reference]
        return [], list(pending)

    def get(self, asked: Any) -> Any:
        if isinstance(asked, list):
            return [self.get(each) for each in asked]
        asked.run()
        if asked.error is not None:
            raise asked.error
        return asked.made

    def kill(self, actor: Actor) -> None:
        actor.dead = True


class Sums(Job):
    """A job that needs no network."""

    def __call__(self, piece: Split, *, first: bool) -> Explained:
        values = piece.images.batch(np.arange(len(piece)))[:, :, 0, 0]
        if values.max() == 239 and self.explainer is not None:
            raise self.explainer
        return Explained(piece.name, piece.ids, piece.labels, piece.class_names, Outputs(values, values))


@pytest.fixture
def split() -> Split:
    return array_split(IMAGES, np.arange(240) % 2)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster({"CPU": 3.0})
    monkeypatch.setattr(on_ray, "package", lambda name: made)
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(on_ray.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    return made


def computed(
    split: Split, error: Exception | None = None, **settings: Any
) -> tuple[list[tuple[Shard, Explained]], dict[str, float]]:
    engine = on_ray.RayEngine(RuntimeSettings(engine="ray", **settings))
    job = Sums(nn.Linear(1, 1), None, 10, error)
    return list(engine.compute(job, split, shards_of(split, 10, 20))), engine.measured


def is_whole(made: list[tuple[Shard, Explained]]) -> bool:
    parts = sorted(made, key=lambda each: each[0].number)
    rows = np.concatenate([each.outputs.logits for _, each in parts])
    return len(parts) == 12 and np.array_equal(rows, IMAGES[:, :, 0, 0])


def test_all_shards_are_computed_once(split: Split, cluster: Cluster) -> None:
    made, measured = computed(split)
    assert is_whole(made)
    assert measured == {"workers": 3, "workers_lost": 0, "shards_given_again": 0}
    assert all(actor.dead for actor in cluster.actors)


@pytest.mark.parametrize(
    ("resources", "settings", "count"),
    [
        ({"CPU": 3.0}, {}, 3),
        ({"CPU": 8.0}, {"threads": 4}, 2),
        ({"CPU": 8.0}, {"actors": 5}, 5),
        ({"CPU": 8.0, "GPU": 2.0}, {}, 2),
        ({"CPU": 8.0, "GPU": 2.0}, {"accelerator": "cpu"}, 8),
        ({"CPU": 100.0}, {}, 12),  # one for each shard
    ],
)
def test_there_is_a_worker_for_each_device(
    split: Split,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, float],
    settings: dict[str, Any],
    count: int,
) -> None:
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)  # there is no GPU here
    cluster.resources = resources
    assert is_whole(computed(split, **settings)[0])
    assert len(cluster.actors) == count
    assert cluster.options["num_gpus"] == int("GPU" in resources and "accelerator" not in settings)


def test_shards_of_dead_workers_go_to_others(split: Split, cluster: Cluster) -> None:
    cluster.dies = lambda number, shards: number < 6 and shards == 1
    made, measured = computed(split)
    assert is_whole(made)
    assert measured["workers_lost"] == 6


def test_workers_that_die_before_they_begin_are_replaced(split: Split, cluster: Cluster) -> None:
    cluster.dies = lambda number, shards: number in (0, 1, 4)
    assert is_whole(computed(split)[0])


def test_workers_that_never_begin_are_an_error(split: Split, cluster: Cluster) -> None:
    cluster.dies = lambda number, shards: True
    with pytest.raises(ProcessError, match="10 in a row died"):
        computed(split)


def test_a_shard_that_kills_its_workers_is_named(split: Split, cluster: Cluster) -> None:
    cluster.dies = lambda number, shards: shards > 0
    with pytest.raises(ProcessError, match=r"images \d+ to \d+ of split val .* 5 died at them"):
        computed(split)


def test_nodes_that_are_taken_away_are_no_fault_of_a_shard(split: Split, cluster: Cluster) -> None:
    class Preempted(ActorDiedError):
        preempted = True

    cluster.death, cluster.dies = Preempted, lambda number, shards: number < 40 and shards > 0
    assert is_whole(computed(split)[0])


def test_a_slow_shard_is_given_to_a_second_worker(split: Split, cluster: Cluster) -> None:
    cluster.hanging = {1}
    made, measured = computed(split)
    assert is_whole(made)
    assert measured["shards_given_again"] == 1
    assert all(actor.dead for actor in cluster.actors)


def test_what_the_work_raises_ends_it(split: Split, cluster: Cluster) -> None:
    with pytest.raises(DataError, match="no good"):
        computed(split, DataError("no good"))
    assert len(cluster.actors) == 3


def test_what_one_machine_cannot_read_is_tried_on_others(split: Split, cluster: Cluster) -> None:
    with pytest.raises(ProcessError, match="OSError: the disk is gone"):
        computed(split, OSError("the disk is gone"))


def test_another_version_on_a_machine_is_refused(
    split: Split, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = workers.About

    def other(_: str, *rest: Any) -> Any:
        return about("0.0.1", *rest)

    monkeypatch.setattr(workers, "About", other)
    with pytest.raises(SettingsError, match=r"must have exmap 0\.0\.1"):
        computed(split)


def test_a_model_that_cannot_be_sent_is_refused(
    split: Split, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(_: Any) -> Any:
        raise TypeError("cannot pickle 'RecursiveScriptModule' object")

    monkeypatch.setattr(cluster, "put", put)
    with pytest.raises(SettingsError, match=r"Linear cannot be pickled \(TypeError: cannot pickle"):
        computed(split)


def test_a_gpu_that_is_not_there_is_refused(split: Split, cluster: Cluster) -> None:
    with pytest.raises(SettingsError, match="has none"):
        computed(split, accelerator="cuda")


def test_waiting_for_devices_ends(split: Split, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "run", lambda self: False)
    with pytest.raises(ProcessError, match="none was free for 600 seconds"):
        computed(split)


def test_ray_is_asked_for_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'exmap\[ray\]'"):
        on_ray.RayEngine(RuntimeSettings(engine="ray"))
