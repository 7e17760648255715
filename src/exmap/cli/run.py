"""Commands that run the chain, one of its stages, or its report."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exmap.cli.common import (
    Address,
    DataDir,
    Devices,
    EngineName,
    Nodes,
    Override,
    RunDir,
    Trust,
    app,
    at_work,
    console_of,
    end_with_the_others,
    loading,
    tell,
    with_engine,
    with_processes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from exmap.records import Listener
    from exmap.results import AutoRecord, Results
    from exmap.settings import RuntimeSettings, Settings

    Say = Callable[[str], None]
    Show = Callable[[Console, AutoRecord, str], None]

__all__ = ["run"]

CONTINUED = "the same command continues from the last finished step or epoch"


@app.command(rich_help_panel="The chain, and its stages one by one")
def run(
    source: Annotated[str, typer.Argument(metavar="PRESET_OR_YAML", help="A preset's name or a YAML settings file.")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/PRESET-seedN.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the whole run.")] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=1,
            max=100,
            help="Repair, explain again and look for what is left, for at most this many rounds or until no shortcut "
            "is found. Groups are chosen without labels.",
        ),
    ] = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    engine: EngineName = None,
    address: Address = None,
    overrides: Override = None,
) -> None:
    """Run the whole chain: train, explain, cluster, retrain, evaluate, report. Resumes an interrupted run."""
    from exmap.settings import load_settings

    settings = load_settings(source, overrides or (), seed=seed, data__dir=data_dir)
    settings = with_engine(with_processes(settings, devices, num_nodes), engine, address)
    folder = out or Path("runs") / f"{settings.preset}-seed{settings.seed}"
    if rounds is not None:
        _in_rounds(folder, settings, rounds)
    else:
        _bring_up(folder, settings, until="report", change=False)


@app.command(rich_help_panel="The chain, and its stages one by one")
def train(
    run_dir: RunDir,
    data_dir: DataDir = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    overrides: Override = None,
) -> None:
    """Train a run's classifier."""
    _stage("train", run_dir, data_dir, overrides, devices, num_nodes)


@app.command(rich_help_panel="The chain, and its stages one by one")
def explain(
    run_dir: RunDir,
    data_dir: DataDir = None,
    devices: Devices = None,
    num_nodes: Nodes = None,
    engine: EngineName = None,
    address: Address = None,
    overrides: Override = None,
) -> None:
    """Compute a run's heatmaps, running earlier stages first if needed."""
    _stage("explain", run_dir, data_dir, overrides, devices, num_nodes, engine=engine, address=address)


