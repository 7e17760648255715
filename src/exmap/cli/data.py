"""Commands that get, check and make data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exmap.cli.common import Override, app, bars_at_work, console_of, plain, tell
from exmap.cli.usage import Commands

if TYPE_CHECKING:
    from exmap.data.check import DataCheck

__all__ = ["data"]

FILES_SHOWN = 20  # of each kind of defect

data = typer.Typer(cls=Commands, help="Get, check and make data sets.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel="Models, data and settings")


@data.command("list")
def data_list() -> None:
    """List the data sets and where each one comes from."""
    from rich.table import Table

    from exmap.data.catalog import entries

    table = Table()
    for title in ("name", "what it is", "images", "from"):
        table.add_column(title)
    for name, found in entries():
        counts = "" if found.counts is None else f"{sum(map(sum, found.counts.values())):,}"
        table.add_row(*plain((name, found.about, counts, found.origin)))
    console_of().print(table)


@data.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="A data set's name.")],
    source: Annotated[
        Path | None, typer.Option("--source", help="An archive, a folder of archives, or an unpacked folder.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download what is public; resumes an interrupted download.")
    ] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Output folder. Default: data/NAME.")] = None,
) -> None:
    """Unpack a data set from local archives or a download, then check it."""
    from exmap.data.prepare import prepare_data

    with bars_at_work("rerun the same command to continue") as bars:
        folder = prepare_data(name, to or Path("data") / name, source=source, fetch=download, listen=bars)
    code = _check(name, folder, None)
    tell(f"Data: {folder}; run it with: exmap run {name} --data-dir {folder}")
    sys.exit(code)


@data.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A data set's name.")],
    path: Annotated[Path, typer.Argument(help="Its folder.")],
    table: Annotated[
        Path | None, typer.Option("--table", help="For your own images: the table, relative to PATH.")
    ] = None,
    overrides: Override = None,
) -> None:
    """Count every group, open every image, and show what is missing, unreadable or extra. Exit code 1 for defects."""
    sys.exit(_check(name, path, table, overrides))


def _check(name: str, path: Path, table: Path | None, overrides: list[str] | None = None) -> int:
    from exmap.data.check import check_data
    from exmap.settings import Settings, change_settings

    settings = change_settings(Settings(), overrides or (), data__name=name, data__dir=str(path))
    if table is not None:
        settings = change_settings(settings, data__table=str(table))
    with bars_at_work() as bars:
        found = check_data(settings.data, settings.images, listen=bars)
    console_of().print(_check_table(found, path))
    return 0 if found.whole else 1


def _check_table(found: DataCheck, path: Path) -> Any:
    """Return one table: a row per group, then a row per defective file."""
    from rich.table import Table

    table = Table(title=plain([f"{found.name} in {path}"])[0], title_justify="left")
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
        table.add_row(*plain(cells), style="" if right else "red")
    table.add_section()
    lists = (
        ("missing", [(name, "") for name in found.missing], "red"),
        ("unreadable", list(dict(found.unreadable).items()), "red"),
        ("extra", [(name, "not listed") for name in found.extra], "yellow"),
    )
    for kind, rows, style in lists:
        table.add_row(*plain((kind, "files", "0", f"{len(rows):,}", "")), style=style if rows else "")
        for name, why in rows[:FILES_SHOWN]:
            table.add_row(*plain(("", name, "", "", why)), style=style)
        if len(rows) > FILES_SHOWN:
            table.add_row("", f"and {len(rows) - FILES_SHOWN:,} more", "", "", "", style=style)
    return table


@data.command("compose")
def data_compose(
    out: Annotated[Path, typer.Argument(help="Output folder.")],
    foregrounds: Annotated[Path, typer.Option("--foregrounds", help="Cut-outs: a folder per class.")],
    backgrounds: Annotated[Path, typer.Option("--backgrounds", help="A folder per kind of background.")],
    layout: Annotated[str, typer.Option("--layout", help="waterbirds or urbancars.")] = "waterbirds",
    masks: Annotated[Path | None, typer.Option("--masks", help="Masks of cut-outs without transparency.")] = None,
    objects: Annotated[Path | None, typer.Option("--objects", help="Cut-outs of co-occurring objects.")] = None,
    object_masks: Annotated[Path | None, typer.Option("--object-masks", help="Masks of the objects.")] = None,
    sizes: Annotated[
        tuple[int, int, int] | None, typer.Option("--sizes", help="Images for train, val and test.")
    ] = None,
    correlation: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--correlation", help="Correlation in each split. Default: that of the layout."),
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
    with bars_at_work() as bars:
        made = compose(recipe, out, seed=seed, listen=bars)
    for split, counts in made.counts.items():
        tell(f"{split}: " + "; ".join(f"{name} {count:,}" for name, count in counts.items()))
    tell(f"Data: {out}; run it with: exmap run {layout} --data-dir {out}")
