"""The command line: read settings, run the stages, print a short summary. The only place that prints.

Exit codes: 0 done; 1 a check that did not pass, or cells of a bench that failed; 2 something the user can act on, said
in one sentence; 130 interrupted.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress as Bar

    from exmap.bench.grid import Bench, Cell
    from exmap.bench.tables import Row
    from exmap.config import RuntimeSettings, Settings
    from exmap.data.check import DataCheck
    from exmap.records import Listener, Progress

    Show = Callable[[Console, dict[str, Any]], None]

__all__ = ["app", "main"]

app = typer.Typer(
    name="exmap",
    help="Find the shortcuts an image classifier takes, without group labels, and fix it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data = typer.Typer(help="Get, check and make data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="EXMAP_DATA_DIR", help="Folder of the data set's files."),
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times."),
]
Devices = Annotated[int | None, typer.Option("--devices", help="Processes on each host, one per device.")]
Nodes = Annotated[int | None, typer.Option("--num-nodes", help="Hosts; each starts its processes with torchrun.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of an earlier run.")]


SECONDS_BETWEEN_LINES = 30
FILES_SHOWN = 20  # of each kind of defect
CANDIDATES_SHOWN = 5  # the best, beside the worst


class ProgressBars:
    """A listener that draws one bar per piece of work, with its rate; without a terminal it writes lines."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._tasks: dict[str, Any] = {}
        self._logged: dict[str, tuple[float, int, float, int]] = {}

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
        began, first, last, latest = self._logged.get(progress.task, (now, progress.done, now, 0))
        if progress.done < latest:  # the same piece of work has begun again
            began, first, last = now, progress.done, now
        due = now - last >= SECONDS_BETWEEN_LINES
        self._logged[progress.task] = (began, first, now if due else last, progress.done)
        if not due:
            return
        rate = _in_words((progress.done - first) / (now - began))
        done = f"{progress.done:,}/{progress.total:,} {progress.unit}"
        print(f"{progress.task} {', '.join(filter(None, (done, rate)))} {progress.note}", file=sys.stderr, flush=True)

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


def _in_words(rate: float | None) -> str:
    """Return pieces of work per second, or seconds for each where that says more."""
    if not rate:
        return ""
    return f"{rate:,.0f}/s" if rate >= 1 else f"{1 / rate:,.0f} s each"


@app.command()
def run(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="A preset's name or a YAML settings file.")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; by default runs/PRESET-seedN.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")] = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    overrides: Override = None,
) -> None:
    """Run the whole chain: train, explain, cluster, retrain, evaluate. Continues an interrupted run."""
    from exmap.config import load_settings

    settings = load_settings(source, overrides or (), seed=seed, data__dir=data_dir)
    settings = _with_processes(settings, devices, num_nodes)
    folder = out or Path("runs") / f"{settings.preset}-seed{settings.seed}"
    _go(folder, settings, until="report", change=False)


@app.command()
def train(
    run_dir: RunDir,
    data_dir: DataDir = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    overrides: Override = None,
) -> None:
    """Train the classifier of a run."""
    _stage("train", run_dir, data_dir, overrides, devices, num_nodes)


@app.command()
def explain(
    run_dir: RunDir,
    data_dir: DataDir = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    overrides: Override = None,
) -> None:
    """Make the heatmaps of a run, after what they need."""
    _stage("explain", run_dir, data_dir, overrides, devices, num_nodes)


