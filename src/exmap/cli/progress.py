"""Progress on the screen: one bar per piece of work, or lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from exmap.plain_text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from exmap.records import Progress

__all__ = ["ProgressBars"]

SECONDS_BETWEEN_LINES = 30


class ProgressBars:
    """A listener that draws one bar per piece of work, with its rate; without a terminal it writes lines."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._tasks: dict[str, Any] = {}
        self._logged: dict[str, tuple[float, int, float, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the screen; new bars are drawn there."""
        return {"_bar": None, "_tasks": {}, "_logged": {}}

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        if not sys.stderr.isatty():
            self._log(progress)
            return
        bar = self._bar or self._start()
        if progress.task not in self._tasks:
            self._tasks[progress.task] = bar.add_task(
                printable(progress.task), total=progress.total, unit=progress.unit, note="", rate=""
            )
        task = self._tasks[progress.task]
        bar.update(
            task, completed=progress.done, total=progress.total, note=printable(progress.note), rate=_rate(bar, task)
        )

    def _log(self, progress: Progress) -> None:
        """Write a line every half minute where there is no screen to draw on."""
        now = time.monotonic()
        began, first, last, latest = self._logged.get(progress.task, (now, progress.done, now, 0))
        if progress.done < latest:  # the same piece of work has begun again
            began, first, last = now, progress.done, now
        due = progress.at_once or now - last >= SECONDS_BETWEEN_LINES
        self._logged[progress.task] = (began, first, now if due else last, progress.done)
        if not due:
            return
        speed = (progress.done - first) / (now - began) if now > began else 0.0
        done = f"{progress.done:,}/{progress.total:,} {progress.unit}"
        parts = (done, _in_words(speed), _left(progress.total - progress.done, speed))
        line = printable(f"{progress.task} {', '.join(filter(None, parts))} {progress.note}")
        print(line, file=sys.stderr, flush=True)

    def _start(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            transient=True,
            console=Console(stderr=True),
        )
        self._bar.start()
        return self._bar

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the screen; the next piece of work draws new ones."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tasks, self._logged = None, {}, {}


def _rate(bar: Bar, task: Any) -> str:
    return _in_words(bar.tasks[bar.task_ids.index(task)].speed)


def _left(pieces: int, rate: float) -> str:
    """Return how long the rest takes, in the unit that says most."""
    if not rate or pieces <= 0:
        return ""
    seconds = pieces / rate
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h left"


def _in_words(rate: float | None) -> str:
    """Return pieces of work per second, or seconds for each where that says more."""
    if not rate:
        return ""
    return f"{rate:,.0f}/s" if rate >= 1 else f"{1 / rate:,.0f} s each"
