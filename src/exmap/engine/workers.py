"""The workers of a job on a Ray cluster: one for each device, started where one is missing."""

from __future__ import annotations

import os
import pickle
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

import exmap
from exmap.data.dataset import Split
from exmap.engine.job import Job
from exmap.errors import ProcessError, SettingsError
from exmap.importing import first_line, places_told, told_places
from exmap.records import Explained
from exmap.settings import RuntimeSettings

__all__ = ["Workers", "check_version", "threads_of", "why_lost"]

MOST_STARTS = 10  # workers that die before they have begun, one after the other
LONGEST_START = 600.0  # seconds until the first worker is there


def check_version(version: str) -> None:
    """Refuse to work in a process that has another version of exmap than the one that asks for the work."""
    if exmap.__version__ != version:
        raise SettingsError(
            f"all machines of the cluster must have exmap {version}, but one has {exmap.__version__}; install the same "
            "version there"
        )


def threads_of(settings: RuntimeSettings) -> int:
    """Return how many threads each worker computes with: one, unless a number is set, so that cores are not shared."""
    return settings.threads if isinstance(settings.threads, int) else 1


@dataclass(frozen=True)
class About:
    """What a worker must know beside its job."""

    version: str
    folder: str
    modules: str
    threads: int
    on_host: int


class _Worker:
    """One process of the cluster, with a device of its own."""

    def prepare(self, about: About) -> None:
        """Be what the process that asks for the work is, before anything of its own is unpickled here."""
        check_version(about.version)
        with suppress(OSError):  # on another machine it need not be there
            os.chdir(about.folder)  # paths of the settings start here
        os.environ["LOCAL_WORLD_SIZE"] = str(about.on_host)  # as torchrun says it: they share memory and cores
        told_places(about.modules)
        torch.set_num_threads(about.threads)

    def begin(self, job: Job, on_gpu: bool) -> None:
        """Take the job."""
        self.job = replace(job, model=job.model.to("cuda" if on_gpu else "cpu"))

    def compute(self, piece: Split, first: bool) -> Explained:
        """Return what is computed of a shard."""
        return self.job(piece, first=first)


class Workers:
    """The workers of a job: started where one is missing, and free, busy or lost.

    Parameters
    ----------
    ray : module
    settings : RuntimeSettings
    job : Job
    """

    def __init__(self, ray: Any, settings: RuntimeSettings, job: Job) -> None:
        self.ray, self.settings = ray, settings
        self.threads, self.on_gpu = threads_of(settings), self._gpus() > 0
        if settings.accelerator == "cuda" and not self.on_gpu:
            raise SettingsError(
                "runtime.accelerator=cuda needs a Ray cluster with GPUs, but this one has none; add nodes with GPUs, "
                "or set runtime.accelerator=auto"
            )
        try:
            self.job = ray.put(job)
        except (TypeError, ValueError, AttributeError, RuntimeError, pickle.PicklingError) as error:
            raise SettingsError(
                f"a model that workers compute must be one that can be sent to them, but {type(job.model).__name__} "
                f"cannot be pickled ({first_line(error.__cause__ or error)}); set runtime.engine=local"
            ) from error
        self.kind = ray.remote(_Worker)
        self.starting: dict[Any, tuple[Any, Any]] = {}  # by the reference that tells when a worker has begun
        self.free: list[Any] = []
        self.busy = 0
        self.began, self.lost, self.lost_in_a_row, self.most = time.monotonic(), 0, 0, 0

    def _gpus(self) -> int:
        usable = self.settings.accelerator in ("auto", "cuda")
        return int(self.ray.cluster_resources().get("GPU", 0)) if usable else 0

    def wanted(self) -> int:
        """Return how many workers there should be, of the cluster as it is now."""
        if self.settings.actors is not None:
            return self.settings.actors
        held = self.ray.cluster_resources()
        return max(1, self._gpus() if self.on_gpu else int(held.get("CPU", 1)) // self.threads)

    def fill(self, most: int) -> None:
        """Start as many workers as are missing, but no more than there are shards left."""
        missing = min(self.wanted(), most) - len(self.free) - len(self.starting) - self.busy
        if missing <= 0:
            return
        hosts = max(1, sum(bool(node["Alive"]) for node in self.ray.nodes()))
        on_host = -(-self.wanted() // hosts)
        about = About(exmap.__version__, os.getcwd(), places_told(), self.threads, on_host)
        for _ in range(missing):
            worker = self.kind.options(
                num_cpus=self.threads, num_gpus=int(self.on_gpu), max_restarts=0, scheduling_strategy="SPREAD"
            ).remote()
            prepared = worker.prepare.remote(about)
            self.starting[worker.begin.remote(self.job, self.on_gpu)] = worker, prepared

    def has_begun(self, reference: Any) -> None:
        """Take a worker that has begun, or died at it, into account."""
        worker, prepared = self.starting.pop(reference)
        try:
            self.ray.get([prepared, reference])
        except Exception as error:
            why = why_lost(self.ray, error)
            self.lose(worker)
            if self.lost_in_a_row >= MOST_STARTS:
                raise ProcessError(
                    f"workers of the Ray cluster must start, but {MOST_STARTS} in a row died at it ({why}); look at "
                    "the logs of Ray, and see that exmap is installed on all machines"
                ) from error
            return
        self.lost_in_a_row = 0
        self.free.append(worker)
        self.most = max(self.most, len(self.free) + self.busy)

    def lose(self, worker: Any) -> None:
        """Give up a worker."""
        self.lost, self.lost_in_a_row = self.lost + 1, self.lost_in_a_row + 1
        with suppress(Exception):
            self.ray.kill(worker)

    def check_started(self) -> None:
        """Refuse to wait for ever where nothing starts."""
        if self.most == 0 and time.monotonic() - self.began > LONGEST_START:
            raise ProcessError(
                f"the Ray cluster must have a device for a worker, but none was free for {LONGEST_START:.0f} seconds; "
                "wait for other work on it to end, or add nodes"
            )

    def stop(self, *busy: Any) -> None:
        """End all workers: those that are at work are given."""
        for worker in [*busy, *self.free, *(worker for worker, _ in self.starting.values())]:
            with suppress(Exception):
                self.ray.kill(worker)


def why_lost(ray: Any, error: Exception) -> str:
    """Return why a worker is lost; raise what is no loss, but an error of the work itself.

    A file that one machine cannot read, or memory that is short on it, may be no error on another.
    """
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
    if cause is not None and not isinstance(cause, OSError | MemoryError):
        raise cause from None
    if cause is None and not isinstance(error, ray.exceptions.RayError):
        raise error
    return first_line(cause or error)
