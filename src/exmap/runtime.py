"""Device, precision and processes from settings, through Lightning Fabric; and seeds without global state.

A run has one seed. Every step, epoch and repeat derives its own from it by name, so that no step's draws depend
on how many another step made, and nothing ever touches a global generator.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

import exmap.importing  # noqa: F401  # spawned processes find a user's own modules by it
from exmap.errors import ExMapError, ProcessError, SettingsError
from exmap.settings import RuntimeSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "ProcessGroup",
    "child_seed",
    "generator",
    "in_processes",
    "launched",
    "launched_runtime",
    "make_fabric",
    "process_number",
    "torch_seed",
    "worker_threads",
]

LONGEST_WAIT = timedelta(days=30)  # of processes that have no part in what the first one does
Result = TypeVar("Result")


def child_seed(seed: int, *names: str | int) -> int:
    """Return the seed in [0, 2**32) of the child that `names` lead to.

    Examples
    --------
    >>> child_seed(0, "train", 1) == child_seed(0, "train", 1) != child_seed(0, "train", 2)
    True
    """
    key = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *key]).generate_state(1)[0])


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator of its own for the child that `names` lead to."""
    return np.random.default_rng(child_seed(seed, *names))


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch inside the block only; the caller's generators are as before on leaving."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@lru_cache(maxsize=1)
def _linear_algebra(modules: int) -> Any:
    """Return the libraries of linear algebra in use; they are looked for again only once more modules are imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def worker_threads() -> Iterator[ThreadPoolExecutor]:
    """Give as many threads as linear algebra would take; inside the block each product takes one.

    Many small products are faster that way than one after the other with all threads in each, and round alike whatever
    the number of threads.
    """
    libraries = _linear_algebra(len(sys.modules))
    number = min((library["num_threads"] for library in libraries.info()), default=1)
    with libraries.limit(limits=1):
        pool = ThreadPoolExecutor(number)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # what breaks off does not wait for work that has not begun


def launched() -> bool:
    """Return whether torchrun, or ``fabric run``, has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_number() -> int:
    """Return this process's number among those that were launched together; 0 where it is alone."""
    return int(os.environ["RANK"]) if launched() else 0


