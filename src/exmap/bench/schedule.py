"""Run tasks that need one another in several processes; one that fails takes only those with it that need it.

A task is named by a key and runs as ``function(*arguments)`` in a worker process. Nothing is shared between tasks but
what they leave on disk, so a worker may die at any time.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from exmap.errors import ExMapError
from exmap.records import Listener, Progress

__all__ = ["Failure", "Outcome", "Task", "run_tasks"]

SECONDS_BETWEEN_REPORTS = 0.5  # of one worker's progress


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes
    ----------
    key : str
        Unique.
    function : callable
        At the top of a module. It is given the arguments and a ``listen``, and returns something small.
    arguments : tuple
    needs : tuple of str
        Keys of tasks that must have succeeded before.
    title : str
        Stands before its progress.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a task could not be done.

    Attributes
    ----------
    reason : str
        One sentence.
    details : str
        The traceback, where the reason is not one that exmap foresees.
    """

    reason: str
    details: str = ""


Outcome = Any | Failure


def run_tasks(
    tasks: list[Task], *, jobs: int, listen: Listener, finished: Callable[[Task, Outcome], None], threads: int
) -> None:
    """Run every task once all that it needs has succeeded, in the order given where there is a choice.

    Parameters
    ----------
    tasks : list of Task
    jobs : int
        Worker processes; with 1 the tasks run in this process.
    listen : Listener
        Called with all tasks' progress, in this process.
    finished : callable
        Is told of each task's result or failure, in this process, as it comes.
    threads : int
        Of the numerical libraries in each worker process.
    """
    waiting = {task.key: task for task in tasks}
    outcomes: dict[str, Outcome] = {}

    def settle(task: Task, outcome: Outcome) -> None:
        outcomes[task.key] = outcome
        finished(task, outcome)

    def ready() -> Iterator[Task]:
        """Yield what can start, and settle what never can."""
        for task in list(waiting.values()):
            met = [outcomes[key] for key in task.needs if key in outcomes]
            failure = next((outcome for outcome in met if isinstance(outcome, Failure)), None)
            if failure is not None:
                settle(waiting.pop(task.key), failure)
            elif len(met) == len(task.needs):
                yield task

    if jobs == 1:
        while waiting:
            for task in ready():
                settle(waiting.pop(task.key), _attempt(task.function, task.arguments, _titled(task.title, listen)))
        return
    running: dict[Future[Outcome], Task] = {}
    workers = _Workers(jobs, threads)
    try:
        while waiting or running:
            for task in ready():
                if len(running) == jobs:
                    break
                running[workers.submit(task)] = waiting.pop(task.key)
            done, _ = wait(running, timeout=SECONDS_BETWEEN_REPORTS, return_when=FIRST_COMPLETED)
            workers.report(listen)
            for future in done:
                workers.leave(future)
                settle(running.pop(future), _result(future))
    finally:
        workers.stop()  # after an interrupt what is unfinished begins again


class _Workers:
    """Processes that run tasks, each in a pool of its own so that one's death is nobody else's; what they report."""

    def __init__(self, jobs: int, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._reports: Any = self._context.Queue()
        self._threads = threads
        self._idle = [self._pool() for _ in range(jobs)]
        self._busy: dict[Future[Outcome], ProcessPoolExecutor] = {}

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin, initargs=(self._reports, self._threads)
        )

    def submit(self, task: Task) -> Future[Outcome]:
        """Start a task in an idle process; there must be one."""
        pool = self._idle.pop()
        try:
            future = pool.submit(_work, task.function, task.arguments, task.title)
        except BrokenProcessPool:  # it died while it was idle
            pool.shutdown()
            pool = self._pool()
            future = pool.submit(_work, task.function, task.arguments, task.title)
        self._busy[future] = pool
        return future

    def leave(self, future: Future[Outcome]) -> None:
        """Take back the process of a task that is done, or a new one for it where it died."""
        pool = self._busy.pop(future)
        if isinstance(future.exception(), BrokenProcessPool):
            pool.shutdown()
            pool = self._pool()
        self._idle.append(pool)

    def report(self, listen: Listener) -> None:
        """Pass on what has been reported since the last time."""
        while True:
            try:
                listen(self._reports.get_nowait())
            except queue.Empty:
                return

    def stop(self) -> None:
        """End the processes, whatever they are at."""
        pools = [*self._idle, *self._busy.values()]
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.terminate()
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._reports.cancel_join_thread()
        self._reports.close()


def _result(future: Future[Outcome]) -> Outcome:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return Failure(
            "a worker process died while this ran, possibly out of memory; lower --jobs, and run the same again"
        )
    return future.result()


def _attempt(function: Callable[..., Any], arguments: tuple[Any, ...], listen: Listener) -> Outcome:
    """Return what the function returns, or why it could not."""
    try:
        return function(*arguments, listen=listen)
    except (ExMapError, OSError) as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"an unforeseen {type(error).__name__}: {error}", traceback.format_exc())


def _titled(title: str, listen: Listener) -> Listener:
    return lambda progress: listen(replace(progress, task=f"{title}: {progress.task}"))


_reports: Any = None  # in a worker process: the way to the main one


def _begin(reports: Any, threads: int) -> None:
    """Set up a worker process, which ends with the main one whatever ends that."""
    global _reports
    _reports = reports
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(function: Callable[..., Any], arguments: tuple[Any, ...], title: str) -> Outcome:
    """Run a task in a worker process, and report its progress now and then."""
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_REPORTS or progress.done == progress.total:
            last = now
            _reports.put(progress)

    return _attempt(function, arguments, _titled(title, report))
