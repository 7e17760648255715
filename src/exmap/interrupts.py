"""Ctrl-C: it ends a command at once while nothing is running, and is raised where there is something to clean up.

Libraries that are just being loaded may swallow an exception, or make another one of it. So none is raised then, and
where one is, what was pressed is noted.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["INTERRUPTED", "end_at_once", "raised"]

INTERRUPTED = 130  # exit code
SENTENCE = "interrupted; no work was under way, so the same command can simply be given again"
SHOW_CURSOR = "\x1b[?25h\r\x1b[K"  # what draws a moving picture may have hidden it


def end_at_once() -> Callable[[], None]:
    """Let Ctrl-C end this process in one sentence, from now on; return what undoes that.

    Where Ctrl-C is ignored, as in a shell's background jobs, or handled by somebody else, that stays so.
    """
    before = _handler()
    if before is not signal.default_int_handler:
        return lambda: None
    signal.signal(signal.SIGINT, _end)
    return lambda: _set(before)


@contextmanager
def raised() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C raise KeyboardInterrupt inside the block; give what says whether it was pressed.

    Pressed again, it ends the process at once.
    """
    pressed = threading.Event()

    def note(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, _end)
        raise KeyboardInterrupt

    before = _handler()
    ours = before in (signal.default_int_handler, _end)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _handler() -> Any:
    """Return the handler of Ctrl-C; None in a thread that may not change it."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None


def _set(handler: Any) -> None:
    if _handler() is _end:
        signal.signal(signal.SIGINT, handler)


def _end(number: int, frame: Any) -> None:
    """Say so, where this is the process that speaks, and end: without what Python would do, and could fail at."""
    if os.environ.get("RANK", "0") == "0":
        shown = SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, f"{shown}exmap: {SENTENCE}\n".encode())
    os._exit(INTERRUPTED)