def launched_runtime(settings: RuntimeSettings) -> RuntimeSettings:
    """Return the settings with the numbers of processes and hosts that were launched, where they were."""
    if not launched():
        return settings
    nodes = int(os.environ["GROUP_WORLD_SIZE"])
    return settings.model_copy(update={"devices": int(os.environ["WORLD_SIZE"]) // nodes, "num_nodes": nodes})


def make_fabric(settings: RuntimeSettings) -> Fabric:
    """Return a Fabric for the settings; several processes are spawned by its ``launch``, unless they were launched.

    Raises
    ------
    SettingsError
        If the accelerator or the number of devices is not there, or another number of processes was launched.
    """
    from lightning_fabric import Fabric

    if launched() and settings.processes != int(os.environ["WORLD_SIZE"]):
        raise SettingsError(
            f"runtime.devices={settings.devices} on runtime.num_nodes={settings.num_nodes} must be the processes that "
            f"were started, got {os.environ['WORLD_SIZE']}; start as many with torchrun, or change the settings with "
            "exmap train"
        )
    if not launched() and settings.num_nodes > 1:
        raise SettingsError(
            f"runtime.num_nodes={settings.num_nodes} needs torchrun on every host, or fabric run, to start the "
            "processes (docs/performance.md); set runtime.num_nodes=1 for processes of this host alone"
        )
    for name in ("LT_CLI_USED", "LT_STRATEGY", "LT_PRECISION"):  # fabric run's: one launch alone, and not our settings
        os.environ.pop(name, None)
    here = launched_runtime(settings)
    several = "ddp" if launched() else "ddp_spawn"
    try:
        return Fabric(
            accelerator=here.accelerator,
            devices=here.devices,
            num_nodes=here.num_nodes,
            precision=here.precision,
            strategy=several if here.processes > 1 else "auto",
        )
    except Exception as error:  # Fabric raises several kinds for the same cause: the device is not there
        raise SettingsError(
            f"runtime.accelerator={settings.accelerator} with runtime.devices={settings.devices} cannot be used here: "
            f"{error} Set runtime.accelerator=cpu or lower runtime.devices"
        ) from error


def in_processes(settings: RuntimeSettings, work: Callable[..., Result], *args: Any) -> Result:
    """Call ``work(fabric, *args)`` in every process of the settings, and return what the first one returns.

    Processes that were launched together all come here, and each is given what its own call returns. Otherwise they
    are spawned, and `work` must be picklable. A model is best given in `args`: each process then has a copy of its own.

    Raises
    ------
    ProcessError
        If a process ends before its work is done; the others are then ended, too.
    ExMapError, OSError
        What `work` raises in any process.
    """
    fabric = make_fabric(settings)
    if settings.processes == 1 or launched():
        return cast(Result, fabric.launch(_ProcessWork(work), *args))
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    with tempfile.TemporaryDirectory(prefix="exmap-") as answers:
        try:
            fabric.launch(_ProcessWork(work, Path(answers), settings.devices), *args)
        except (ProcessExitedException, ProcessRaisedException) as error:
            said = [pickle.loads(path.read_bytes()) for path in sorted(Path(answers).glob("*.raised"))]
            causes = [each for each in said if not isinstance(each, ProcessError)]  # the others lost their company only
            if causes:
                raise causes[0] from None
            if not said and isinstance(error, ProcessRaisedException):
                raise
            why = getattr(error, "signal_name", None) or "which the others noticed"
            raise ProcessError(_ended(f"of {settings.devices}; {why}")) from None
        return cast(Result, pickle.loads((Path(answers) / "0.made").read_bytes()))


class _ProcessWork:
    """The work of one process.

    What a spawned one makes or raises goes back as a file of its own: Fabric's pipe is read only when all processes
    have ended, for which one with a large result would wait in vain, and it holds no errors.
    """

    def __init__(self, work: Callable[..., Any], answers: Path | None = None, spawned: int = 1) -> None:
        self.work, self.answers, self.spawned = work, answers, spawned

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Run on unpickling in a worker, before Fabric logs its start-up."""
        self.__dict__.update(state)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        os.environ["LOCAL_WORLD_SIZE"] = str(self.spawned)  # as torchrun says it: readers of files share the cores

    def __call__(self, fabric: Any, *args: Any) -> Any:
        """Do the work."""
        try:
            made = self._work(fabric, *args)
        except (ExMapError, OSError) as error:
            self._answer(f"{fabric.global_rank}.raised", error)
            raise
        if self.answers is None:
            return made
        if fabric.global_rank == 0:
            self._answer("0.made", made)
        return None

    def _work(self, fabric: Any, *args: Any) -> Any:
        try:
            return self.work(fabric, *args)
        except RuntimeError as error:
            if isinstance(error, ExMapError) or not _lost_another(error):
                raise
            raise ProcessError(_ended(str(error).splitlines()[0])) from error

    def _answer(self, name: str, value: Any) -> None:
        if self.answers is not None:
            part = self.answers / f"{name}.part"
            part.write_bytes(pickle.dumps(value))
            part.rename(self.answers / name)


def _lost_another(error: RuntimeError) -> bool:
    """Return whether another process can no longer be reached; gloo says so by text alone."""
    import torch

    return isinstance(error, torch.distributed.DistError) or any(
        word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset by peer")
    )


def _ended(why: str) -> str:
    return (
        f"a worker process of this run died before it was done ({why}), possibly out of memory; rerun the same command "
        "to resume: finished steps and epochs are kept"
    )


class ProcessGroup:
    """The processes that were launched together: the first leads a run, the others wait for its word.

    Parameters
    ----------
    settings : RuntimeSettings
        With the numbers that were launched.
    """

    def __init__(self, settings: RuntimeSettings) -> None:
        from torch import distributed

        make_fabric(settings).launch()
        self._group: Any = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def share(self, message: Any = None) -> Any:
        """Return the first process's message in every process; the others wait for it."""
        from torch import distributed

        box = [message]
        self._do(lambda: distributed.broadcast_object_list(box, src=0, group=self._group))
        return box[0]

    def first_of_each_host(self, work: Callable[[], Result]) -> Result:
        """Do what leaves something in a cache: first one process of each host, then the others."""
        from torch import distributed

        first = int(os.environ["LOCAL_RANK"]) == 0
        made = work() if first else None
        self._do(lambda: distributed.barrier(group=self._group))
        return work() if made is None else made

    def _do(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise ProcessError(_ended(str(error).splitlines()[0])) from error