@app.command()
def cluster(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Infer the groups of a run, after what they need."""
    _stage("cluster", run_dir, data_dir, overrides)


@app.command()
def retrain(
    run_dir: RunDir,
    data_dir: DataDir = None,
    edits: Annotated[
        Path | None, typer.Option("--edits", help="A file of your edits of the groups: retrains on those, too.")
    ] = None,
    overrides: Override = None,
) -> None:
    """Retrain the last layer of a run's classifier on each source's groups, after what that needs."""
    _stage("retrain" if edits is None else "edit", run_dir, data_dir, overrides, edits=edits)


@app.command()
def evaluate(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Evaluate a run by true groups, after what that needs."""
    _stage("evaluate", run_dir, data_dir, overrides)


@app.command()
def auto(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Choose the groups of a run among many, say whether there is a shortcut at all, and repair it (docs/auto.md)."""
    _stage("report", run_dir, data_dir, [*(overrides or ()), "groups.auto=true"], show=_show_choice)


@app.command()
def figures(
    run_dir: RunDir,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; by default RUN_DIR/figures.")] = None,
    only: Annotated[
        str, typer.Option("--only", help="comparison, strategies, true-groups, embedding, mistakes; by default all.")
    ] = "",
) -> None:
    """Draw the paper's figures of a run as PNG and PDF. Those that cannot be drawn are left out, with a sentence."""
    with _loading():
        from exmap.draw import draw_figures
        from exmap.finished import open_finished
    with ProgressBars() as bars:
        finished = open_finished(run_dir, data_dir=data_dir, listen=bars)
        drawn = draw_figures(finished, out or run_dir / "figures", _listed(only), listen=bars)
    for each in drawn:
        if each.note:
            print(f"{each.name}: {each.note}" if each.paths else f"{each.name}: left out, {each.note}")
        for path in each.paths:
            print(f"Figure: {path}")


@app.command()
def export(
    run_dir: RunDir,
    to: Annotated[str, typer.Option("--to", help="virelay (a ViRelAy project) or parquet (a table with pictures).")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; by default RUN_DIR/export/FORMAT.")] = None,
) -> None:
    """Write the images, heatmaps and groups of a run for other tools to open (docs/export.md)."""
    with _loading():
        from exmap.export import check_target, export_run
        from exmap.finished import open_finished
    check_target(to)
    with ProgressBars() as bars:
        finished = open_finished(run_dir, data_dir=data_dir, listen=bars)
        path = export_run(finished, to, out or run_dir / "export" / to, listen=bars)
    if not finished.splits:
        print(f"Without thumbnails: {finished.no_images}")
    print(f"Export: {path}")


@app.command()
def report(run_dir: RunDir, data_dir: DataDir = None) -> None:
    """Make the page of a finished run anew: report.html, one file that opens from disk and can be mailed."""
    from exmap.config import change_settings
    from exmap.stages import open_run, report_run

    run_folder, there = open_run(run_dir)
    settings = change_settings(there, (), data__dir=data_dir)
    _work(run_dir, lambda listen, say: report_run(run_folder, settings, listen=listen, say=say))


@app.command("check-model")
def check_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, torchvision:NAME, timm:NAME, hf:FOLDER, PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION.",
        ),
    ],
    weights: Annotated[Path | None, typer.Option("--weights", help="A safetensors file.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="A .npy file of float images, (n, C, H, W); by default random.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of random images; by default the model's own, or 224.")
    ] = None,
    channels: Annotated[int | None, typer.Option("--channels", help="Of random images; by default 3.")] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Outputs of the model, where it is built here; by default 2.")
    ] = None,
    composite: Annotated[
        str, typer.Option("--composite", help="Rules; auto takes those of the model's kind.")
    ] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result there, too.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Check that a classifier is explained right: input + constants = logit. Exit code 1 if it is not."""
    with _loading():
        from exmap.model_source import check_named, check_record
        from exmap.store import write_json
    with ProgressBars() as bars:
        checked = check_named(
            model,
            weights=weights,
            images=images,
            size=size,
            channels=channels,
            classes=classes,
            composite=composite,
            data_dir=data_dir,
            listen=bars,
        )
    print(f"Model: {checked.model}")
    print(f"Images: {checked.images}")
    print(checked.found)
    if json_file is not None:
        write_json(json_file, check_record(checked))
        print(f"Result: {json_file}")
    sys.exit(0 if checked.found.passed else 1)


@data.command("list")
def data_list() -> None:
    """List the data sets, and where each comes from."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from exmap.data.catalog import CATALOG

    table = Table()
    for title in ("name", "what it is", "images", "from"):
        table.add_column(title)
    for name, found in sorted(CATALOG.items()):
        counts = "" if found.counts is None else f"{sum(map(sum, found.counts.values())):,}"
        origin = "download" if found.remotes or found.idx else "ask or make" if found.instead else "your files"
        table.add_row(*map(Text, (name, found.about, counts, "the package" if name == "digits" else origin)))
    Console().print(table)


@data.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="A data set's name.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="An archive, a folder of archives, or an unpacked folder.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what is public; continues what broke off.")
    ] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Where to put it; by default data/NAME.")] = None,
) -> None:
    """Unpack a data set from local archives, or download it first; then check it."""
    from exmap.data.prepare import prepare_data

    with ProgressBars() as bars:
        folder = prepare_data(name, to or Path("data") / name, source=source, fetch=download, listen=bars)
    code = _check(name, folder, None)
    print(f"Data: {folder}; run it with: exmap run {name} --data-dir {folder}")
    sys.exit(code)


