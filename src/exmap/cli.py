"""The command line: read settings, run the stages, print a short summary. The only place that prints.

Exit codes: 0 done; 2 something the user can act on, said in one sentence; 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from exmap.config import Settings
    from exmap.records import Progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="exmap",
    help="Find the shortcuts an image classifier takes, without group labels, and fix it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="EXMAP_DATA_DIR", help="Folder of the data set's files."),
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of an earlier run.")]


SECONDS_BETWEEN_LINES = 30


class ProgressBars:
    """A listener that draws one bar per piece of work, with its rate; without a terminal it writes lines."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._tasks: dict[str, Any] = {}
        self._logged: dict[str, tuple[float, int, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the screen; bars are drawn anew there."""
        return {"_bar": None, "_tasks": {}, "_logged": {}}

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        if not sys.stderr.isatty():
            self._log(progress)
            return
        bar = self._bar or self._start()
        if progress.task not in self._tasks:
            self._tasks[progress.task] = bar.add_task(
                progress.task, total=progress.total, unit=progress.unit, note="", rate=""
            )
        task = self._tasks[progress.task]
        bar.update(task, completed=progress.done, total=progress.total, note=progress.note, rate=_rate(bar, task))

    def _log(self, progress: Progress) -> None:
        """Write a line every half minute where there is no screen to draw on."""
        now = time.monotonic()
        began, done, last = self._logged.setdefault(progress.task, (now, progress.done, now))
        if now - last < SECONDS_BETWEEN_LINES:
            return
        self._logged[progress.task] = (began, done, now)
        rate = (progress.done - done) / (now - began)
        print(
            f"{progress.task} {progress.done:,}/{progress.total:,} {progress.unit}, {rate:,.0f}/s {progress.note}",
            file=sys.stderr,
            flush=True,
        )

    def _start(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            transient=True,
            console=Console(stderr=True),
        )
        self._bar.start()
        return self._bar

    def close(self) -> None:
        """Take the bars off the screen; the next piece of work draws new ones."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tasks, self._logged = None, {}, {}


def _rate(bar: Bar, task: Any) -> str:
    speed = bar.tasks[bar.task_ids.index(task)].speed
    return f"{speed:,.0f}/s" if speed else ""


@app.command()
def run(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="A preset's name or a YAML settings file.")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; by default runs/PRESET-seedN.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")] = None,
    overrides: Override = None,
) -> None:
    """Run the whole chain: train, explain, cluster, retrain, evaluate. Continues an interrupted run."""
    from exmap.config import load_settings

    settings = load_settings(source, overrides or (), seed=seed, data__dir=data_dir)
    folder = out or Path("runs") / f"{settings.preset}-seed{settings.seed}"
    _go(folder, settings, until="report", change=False)


@app.command()
def train(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Train the classifier of a run."""
    _stage("train", run_dir, data_dir, overrides)


@app.command()
def explain(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Make the heatmaps of a run, after what they need."""
    _stage("explain", run_dir, data_dir, overrides)


@app.command()
def cluster(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Infer the groups of a run, after what they need."""
    _stage("cluster", run_dir, data_dir, overrides)


@app.command()
def retrain(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Retrain the last layer of a run's classifier on each source's groups, after what that needs."""
    _stage("retrain", run_dir, data_dir, overrides)


@app.command()
def evaluate(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Evaluate a run by true groups, after what that needs."""
    _stage("evaluate", run_dir, data_dir, overrides)


def _stage(name: str, run_dir: Path, data_dir: Path | None, overrides: list[str] | None) -> None:
    from exmap.config import change_settings
    from exmap.stages import open_run

    _, there = open_run(run_dir)
    settings = change_settings(there, overrides or (), data__dir=data_dir)
    _go(run_dir, settings, until=name, change=True)


def _go(folder: Path, settings: Settings, *, until: str, change: bool) -> None:
    import logging

    from rich.console import Console

    console = Console(soft_wrap=True)
    bars = ProgressBars()
    with console.status("loading"):
        import lightning_fabric  # noqa: F401  sets the level of its own logger, which is then changed below

        from exmap.stages import open_run, run_stages

    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)

    def say(line: str) -> None:
        bars.close()
        console.print(line, style="dim", highlight=False, markup=False)

    run_folder, settings = open_run(folder, settings, change=change)
    try:
        results = run_stages(run_folder, settings, until=until, listen=bars, say=say)
    except KeyboardInterrupt:
        bars.close()
        _fail("interrupted; the same command continues from the last finished stage or epoch", 130)
    finally:
        bars.close()
    if results is not None:
        console.print(_summary(results))
    console.print(f"Run folder: {folder}", highlight=False, markup=False)
    for name, what in (("results.json", "Results"), ("report/strategies.png", "Picture")):
        if (folder / name).exists() and results is not None:
            console.print(f"{what}: {folder / name}", highlight=False, markup=False)


def _summary(results: dict[str, Any]) -> Any:
    """Return the table ERM -> learners by source of groups."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{results['dataset']}, seed {results['seed']}: test accuracy", title_justify="left")
    table.add_column("method")
    for column in ("worst group", "mean"):
        table.add_column(column, justify="right")
    table.add_column("labels used for groups")
    order = {"erm": 0, "exmap+dfr": 1, "oracle+dfr": 9}
    for name, row in sorted(results["methods"].items(), key=lambda item: (order.get(item[0], 5), item[0])):
        spread = f" ± {row['std']:.1%}" if row["std"] is not None else ""
        used = ", ".join(row["labels_used"].get("groups", [])) or "none"
        cells = (name, f"{row['worst_group_accuracy']:.1%}{spread}", f"{row['mean_accuracy']:.1%}", used)
        table.add_row(*(Text(cell) for cell in cells), style="bold" if name in ("erm", "exmap+dfr") else "")
    return table


def main() -> None:
    """Run the command line and turn every error a user can act on into one sentence and exit code 2."""
    from exmap.errors import ExMapError

    try:
        app()
    except ExMapError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(
            f"the system refused a file: {error}; free space or permit writing, and give the same command again: "
            "finished stages and epochs are kept",
            2,
        )


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"exmap: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
