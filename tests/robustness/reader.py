"""A reader that is tried in this process: how its inputs are drawn, how judged, and what is no fault."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from exmap.errors import ExMapError

__all__ = ["SEEDS", "Hang", "Reader", "emptied", "refused", "scratch", "try_readers", "written"]


LONGEST = 60  # seconds that one input may take


Judge = Callable[[Any], list[str]]


class Hang(BaseException):
    """One input took too long."""


@contextmanager
def alarmed(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in the block after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Reader:
    """A kind of input: how it is drawn, how judged, and its share of a hundred cases."""

    draw: SearchStrategy[Any]
    judge: Judge
    share: int


def judged(judge: Judge, value: Any) -> list[str]:
    """Return what was wrong with an input; an error of exmap's own is not, if it is one sentence."""
    try:
        with alarmed(LONGEST), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = judge(value)
        return found + [f"warning: {item.category.__name__}: {item.message}" for item in warned[:1]]
    except ExMapError as error:
        return refused(str(error))
    except Hang:
        return ["hang"]
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename.rsplit('/src/', 1)[-1]}:{frame.name}" for frame in frames]
        inside = [place for place in places if place.startswith("exmap")]
        if isinstance(error, KeyboardInterrupt):
            raise
        return [f"{type(error).__name__}: {str(error)[:200]} [{(inside or places)[-1]}]"]


def refused(sentence: str) -> list[str]:
    """Return what is wrong with the sentence of an error."""
    if not sentence.strip():
        return ["an error without words"]
    if re.search(r"<class '|<function |\[type=|pydantic\.dev|\[Errno", sentence):
        return [f"inner words: {sentence[:300]}"]
    if len(sentence) > 4000:
        return [f"a sentence of {len(sentence):,} characters"]
    return []


# A printed seed is enough to have an input again; so judges get seeds, and not what is made of them.
SEEDS = st.integers(0, 2**48)


@cache
def scratch() -> Path:
    """Return a folder of this process; in memory where there is one."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="exmap-readers-", dir=memory if memory.is_dir() else None))


@contextmanager
def emptied(name: str) -> Iterator[Path]:
    folder = scratch() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def written(data: bytes, name: str) -> Path:
    path = scratch() / name
    path.write_bytes(data)
    return path


def try_readers(reader: Reader, number: int, cases: int) -> tuple[int, list[tuple[str, list[str]]]]:
    """Try some inputs of a kind, and return how many were tried, and those with faults, as Python writes them."""
    tried = 0
    found: list[tuple[str, list[str]]] = []

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.draw)
    def one(value: Any) -> None:
        nonlocal tried
        tried += 1
        faults = judged(reader.judge, value)
        if faults:
            found.append((f"{value!r:.300}", faults))

    one()
    return tried, found