@data.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A data set's name.")],
    path: Annotated[Path, typer.Argument(help="Its folder.")],
    table: Annotated[Path | None, typer.Option("--table", help="For your own images: the table, from PATH.")] = None,
    overrides: Override = None,
) -> None:
    """Count every group, open every image, and show what is missing, unreadable or extra. Exit code 1 for defects."""
    sys.exit(_check(name, path, table, overrides))


def _check(name: str, path: Path, table: Path | None, overrides: list[str] | None = None) -> int:
    from rich.console import Console

    from exmap.config import Settings, change_settings
    from exmap.data.check import check_data

    settings = change_settings(Settings(), overrides or (), data__name=name, data__dir=str(path))
    if table is not None:
        settings = change_settings(settings, data__table=str(table))
    with ProgressBars() as bars:
        found = check_data(settings.data, settings.images, listen=bars)
    Console(soft_wrap=True).print(_check_table(found, path))
    return 0 if found.whole else 1


def _check_table(found: DataCheck, path: Path) -> Any:
    """Return one table: a row per group, then a row per defective file."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{found.name} in {path}", title_justify="left")
    table.add_column("split")
    table.add_column("group or file", overflow="fold")  # a name that is cut short cannot be looked for
    for title in ("expected", "found"):
        table.add_column(title, justify="right")
    table.add_column("", overflow="fold")
    for row in found.groups:
        stated = row.found if row.expected is None else row.expected
        right = row.found == stated
        shown = "" if row.expected is None else f"{stated:,}"
        cells = (row.split, row.group, shown, f"{row.found:,}", "" if right else f"{row.found - stated:+,}")
        table.add_row(*map(Text, cells), style="" if right else "red")
    table.add_section()
    lists = (
        ("missing", [(name, "") for name in found.missing], "red"),
        ("unreadable", list(dict(found.unreadable).items()), "red"),
        ("extra", [(name, "not listed") for name in found.extra], "yellow"),
    )
    for kind, rows, style in lists:
        table.add_row(*map(Text, (kind, "files", "0", f"{len(rows):,}", "")), style=style if rows else "")
        for name, why in rows[:FILES_SHOWN]:
            table.add_row(*map(Text, ("", name, "", "", why)), style=style)
        if len(rows) > FILES_SHOWN:
            table.add_row("", f"and {len(rows) - FILES_SHOWN:,} more", "", "", "", style=style)
    return table


@data.command("compose")
def data_compose(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    foregrounds: Annotated[Path, typer.Option("--foregrounds", help="Cut-outs: a folder per class.")],
    backgrounds: Annotated[Path, typer.Option("--backgrounds", help="A folder per kind of background.")],
    layout: Annotated[str, typer.Option("--layout", help="waterbirds or urbancars.")] = "waterbirds",
    masks: Annotated[Path | None, typer.Option("--masks", help="Masks of cut-outs without transparency.")] = None,
    objects: Annotated[Path | None, typer.Option("--objects", help="Cut-outs of co-occurring objects.")] = None,
    object_masks: Annotated[Path | None, typer.Option("--object-masks", help="Their masks.")] = None,
    sizes: Annotated[
        tuple[int, int, int] | None, typer.Option("--sizes", help="Images for train, val and test.")
    ] = None,
    correlation: Annotated[
        tuple[float, float, float] | None, typer.Option("--correlation", help="Of each split; by default the layout's.")
    ] = None,
    side: Annotated[int, typer.Option("--side", help="Side in pixels (urbancars).")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same files.")] = 0,
) -> None:
    """Build a set like Waterbirds or UrbanCars from your own cut-outs and backgrounds."""
    from exmap.data.compose import Recipe, compose

    recipe = Recipe(
        layout=layout,
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        objects=objects,
        masks=masks,
        object_masks=object_masks,
        sizes=sizes,
        correlation=correlation,
        side=side,
    )
    with ProgressBars() as bars:
        made = compose(recipe, out, seed=seed, listen=bars)
    for split, counts in made.counts.items():
        print(f"{split}: " + "; ".join(f"{name} {count:,}" for name, count in counts.items()))
    print(f"Data: {out}; run it with: exmap run {layout} --data-dir {out}")


@app.command()
def bench(
    source: Annotated[
        str | None, typer.Argument(metavar="[GRID]", help="A grid that comes with exmap, or a YAML file.")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="The same as GRID.")] = None,
    datasets: Annotated[str, typer.Option("--datasets", help="Presets or YAML files, separated by commas.")] = "",
    methods: Annotated[
        str, typer.Option("--methods", help="For example erm,exmap+dfr,jtt@exmap (docs/bench.md).")
    ] = "",
    seeds: Annotated[int | None, typer.Option("--seeds", help="Number of seeds, counted from 0.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bench; continued if it is there.")] = Path("bench"),
    data_dir: Annotated[
        list[str] | None, typer.Option("--data-dir", metavar="[NAME=]DIR", help="Folder of the files, of one or all.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Processes; by default one per core.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="The method to compare with.")] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of every method.")] = False,
    overrides: Override = None,
) -> None:
    """Compare methods on data sets over seeds, and write the tables. Exit code 1 if cells failed."""
    from exmap.bench.grid import load_bench, plan
    from exmap.errors import SettingsError
    from exmap.runtime import launched

    if launched():
        raise SettingsError("exmap bench starts its own processes; give the command without torchrun, and --jobs")
    if source and preset:
        raise SettingsError(f"a bench takes one grid, got {source} and --preset {preset}; leave one out")
    if jobs is not None and jobs < 1:
        raise SettingsError(f"--jobs must be at least 1, got {jobs}")
    grid = load_bench(
        source or preset,
        datasets=_listed(datasets),
        methods=_listed(methods),
        seeds=seeds,
        reference=reference,
        settings=overrides or (),
    )
    cells = plan(grid, _data_dirs(data_dir or []))
    sys.exit(_bench(grid, cells, out, jobs, keep_models))


def _listed(text: str) -> list[str]:
    """Return the items of a list separated by commas; those inside brackets stay."""
    return [item.strip() for item in re.split(r",(?![^\[]*\])(?![^{]*\})", text) if item.strip()]


def _data_dirs(options: list[str]) -> dict[str, Path]:
    """Return the folders by name of the data set; an option without a name is for all."""
    given = [
        option.partition("=") if "=" in option and not Path(option).exists() else ("", "", option) for option in options
    ]
    if not options and (common := os.environ.get("EXMAP_DATA_DIR")):
        return {"": Path(common)}
    return {name: Path(folder) for name, _, folder in given}


def _bench(grid: Bench, cells: list[Cell], out: Path, jobs: int | None, keep_models: bool) -> int:
    with _loading():
        from exmap.bench.run import default_jobs, run_bench
        from exmap.store import sole_writer
    console = _console()
    with (
        sole_writer(out),
        _at_work(console, "the same command continues with the cells that are missing") as (bars, say),
    ):
        rows, found = run_bench(
            grid, cells, out, jobs=jobs or default_jobs(cells), keep_models=keep_models, listen=bars, say=say
        )
    for dataset in dict.fromkeys(row.dataset for row in rows):
        console.print(_bench_table(dataset, [row for row in rows if row.dataset == dataset]))
    failed = [cell for cell in found if cell["status"] != "done"]
    for cell in failed:
        console.print(
            f"failed: {cell['dataset']}, seed {cell['seed']}, {cell['method']}: {cell['reason']}", markup=False
        )
    print(f"Tables: {out / 'table.md'}, table.csv, table.tex; cells: {out / 'cells.csv'}")
    return 1 if failed else 0


def _bench_table(dataset: str, rows: list[Row]) -> Any:
    """Return one data set's table."""
    from rich.table import Table
    from rich.text import Text

    from exmap.bench.tables import against_text, spread_text

    table = Table(title=f"{dataset}: test accuracy, %", title_justify="left")
    table.add_column("method")
    for column in ("worst group", "mean", "against the reference", "seeds"):
        table.add_column(column, justify="right")
    for row in rows:
        accuracy = [spread_text(value) or "failed" for value in (row.worst, row.mean)]
        cells = (row.shown, *accuracy, against_text(row, None), str(len(row.seeds)))
        table.add_row(*map(Text, cells), style="green" if row.method == "exmap+dfr" else "")
    return table


