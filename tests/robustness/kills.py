"""Commands that are killed, before a random file operation or at a random moment, and given again until they are done.

What is promised: the same command continues, what comes out is what an undisturbed one makes, byte for byte where no
times are kept, and nothing is left over of what was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import Said, forked, without_drawing
from judging import OBEYED, faults_of_saying, left_overs, strict_json, without_times
from materials import CHEAP, Materials, options

__all__ = ["SCENARIOS", "Reference", "Scenario", "reference_of", "scenarios", "try_kills"]

MOST_KILLS = 6  # of one command, before it is let go on to its end
LIMIT = 400.0  # seconds
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "shutil.copyfile",
}
TIMED = (
    "done.json",
    "attempt.json",
    "manifest.json",
    "results.json",
    "report.html",
    "fit.json",
    ".lock",
)  # files that hold times
CACHE_LOCK = "/.lock"  # which a folder of the cache keeps
SAME = {".safetensors", ".npy", ".parquet", ".png", ".json", ".yaml", ".md", ".pt2", ".onnx"}


@dataclass(frozen=True)
class Scenario:
    """A command in a folder of its own.

    Attributes
    ----------
    words : sequence
        What stands after ``exmap``.
    prepare : callable
        Given the folder, puts into it what the command needs.
    code : tuple of int
        With which it may end well.
    """

    words: Sequence[Any]
    prepare: Callable[[Path], object]
    code: tuple[int, ...] = (0,)


@dataclass
class Reference:
    """What an undisturbed command leaves.

    Attributes
    ----------
    operations : int
        On files, that change something.
    seconds : float
        Of the processor.
    files : mapping of str to str
        Digests of what must be the same again.
    results : mapping or None
        results.json without times.
    names : list of str
        All files.
    """

    operations: int
    seconds: float
    files: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] | None = None
    names: list[str] = field(default_factory=list)


def scenarios(made: Materials) -> dict[str, Scenario]:
    """Return the commands that are killed."""
    run = ["run", "folder", "--data-dir", made.photos, "--out", "run"]

    def nothing(place: Path) -> None:
        pass

    def finished(place: Path) -> None:
        shutil.copytree(made.run, place / "run")

    def clustered(place: Path) -> None:
        finished(place)
        for step in (place / "run").iterdir():
            if step.name.startswith(("groups", "fit", "repaired", "trust", "evaluate", "report", "describe")):
                shutil.rmtree(step)

    kept = ["images.cache=always", "images.cache_dir=cache"]
    return {
        "run": Scenario([*run, *options(*CHEAP, "train.epochs=3")], nothing),
        "run with a cache": Scenario([*run, *options(*CHEAP, *kept)], nothing),
        "run with more sources": Scenario(
            [*run, *options(*CHEAP, "groups.sources=[exmap,classes,error_set]")], nothing
        ),
        "evaluate": Scenario(["evaluate", "run"], clustered),
        "report": Scenario(["report", "run"], finished),
        "figures": Scenario(["figures", "run", "--only", "comparison"], finished),
        "export": Scenario(["export", "run", "--to", "parquet"], finished),
    }


# How often each is killed among a hundred.
SCENARIOS = {
    "run": 40,
    "run with a cache": 18,
    "run with more sources": 12,
    "evaluate": 12,
    "report": 6,
    "figures": 6,
    "export": 6,
}


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Say whether what an audit hook hears of is a file operation that changes something."""
    if event != "open":
        return event in CHANGES
    _, mode, flags = arguments
    return bool(flags & WRITING) if isinstance(flags, int) and flags else any(c in str(mode) for c in "wax+")


