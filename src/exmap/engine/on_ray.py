"""Compute on a Ray cluster: shards by a worker per device, each until one has finished it; blocks of numbers by tasks.

Workers hold nothing that is needed later. They are given a shard, return what was computed of it, and may die at any
time: the shard then goes to another worker, and another worker is started. When no shard is left to give away, shards
that take much longer than others are given to a second worker; what comes first counts. The results go to the process
that asked for them, which alone writes files. So workers need no common folder beside that of the images.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from exmap.cluster.sharing import in_threads
from exmap.data.dataset import Split
from exmap.engine.engine import Results
from exmap.engine.job import Job, Shard, alone
from exmap.engine.tasks import made_by_tasks
from exmap.engine.workers import Workers, threads_of, why_lost
from exmap.errors import ProcessError, SettingsError
from exmap.importing import first_line, package
from exmap.records import Explained
from exmap.settings import RuntimeSettings
from exmap.threads import usable_cores

__all__ = ["RayEngine"]

FEWEST_BLOCKS = 64  # of cells, that are worth a cluster: 260,000 samples
MOST_LOSSES = 5  # of one shard, after which it is taken for the reason
SLOW, NEVER_SLOW = 3.0, 10.0  # times the median, and seconds, above which a shard is given to a second worker
ROUND = 1.0  # seconds after which the state of all shards is looked at again
TRIES = 3  # to start a cluster on a busy machine
VARIABLES = {  # of Ray, unless they are set
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns otherwise
    "RAY_prestart_worker_first_driver": "false",  # it waits for ever for one that does not start
    "RAY_worker_register_timeout_seconds": "600",  # a busy machine takes longer than its minute
    "RAY_agent_register_timeout_ms": "600000",
}

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Made = TypeVar("Made")


class RayEngine:
    """Computes on a Ray cluster.

    Parameters
    ----------
    settings : RuntimeSettings
        ``address`` names the cluster; without one, a cluster of this machine alone is started and stopped again.

    Raises
    ------
    SettingsError
        If Ray is not installed.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
        self.settings, self.ray = settings, package("ray")
        self.measured: dict[str, float] = {}

    def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
        """Yield each shard with what was computed of it, as soon as it is there.

        Raises
        ------
        SettingsError
            If the cluster cannot be reached, has no GPU where one is asked for, or runs another version of exmap.
        ProcessError
            If no worker can be started, or a shard has lost several.
        ExMapError
            What the job raises.
        """
        if not shards:
            return
        with _connected(self.ray, self.settings):
            work = _Work(self.ray, Workers(self.ray, self.settings, job), split, shards)
            try:
                yield from work.results()
            finally:
                self.measured = work.measured()
                work.stop()

    def map_blocks(
        self, function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
    ) -> Generator[Made, None, None]:
        """Yield what a function makes of each block, in order, as :func:`~exmap.engine.tasks.made_by_tasks` does.

        Threads of this process have few blocks done before a cluster would have started.
        """
        if len(blocks) < FEWEST_BLOCKS:
            yield from in_threads(function, shared, blocks)
            return
        with _connected(self.ray, self.settings):
            yield from made_by_tasks(self.ray, function, shared, blocks)