def _stage(
    name: str,
    run_dir: Path,
    data_dir: Path | None,
    overrides: list[str] | None,
    devices: int | None = None,
    num_nodes: int | None = None,
    edits: Path | None = None,
    show: Show | None = None,
) -> None:
    from exmap.config import change_settings
    from exmap.stages import open_run, with_edits

    run_folder, there = open_run(run_dir)
    settings = change_settings(there, overrides or (), data__dir=data_dir)
    if edits is not None:
        settings = with_edits(run_folder, settings, edits)
    shared = _with_processes(settings, devices, num_nodes)
    # A classifier belongs to the number of processes it was trained with; heatmaps do not.
    _go(run_dir, shared if name == "train" else settings, until=name, change=True, runtime=shared.runtime, show=show)


def _with_processes(settings: Settings, devices: int | None, num_nodes: int | None) -> Settings:
    """Return the settings with the processes that were asked for, or that torchrun has started."""
    from exmap.config import change_settings
    from exmap.errors import SettingsError
    from exmap.runtime import launched_runtime

    asked = change_settings(settings, runtime__devices=devices, runtime__num_nodes=num_nodes)
    started = launched_runtime(asked.runtime)
    if (devices or num_nodes) and asked.runtime.processes != started.processes:
        raise SettingsError(
            f"--devices and --num-nodes ask for {asked.runtime.processes} processes, but torchrun has started "
            f"{started.processes}; leave them out"
        )
    return change_settings(settings, runtime__devices=started.devices, runtime__num_nodes=started.num_nodes)


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True)