def before_each_change(do: Callable[[int], object]) -> None:
    """Let this process do something before each of its file operations, given the operation's number."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if changes_files(event, arguments):
            seen += 1
            do(seen)

    sys.addaudithook(hook)


def signalled(at: int, number: int) -> Callable[[], None]:
    """Return what, called in a process, lets a signal come before its file operation number `at`."""

    def do(seen: int) -> None:
        if seen == at:
            os.kill(os.getpid(), number)

    return lambda: before_each_change(do)


def reference_of(scenario: Scenario, place: Path) -> Reference:
    """Give a command undisturbed, and return what it leaves."""
    scenario.prepare(place)
    tally = place.with_name(place.name + ".operations")

    def count() -> None:
        number = os.open(tally, os.O_WRONLY | os.O_CREAT)
        before_each_change(lambda seen: os.pwrite(number, b"%d " % seen, 0))

    said = forked(scenario.words, folder=place, seconds=LIMIT, before=_in_turn(scenario, count))
    if said.code not in scenario.code:
        raise RuntimeError(f"an undisturbed command failed: {said.err.decode(errors='replace')}")
    operations = int((tally.read_text().split() or [0])[0])
    if not operations:
        raise RuntimeError(f"an undisturbed command changes nothing: {said}")
    tally.unlink()
    files, results = left(place)
    if more := [name for name in left_overs(place) if not name.endswith(CACHE_LOCK)]:
        raise RuntimeError(f"an undisturbed command leaves {more}")
    return Reference(operations, said.seconds, files, results, names_of(place))


def names_of(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


def left(place: Path) -> tuple[dict[str, str], dict[str, Any] | None]:
    """Return digests of the files without times, and the results without them."""
    files = {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.suffix in SAME and path.name not in TIMED
    }
    found = place / "run" / "results.json"
    return files, without_times(strict_json(found.read_text())) if found.exists() else None


def try_kills(
    scenario: Scenario, reference: Reference, place: Path, rng: random.Random
) -> tuple[int, list[str], list[str]]:
    """Kill a command some times and let it go on to its end; return how often, how, and what was wrong."""
    scenario.prepare(place)
    how: list[str] = []
    for _ in range(rng.randint(1, MOST_KILLS)):
        kind = rng.choice(("kill", "kill", "kill", "interrupt", "terminate"))
        number = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}[kind]
        if rng.random() < 0.6:
            at = rng.randint(1, reference.operations)
            how.append(f"{kind} before operation {at}")
            before = signalled(at, number)
        else:
            after = rng.uniform(0.01, reference.seconds)
            how.append(f"{kind} after {after:.3f} s")
            before = timed(after, number)
        said = forked(scenario.words, folder=place, seconds=LIMIT, before=_in_turn(scenario, before))
        faults = faults_of_end(said, kind, scenario)
        if faults:
            return len(how), how, faults
        if said.code in scenario.code:
            how[-1] += " (was done)"
            break
    said = forked(scenario.words, folder=place, seconds=LIMIT, before=_in_turn(scenario))
    faults = faults_of_saying(said, [str(word) for word in scenario.words])
    if said.code not in scenario.code:
        faults.append(f"does not go on: {said.code} {said.err.decode(errors='replace')[-400:]}")
    files, results = left(place)
    faults += [
        f"{name} is another" for name in reference.files if name in files and files[name] != reference.files[name]
    ][:2]
    faults += [
        f"{name} is missing" for name in reference.names if not (place / name).exists() and not name.endswith(".lock")
    ][:2]
    # A folder of the cache is locked a moment after it is made; what was killed in between goes a minute later.
    more = [name for name in names_of(place) if name not in reference.names and ".new-" not in name]
    faults += [f"left over: {name}" for name in more][:2]
    if results != reference.results:
        faults.append("results are others")
    return len(how), how, faults


def _in_turn(scenario: Scenario, then: Callable[[], object] | None = None) -> Callable[[], None]:
    """Return what is called in the process of a command: pictures are drawn where the command is about them."""

    def before() -> None:
        if scenario.words[0] in ("run", "evaluate"):
            without_drawing()
        if then is not None:
            then()

    return before


def timed(seconds: float, number: int) -> Callable[[], None]:
    """Return what, called in a process, lets a signal come after some seconds of the processor."""

    def before() -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGINT))  # as a terminal does it
        else:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process as SIGKILL does
        signal.setitimer(signal.ITIMER_PROF, seconds)

    return before


def faults_of_end(said: Said, kind: str, scenario: Scenario) -> list[str]:
    """Return what is wrong with how a command that was sent a signal ended."""
    if said.code in scenario.code:
        return []
    if kind != "interrupt":
        fine = said.code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGPROF, 130, 143)
        return [] if fine else [f"{kind}: exit code {said.code}: {said.err.decode(errors='replace')[-300:]}"]
    err = said.err.decode(errors="replace")
    if "Traceback" in err or said.code not in (130, -signal.SIGINT):
        return [f"interrupt: exit code {said.code}: {err[-300:]}"]
    lines = [line for line in err.splitlines() if line.strip()]
    return [] if len(lines) == 1 and not OBEYED.search(err) else [f"interrupt: {lines[-3:]}"]