@contextmanager
def _connected(ray: Any, settings: RuntimeSettings) -> Iterator[None]:
    """Be connected to the cluster of the settings, or to the one that this process is connected to already."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if settings.address is not None:
        try:
            ray.init(address=settings.address, **quiet)
        except Exception as error:  # Ray raises several kinds
            raise SettingsError(
                f"runtime.address must be that of a running Ray cluster, but {settings.address} cannot be reached "
                f"({first_line(error)}); start one with ray start --head, or leave the address out"
            ) from error
    else:
        _start(ray, (settings.actors or usable_cores()) * threads_of(settings), quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _start(ray: Any, cores: int, quiet: Mapping[str, Any]) -> None:
    """Start a cluster of this machine; where that is busy, its processes may not find each other at first."""
    for attempt in range(1, TRIES + 1):
        try:
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == TRIES:
                raise ProcessError(
                    f"a Ray cluster must start on this machine, but it did not in {TRIES} attempts "
                    f"({first_line(error)}); start one with ray start --head and name it with --address auto"
                ) from error


@dataclass(frozen=True)
class _Attempt:
    """A shard that a worker is at."""

    shard: Shard
    worker: Any
    began: float


class _Work:
    """Shards that are left, those that workers are at, and those that are done.

    Parameters
    ----------
    ray : module
    workers : Workers
    split : Split
    shards : sequence of Shard
    """

    def __init__(self, ray: Any, workers: Workers, split: Split, shards: Sequence[Shard]) -> None:
        self.ray, self.workers, self.split = ray, workers, split
        self.waiting = deque(shards)
        self.missing = {shard.number for shard in shards}
        self.attempts: dict[Any, _Attempt] = {}  # by the reference to the result
        self.losses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.reissued = 0

    def results(self) -> Results:
        """Yield each shard with its result."""
        while self.missing:
            self.workers.busy = len(self.attempts)
            self.workers.fill(len(self.missing) + len(self._slow()))
            self.workers.check_started()
            while self.workers.free and (shard := self._next()) is not None:
                self._give(shard, self.workers.free.pop())
            self.workers.busy = len(self.attempts)
            pending = [*self.workers.starting, *self.attempts]
            ready, _ = self.ray.wait(pending, num_returns=1, timeout=ROUND)
            for reference in ready:
                if reference in self.workers.starting:
                    self.workers.has_begun(reference)
                elif (made := self._ended(reference)) is not None:
                    yield made

    def measured(self) -> dict[str, float]:
        """Return what happened."""
        return {
            "workers": self.workers.most,
            "workers_lost": self.workers.lost,
            "shards_given_again": sum(self.losses.values()) + self.reissued,
        }

    def stop(self) -> None:
        """End all workers: also those that are at shards that are done, or at work that broke off."""
        self.workers.stop(*(attempt.worker for attempt in self.attempts.values()))

    def _next(self) -> Shard | None:
        """Return the shard that a free worker takes: one that nobody is at, or else a slow one."""
        if self.waiting:
            return self.waiting.popleft()
        slow = self._slow()
        if not slow:
            return None
        self.reissued += 1
        return min(slow, key=lambda attempt: attempt.began).shard

    def _slow(self) -> list[_Attempt]:
        """Return what takes much longer than others did and has no second worker, once no shard is left to give."""
        if self.waiting or not self.seconds:
            return []
        limit = max(NEVER_SLOW, SLOW * statistics.median(self.seconds))
        at = Counter(attempt.shard.number for attempt in self.attempts.values())
        return [
            attempt
            for attempt in self.attempts.values()
            if attempt.shard.number in self.missing
            and at[attempt.shard.number] == 1
            and time.monotonic() - attempt.began > limit
        ]

    def _give(self, shard: Shard, worker: Any) -> None:
        reference = worker.compute.remote(alone(self.split, shard), shard.number == 0)
        self.attempts[reference] = _Attempt(shard, worker, time.monotonic())

    def _ended(self, reference: Any) -> tuple[Shard, Explained] | None:
        """Return a shard with its result, where that is the first one."""
        attempt = self.attempts.pop(reference)
        shard = attempt.shard
        try:
            made: Explained = self.ray.get(reference)
        except Exception as error:
            self._lost(attempt, error)
            return None
        self.workers.lost_in_a_row = 0
        self.workers.free.append(attempt.worker)
        if shard.number not in self.missing:
            return None
        self.missing.discard(shard.number)
        self.seconds.append(time.monotonic() - attempt.began)
        return shard, made

    def _lost(self, attempt: _Attempt, error: Exception) -> None:
        """Put a shard that a worker was lost at back, in front of the others."""
        why, shard = why_lost(self.ray, error), attempt.shard
        self.workers.lose(attempt.worker)
        others = any(other.shard.number == shard.number for other in self.attempts.values())
        if shard.number not in self.missing:
            return
        self.losses[shard.number] += not getattr(error, "preempted", False)
        if self.losses[shard.number] >= MOST_LOSSES:
            raise ProcessError(
                f"the images {shard.start:,} to {shard.stop - 1:,} of split {self.split.name} must be computed by some "
                f"worker, but {MOST_LOSSES} died at them ({why}); give workers more memory by fewer runtime.actors, or "
                "lower explain.batch_size, and rerun the same command: finished shards are kept"
            ) from error
        if not others:
            self.waiting.appendleft(shard)