@contextmanager
def _loading() -> Iterator[None]:
    """Say that libraries are loading, and keep theirs from saying more."""
    import logging

    from rich.console import Console

    from exmap.runtime import process_number

    with Console(stderr=True, quiet=process_number() > 0).status("loading"):
        import lightning_fabric  # noqa: F401  sets the level of its own logger, which is then changed below

        yield
    for name in ("lightning_fabric", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _at_work(console: Console, continued: str) -> Iterator[tuple[ProgressBars, Callable[[str], None]]]:
    """Give bars, and a way to say a line between them; say how work that is interrupted goes on."""
    with ProgressBars() as bars:

        def say(line: str) -> None:
            bars.close()
            console.print(line, style="dim", highlight=False, markup=False)

        try:
            yield bars, say
        except KeyboardInterrupt:
            bars.close()
            _fail(f"interrupted; {continued}", 130)


def _go(
    folder: Path,
    settings: Settings,
    *,
    until: str,
    change: bool,
    runtime: RuntimeSettings | None = None,
    show: Show | None = None,
) -> None:
    def work(listen: Listener, say: Callable[[str], None]) -> dict[str, Any] | None:
        from exmap.stages import open_run, run_stages

        run_folder, opened = open_run(folder, settings, change=change)
        return run_stages(run_folder, opened, until=until, runtime=runtime, listen=listen, say=say)

    def assist() -> None:
        from exmap.stages import assist_run

        assist_run(folder, settings, runtime=runtime)

    _work(folder, work, assist, show)


def _work(
    folder: Path,
    work: Callable[[Listener, Callable[[str], None]], dict[str, Any] | None],
    assist: Callable[[], None] | None = None,
    show: Show | None = None,
) -> None:
    """Work on a run folder, with bars, and show what came out; a process launched beside the first one assists."""
    from exmap.runtime import launched, process_number

    with _loading():
        import exmap.stages  # noqa: F401
        from exmap.store import sole_writer
    if launched():
        signal.signal(signal.SIGTERM, _end_with_the_others)
    if process_number() > 0:
        try:
            return assist() if assist is not None else None
        except KeyboardInterrupt:
            sys.exit(130)  # the first process says so
    console = _console()
    continued = "the same command continues from the last finished stage or epoch"
    with sole_writer(folder), _at_work(console, continued) as (bars, say):
        results = work(bars, say)
    if results is not None:
        if show is not None:
            show(console, results["auto"])
        console.print(_summary(results))
        if show is None and "auto" in results:
            _mention_choice(console, results["auto"], folder)
        for fit in results["clusters"].get("exmap", ()):
            console.print(f"heatmaps, {fit['samples_of']}: {fit['note']}", style="dim", highlight=False, markup=False)
    console.print(f"Run folder: {folder}", highlight=False, markup=False)
    for name, what in (
        ("results.json", "Results"),
        ("report/report.html", "Report"),
        ("report/strategies.png", "Picture"),
    ):
        if (folder / name).exists() and results is not None:
            console.print(f"{what}: {folder / name}", highlight=False, markup=False)


def _end_with_the_others(*_: Any) -> NoReturn:
    """Say why torchrun ends this process."""
    from exmap.errors import ProcessError

    raise ProcessError(
        "this process was told to end, as torchrun does when another process of the run has ended; give the same "
        "command again: finished stages and epochs are kept"
    )


def _summary(results: dict[str, Any]) -> Any:
    """Return the table ERM -> learners by source of groups."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{results['dataset']}, seed {results['seed']}: test accuracy", title_justify="left")
    table.add_column("method")
    for column in ("worst group", "mean"):
        table.add_column(column, justify="right")
    table.add_column("labels used for groups")
    order = {"erm": 0, "exmap+dfr": 1, "exmap-edited+dfr": 2, "oracle+dfr": 9}
    for name, row in sorted(results["methods"].items(), key=lambda item: (order.get(item[0], 5), item[0])):
        spread = f" ± {row['std']:.1%}" if row["std"] is not None else ""
        used = ", ".join(row["labels_used"].get("groups", [])) or "none"
        cells = (name, f"{row['worst_group_accuracy']:.1%}{spread}", f"{row['mean_accuracy']:.1%}", used)
        table.add_row(*(Text(cell) for cell in cells), style="bold" if order.get(name, 9) < 9 else "")
    return table


def _mention_choice(console: Console, record: dict[str, Any], folder: Path) -> None:
    """Print what was chosen without group labels in a few lines."""
    from exmap.auto import words

    lines = [words.verdict(record)]
    if record["chosen"] is not None:
        lines.append(f"Chosen grouping: {record['chosen']}, confidence {record['confidence']:.0%}.")
        lines += [words.last_layer(record), f"All that was weighed: exmap auto {folder}"]
    console.print("\n".join(lines), highlight=False, markup=False)


def _show_choice(console: Console, record: dict[str, Any]) -> None:
    """Print all that a choice of groups says, the verdict first."""
    from exmap.auto import words

    def say(line: str, style: str = "") -> None:
        if line:
            console.print(line, style=style, highlight=False, markup=False)

    say(words.verdict(record), "bold")
    console.print(_findings(record["shortcut"]))
    if record["chosen"] is None:
        return
    say(f"Chosen grouping: {record['chosen']}", "bold")
    say(f"{record['why']} {words.confidence(record)}")
    console.print(_candidates(record))
    say(words.last_layer(record))
    if record["data_curve"]:
        console.print(_data_curve(record))
    say(words.more_images(record))
    for remark in words.remarks(record):
        say(remark)


def _findings(shortcut: dict[str, dict[str, Any]]) -> Any:
    """Return what the test says of each class."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Is there a shortcut?", title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("shortcut")
    for column in ("p", "more errors"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, row in shortcut.items():
        found = {True: "found", False: "not found", None: "not tested"}[row["found"]]
        measured = row["effect"] is not None
        p_value = ("< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}") if measured else ""
        cells = (name, found, p_value, f"{100 * row['effect']:+.0f} points" if measured else "", row["why"])
        table.add_row(*map(Text, cells), style="bold" if row["found"] else "")
    return table


def _candidates(record: dict[str, Any]) -> Any:
    """Return the best groupings and the worst one, with their scores."""
    from rich.table import Table
    from rich.text import Text

    rows = record["candidates"]
    marks = {record["chosen"]: "chosen", record["runner_up"]: "runner-up"}
    table = Table(
        title=f"Groupings by score, {len(rows)} in all (0 is best); likeness to the chosen one", title_justify="left"
    )
    table.add_column("grouping", overflow="fold")
    for column in ("score", "groups", "likeness"):
        table.add_column(column, justify="right")
    table.add_column("")

    def add(row: dict[str, Any]) -> None:
        mark = marks.get(row["name"], "") if row["eligible"] else "may not be chosen"
        cells = (row["name"], f"{row['score']:.2f}", str(row["groups"]), f"{row['like_chosen']:.2f}", mark)
        table.add_row(*map(Text, cells), style="bold" if mark == "chosen" else "")

    for row in rows[:CANDIDATES_SHOWN]:
        add(row)
    if len(rows) > CANDIDATES_SHOWN:
        table.add_section()
        add(min(rows[CANDIDATES_SHOWN:], key=lambda row: row["score"]))
    table.add_section()
    table.add_row("the classifier as it is", f"{-record['reliance']['classifier']:.2f}")
    return table


def _data_curve(record: dict[str, Any]) -> Any:
    """Return how the repair depends on the number of images."""
    from rich.table import Table

    table = Table(title="What so many images give", title_justify="left")
    for column in ("images", "in the smallest group", "worst chosen group is right"):
        table.add_column(column, justify="right")
    for point in record["data_curve"]:
        right = f"{point['worst_group_accuracy']:.1%} ± {point['spread']:.1%}"
        table.add_row(f"{point['images']:,}", f"{point['smallest_group']:,.0f}", right)
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
    number = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    which = "" if number == "0" else f" (process {number})"
    print(f"exmap{which}: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
