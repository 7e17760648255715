"""Commands in processes of their own that cost nothing to start: libraries are loaded once, and each is a fork.

The program starts in five seconds, most of which are torch's. A fork of a process that has loaded everything takes some
milliseconds; it is as much a process of its own as any: it can be killed, it can hang, its streams and environment are
its own. What depends on how libraries are loaded needs :func:`fresh`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

__all__ = ["Said", "forked", "fresh", "load_everything", "warm_up", "without_drawing"]

MEMORY = 12 * 1024**3  # bytes of addresses that a command may take: libraries map some, most never touched
SKIPPED = ("exmap.__main__",)
LATE = (  # what exmap, or what it imports, imports only when it works
    "lightning_fabric",
    "matplotlib.pyplot",
    "pandas",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "pyarrow.parquet",
    "sklearn.cluster",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "torchvision",
)


@dataclass(frozen=True)
class Said:
    """What a command left.

    Attributes
    ----------
    code : int or None
        Exit code; below 0 the signal that ended it; None where it was ended because it hung.
    out, err : bytes
        Both streams, as they were written.
    seconds : float
        Of the processor.
    """

    code: int | None
    out: bytes
    err: bytes
    seconds: float


def load_everything() -> None:
    """Import all modules of exmap, and what they import only when they work."""
    import exmap

    os.environ.setdefault("MPLBACKEND", "agg")
    for module in pkgutil.walk_packages(exmap.__path__, "exmap."):
        if module.name not in SKIPPED:
            with suppress(ImportError):
                importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)


def warm_up(words: Sequence[str], folder: Path) -> int | None:
    """Give a command in this process, so that all that libraries do only once is done; return its exit code."""
    kept = sys.argv, os.getcwd()
    sys.argv = ["exmap", *words]
    os.chdir(folder)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return _command()
    finally:
        sys.argv = kept[0]
        os.chdir(kept[1])


def forked(
    words: Sequence[str | bytes | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    seconds: float = 160.0,
    before: Callable[[], object] | None = None,
    during: Callable[[int], object] | None = None,
) -> Said:
    """Give a command in a fork of this process.

    Parameters
    ----------
    words : sequence
        What stands after ``exmap``.
    folder : Path
        Where the command is given.
    environment : mapping, optional
        The whole environment. Default: this process's.
    seconds : float
        After which the command, and all that it started, is killed: it hangs. Of the processor a quarter of that.
    before : callable, optional
        Called in the new process before the command.
    during : callable, optional
        Called in this one with the number of the new process.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        number = os.fork()
        if number == 0:
            _child([os.fsdecode(word) for word in words], folder, environment, out, err, before, int(seconds / 4) + 1)
        with suppress(OSError):
            os.setpgid(number, number)
        if during is not None:
            during(number)
        code, taken = _wait(number, seconds)
        with suppress(OSError):
            os.killpg(number, signal.SIGKILL)  # what it started and left
        out.seek(0)
        err.seek(0)
        return Said(code, out.read(), err.read(), taken)


def fresh(
    words: Sequence[str | bytes | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    seconds: float = 120.0,
) -> Said:
    """Give a command in a new interpreter, which loads its libraries itself."""
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "exmap", *map(os.fsdecode, words)],
        cwd=folder,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            code = None
    return Said(code, out, err, time.monotonic() - start)


def without_drawing() -> None:
    """Let runs of this process leave a picture without content: drawing it is two thirds of the work of a small run."""
    import exmap.pipeline.outcome as outcome

    def draw(analysis: object, path: Path) -> None:
        path.write_bytes(b"")

    outcome.save_strategies = draw  # type: ignore[attr-defined]


def _wait(number: int, seconds: float) -> tuple[int | None, float]:
    """Return the exit code of a child, or None after it was killed because it took too long; and what it took."""
    handle = os.pidfd_open(number)
    try:
        ended, _, _ = select.select([handle], [], [], seconds)
    finally:
        os.close(handle)
    if not ended:
        os.killpg(number, signal.SIGKILL)
    _, status, used = os.wait4(number, 0)
    code = os.waitstatus_to_exitcode(status)
    hung = not ended or code == -signal.SIGXCPU
    return None if hung else code, used.ru_utime + used.ru_stime


def _child(
    words: list[str],
    folder: Path,
    environment: Mapping[str, str] | None,
    out: IO[bytes],
    err: IO[bytes],
    before: Callable[[], object] | None,
    seconds: int,
) -> NoReturn:
    """Be the command: never come back, whatever happens."""
    code: Any = 70
    try:
        import resource

        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8").split(":")[0] or "utf-8"
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.argv = ["exmap", *words]
        if before is not None:
            before()
        code = _command()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def _command() -> int:
    """Do what the installed script does, and return the exit code that Python would give it."""
    from exmap.cli import main

    try:
        main()
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
            return 1
        return int(left.code or 0)
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
