"""Device, precision and processes from settings, through Lightning Fabric; and seeds without global state.

A run has one seed. Every step, epoch and repeat derives its own from it by name, so that no step's draws depend
on how many another step made, and nothing ever touches a global generator.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

import exmap.importing  # noqa: F401  # spawned processes find a user's own modules by it
from exmap.errors import ExMapError, ProcessError, SettingsError, shown
from exmap.precision import native_precision
from exmap.settings import RuntimeSettings
from exmap.threads import computing_threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "ProcessGroup",
    "child_seed",
    "generator",
    "in_processes",
    "launched",
    "launched_runtime",
    "lost_another",
    "make_fabric",
    "process_number",
    "processes_here",
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
    if seed != int(seed) or seed < 0:
        raise SettingsError(f"a seed must be a whole number of at least 0, got {shown(seed)}; choose one")
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


LAUNCHER = "TORCHELASTIC_RUN_ID"  # there where torchrun, or fabric run, started the process
SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")  # processes in all, and on this host; hosts
NUMBERS = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE", "GROUP_RANK": "GROUP_WORLD_SIZE"}


def _launch() -> dict[str, int]:
    """Return the numbers that a launcher of processes has put into the environment.

    Raises
    ------
    SettingsError
        If they do not fit together, or some are missing.
    """
    found: dict[str, int] = {}
    for name in (*SIZES, *NUMBERS, "MASTER_PORT"):
        if (text := os.environ.get(name)) is None:
            continue
        least = int(name in SIZES)
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            raise _no_launch(f"{name} must be a whole number of at least {least}, got {text!r:.40}")
        found[name] = int(text)
    if LAUNCHER not in os.environ:
        return found
    if missing := [name for name in (*SIZES, *NUMBERS, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise _no_launch(f"{LAUNCHER} is set, but {' and '.join(missing)} not")
    for number, size in NUMBERS.items():
        if found[number] >= found[size]:
            raise _no_launch(f"{number} must be below {size}, got {found[number]} and {found[size]}")
    if found["WORLD_SIZE"] % found["GROUP_WORLD_SIZE"] or found["LOCAL_WORLD_SIZE"] > found["WORLD_SIZE"]:
        raise _no_launch("; ".join(f"{name} is {found[name]}" for name in SIZES))
    return found


def _no_launch(why: str) -> SettingsError:
    return SettingsError(
        f"the environment must name the processes that work together as torchrun names them, but {why}; start them "
        "with torchrun, or unset its variables"
    )


def launched() -> bool:
    """Return whether torchrun, or ``fabric run``, has started this process as one of several."""
    numbers = _launch()
    return LAUNCHER in os.environ and numbers["WORLD_SIZE"] > 1


def process_number() -> int:
    """Return this process's number among those that were launched together; 0 where it is alone."""
    return _launch()["RANK"] if launched() else 0


def processes_here() -> int:
    """Return how many processes of a run compute on this host."""
    return _launch().get("LOCAL_WORLD_SIZE", 1)


def launched_runtime(settings: RuntimeSettings) -> RuntimeSettings:
    """Return the settings with the numbers of processes and hosts that were launched, where they were."""
    if not launched():
        return settings
    numbers = _launch()
    nodes = numbers["GROUP_WORLD_SIZE"]
    return settings.model_copy(update={"devices": numbers["WORLD_SIZE"] // nodes, "num_nodes": nodes})


def make_fabric(settings: RuntimeSettings) -> Fabric:
    """Return a Fabric for the settings; several processes are spawned by its ``launch``, unless they were launched.

    Raises
    ------
    SettingsError
        If the accelerator or the number of devices is not there, or another number of processes was launched.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # we say what is trained in
    if launched() and settings.processes != _launch()["WORLD_SIZE"]:
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
            precision=native_precision(here.accelerator) if here.precision == "auto" else here.precision,
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
            fabric.launch(_ProcessWork(work, Path(answers), settings.devices, _share_of_threads(settings)), *args)
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


def _share_of_threads(settings: RuntimeSettings) -> int:
    """Return how many threads each of several processes takes: what is named, or its share of this one's."""
    import torch

    return settings.threads if settings.threads != "auto" else max(1, torch.get_num_threads() // settings.devices)


class _ProcessWork:
    """The work of one process.

    What a spawned one makes or raises goes back as a file of its own: Fabric's pipe is read only when all processes
    have ended, for which one with a large result would wait in vain, and it holds no errors.
    """

    def __init__(
        self, work: Callable[..., Any], answers: Path | None = None, spawned: int = 1, threads: int | None = None
    ) -> None:
        self.work, self.answers, self.spawned, self.threads = work, answers, spawned, threads

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Run on unpickling in a worker, before Fabric logs its start-up."""
        self.__dict__.update(state)
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        os.environ["LOCAL_WORLD_SIZE"] = str(self.spawned)  # as torchrun says it: readers of files share the cores

    def __call__(self, fabric: Any, *args: Any) -> Any:
        """Do the work."""
        try:
            with nullcontext() if self.threads is None else computing_threads(self.threads):
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
            if isinstance(error, ExMapError) or not lost_another(error):
                raise
            raise ProcessError(_ended(str(error).splitlines()[0])) from error

    def _answer(self, name: str, value: Any) -> None:
        if self.answers is not None:
            part = self.answers / f"{name}.part"
            part.write_bytes(pickle.dumps(value))
            part.rename(self.answers / name)


def lost_another(error: BaseException) -> bool:
    """Return whether an error says that another process can no longer be reached; gloo says so by text alone."""
    import torch

    said = ("[gloo", "gloo/", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in said)
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

        first = _launch()["LOCAL_RANK"] == 0
        made = work() if first else None
        self._do(lambda: distributed.barrier(group=self._group))
        return work() if made is None else made

    def _do(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise ProcessError(_ended(str(error).splitlines()[0])) from error
