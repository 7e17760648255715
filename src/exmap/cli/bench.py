"""The command that compares methods over data sets and seeds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exmap.cli.common import Override, app, at_work, console_of, listed, loading, plain, tell

if TYPE_CHECKING:
    from exmap.bench.grid import Bench, Cell
    from exmap.bench.tables import Row

__all__ = ["bench"]


@app.command(rich_help_panel="Compare")
def bench(
    source: Annotated[str | None, typer.Argument(metavar="[GRID]", help="A built-in grid or a YAML file.")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="The same as GRID.")] = None,
    datasets: Annotated[str, typer.Option("--datasets", help="Presets or YAML files, separated by commas.")] = "",
    methods: Annotated[
        str,
        typer.Option("--methods", help="Methods, separated by commas, such as erm,exmap+dfr (docs/bench.md)."),
    ] = "",
    seeds: Annotated[int | None, typer.Option("--seeds", help="Number of seeds, counted from 0.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder; an unfinished bench in it is continued.")] = Path(
        "bench"
    ),
    data_dir: Annotated[
        list[str] | None,
        typer.Option(
            "--data-dir", metavar="[NAME=]DIR", help="Folder of the data files, for one data set or all of them."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Worker processes. Default: one per core, at most 4.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The method that others are compared with.")
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of every method.")] = False,
    overrides: Override = None,
) -> None:
    """Compare methods over data sets and seeds, and write tables. Exit code 1 if a cell failed."""
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
        datasets=listed(datasets),
        methods=listed(methods),
        seeds=seeds,
        reference=reference,
        settings=overrides or (),
    )
    cells = plan(grid, _data_dirs(data_dir or []))
    sys.exit(_bench(grid, cells, out, jobs, keep_models))


def _data_dirs(options: list[str]) -> dict[str, Path]:
    """Return the folders by name of the data set; an option without a name is for all."""
    given = [
        option.partition("=") if "=" in option and not Path(option).exists() else ("", "", option) for option in options
    ]
    if not options and (common := os.environ.get("EXMAP_DATA_DIR")):
        return {"": Path(common)}
    return {name: Path(folder) for name, _, folder in given}


def _bench(grid: Bench, cells: list[Cell], out: Path, jobs: int | None, keep_models: bool) -> int:
    with loading():
        from exmap.bench.run import default_jobs, run_bench
        from exmap.pipeline.store import sole_writer
    console = console_of()
    with (
        sole_writer(out),
        at_work(console, "rerun the same command to compute the missing cells") as (bars, say),
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
    tell(f"Tables: {out / 'table.md'}, table.csv, table.tex; cells: {out / 'cells.csv'}")
    return 1 if failed else 0


def _bench_table(dataset: str, rows: list[Row]) -> Any:
    """Return one data set's table."""
    from rich.table import Table

    from exmap.bench.typeset import against_text, spread_text

    table = Table(title=plain([f"{dataset}: test accuracy, %"])[0], title_justify="left")
    table.add_column("method")
    for column in ("worst group", "mean", "against the reference", "seeds"):
        table.add_column(column, justify="right")
    for row in rows:
        accuracy = [spread_text(value) or "failed" for value in (row.worst, row.mean)]
        cells = (row.shown, *accuracy, against_text(row, None), str(len(row.seeds)))
        table.add_row(*plain(cells), style="green" if row.method == "exmap+dfr" else "")
    return table