@app.command(rich_help_panel="The chain, and its stages one by one")
def cluster(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Infer a run's groups, running earlier stages first if needed. Needs no images if heatmaps are finished."""
    _stage("cluster", run_dir, data_dir, overrides)


@app.command(rich_help_panel="The chain, and its stages one by one")
def retrain(
    run_dir: RunDir,
    data_dir: DataDir = None,
    edits: Annotated[
        Path | None,
        typer.Option("--edits", help="File with your edits of the groups; retrains on the edited groups as well."),
    ] = None,
    overrides: Override = None,
) -> None:
    """Retrain a run's classifier on the groups of each source, running earlier stages first if needed."""
    _stage("retrain", run_dir, data_dir, overrides, edits=edits)


@app.command(rich_help_panel="The chain, and its stages one by one")
def evaluate(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Measure a run by true groups, running earlier stages first if needed."""
    _stage("evaluate", run_dir, data_dir, overrides)


@app.command(rich_help_panel="The chain, and its stages one by one")
def auto(run_dir: RunDir, data_dir: DataDir = None, overrides: Override = None) -> None:
    """Choose a grouping without group labels, test for a shortcut, and repair it."""
    from exmap.cli.tables import show_choice

    _stage("report", run_dir, data_dir, [*(overrides or ()), "groups.auto=true"], show=show_choice)


@app.command(rich_help_panel="The chain, and its stages one by one")
def report(run_dir: RunDir, data_dir: DataDir = None, trust: Trust = False) -> None:
    """Regenerate the report of a finished run: report.html, one self-contained file."""
    from exmap.pipeline.looking import report_run
    from exmap.pipeline.runs import open_run
    from exmap.settings import change_settings

    run_folder, kept = open_run(run_dir)
    settings = change_settings(kept, (), data__dir=data_dir)
    _work(run_dir, lambda listen, say: report_run(run_folder, settings, trust=trust, listen=listen, say=say))


def _stage(
    name: str,
    run_dir: Path,
    data_dir: Path | None,
    overrides: list[str] | None,
    devices: int | None = None,
    num_nodes: int | None = None,
    engine: str | None = None,
    address: str | None = None,
    edits: Path | None = None,
    show: Show | None = None,
) -> None:
    from exmap.pipeline.runs import open_run, with_edits
    from exmap.settings import change_settings

    run_folder, kept = open_run(run_dir)
    settings = change_settings(kept, overrides or (), data__dir=data_dir)
    if edits is not None:
        settings = with_edits(run_folder, settings, edits)
    settings = with_engine(settings, engine, address)
    shared = with_processes(settings, devices, num_nodes)
    # A classifier belongs to the number of processes it was trained with; heatmaps do not.
    wanted = shared if name == "train" else settings
    look = name in ("train", "explain")
    _bring_up(run_dir, wanted, until=name, change=True, look=look, runtime=shared.runtime, show=show)


def _bring_up(
    folder: Path,
    settings: Settings,
    *,
    until: str,
    change: bool,
    look: bool = True,
    runtime: RuntimeSettings | None = None,
    show: Show | None = None,
) -> None:
    """Bring a run up to date as far as a stage; a process launched beside the first one assists."""

    def work(listen: Listener, say: Say) -> Results | None:
        from exmap.pipeline.runs import open_run, run_until

        run_folder, opened = open_run(folder, settings, change=change)
        return run_until(run_folder, opened, until=until, look=look, runtime=runtime, listen=listen, say=say)

    def assist() -> None:
        from exmap.pipeline.runs import assist_run

        assist_run(folder, settings, runtime=runtime)

    _work(folder, work, assist, show)


def _in_rounds(folder: Path, settings: Settings, rounds: int) -> None:
    """Repair a run's classifier round by round, and show what each found."""
    from exmap.cli.tables import rounds_table

    with loading():
        from exmap.pipeline.rounds import run_rounds
        from exmap.pipeline.store import sole_writer
    console = console_of()
    with sole_writer(folder), at_work(console, CONTINUED) as (bars, say):
        found = run_rounds(folder, settings, rounds, listen=bars, say=say)
    for line in found.first_lines:
        console.print(line, style="bold", highlight=False, markup=False)
    console.print(rounds_table(found))
    console.print(found.why, style="bold", highlight=False, markup=False)
    tell(f"Run folder: {folder}")
    tell(f"Rounds: {folder / found.file_name}")
    tell(f"Classifier after all rounds: {folder / found.rounds[-1].folder / 'repaired' / 'model.safetensors'}")


def _work(
    folder: Path,
    work: Callable[[Listener, Say], Results | None],
    assist: Callable[[], None] | None = None,
    show: Show | None = None,
) -> None:
    """Work on a run folder, with bars, and show what came out; a process launched beside the first one assists."""
    from exmap.runtime import launched, process_number

    with loading():
        import exmap.pipeline.runs  # noqa: F401
        from exmap.pipeline.store import sole_writer
    if launched():
        signal.signal(signal.SIGTERM, end_with_the_others)
    if process_number() > 0:
        try:
            return assist() if assist is not None else None
        except KeyboardInterrupt:
            sys.exit(130)  # the first process says so
    console = console_of()
    with sole_writer(folder), at_work(console, CONTINUED) as (bars, say):
        results = work(bars, say)
    _show(console, folder, results, show)


def _show(console: Console, folder: Path, results: Results | None, show: Show | None) -> None:
    """Print what came of a run, and where its files are."""
    from exmap.cli.tables import kept_repairs, mention_choice, summary

    if results is not None:
        for line in results.first_lines:
            console.print(line, style="bold", highlight=False, markup=False)
        if show is not None and results.auto is not None:
            show(console, results.auto, results.left_alone)
        console.print(summary(results))
        if show is None and results.auto is not None:
            mention_choice(console, results.auto, folder, results.left_alone)
        for said in kept_repairs(results):
            console.print(said, highlight=False, markup=False)
        for fit in results.clusters.get("exmap", ()):
            console.print(f"heatmaps, {fit.samples_of}: {fit.note}", style="dim", highlight=False, markup=False)
    tell(f"Run folder: {folder}")
    for name, what in (
        ("results.json", "Results"),
        ("report/report.html", "Report"),
        ("report/strategies.png", "Picture"),
    ):
        if (folder / name).exists() and results is not None:
            tell(f"{what}: {folder / name}")
