"""Commands that show and empty the cache of decoded images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exmap.cli.common import app, console_of, plain, tell
from exmap.cli.usage import Commands

if TYPE_CHECKING:
    from exmap.data.cached import CachedSet

__all__ = ["cache"]

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

cache = typer.Typer(cls=Commands, help="Show and empty the cache of decoded images.", no_args_is_help=True)
app.add_typer(cache, name="cache", rich_help_panel="Models, data and settings")

Place = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the cache, if images.cache_dir names one of your own.")
]


@cache.command("list")
def cache_list(
    place: Place = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")
    ] = None,
) -> None:
    """List the sets in the cache, the last used first, with their total size and the limit."""
    from rich.table import Table

    from exmap.data.cache_folders import allowed
    from exmap.data.cached import cached_sets
    from exmap.pipeline.disk import write_json
    from exmap.settings import ImageSettings

    settings = ImageSettings(cache_dir=place)
    folder = settings.cache_folder
    sets = cached_sets(folder)
    limit, total = allowed(folder, settings.cache_limit_gib * 2**30), sum(one.size for one in sets)
    if sets:
        table = Table()
        for title in ("set", "source"):
            table.add_column(title, overflow="fold")
        for title in ("images", "size"):
            table.add_column(title, justify="right", no_wrap=True)
        for title in ("kept", "last use"):
            table.add_column(title, no_wrap=True)
        for one in sets:
            kept = "decoded images" if one.decoded else "checks"
            cells = (one.name or "unknown", one.source, f"{one.images:,}", _in_words(one.size), kept, _last_use(one))
            table.add_row(*plain(cells))
        console_of().print(table)
    tell(f"{folder}: {_number(sets)}, {_in_words(total)}; limit {_in_words(limit)} (images.cache_limit_gib)")
    if json_file is not None:
        rows = [_row(one) for one in sets]
        write_json(json_file, {"folder": str(folder), "bytes": total, "limit_bytes": int(limit), "sets": rows})
        tell(f"Result: {json_file}")


@cache.command("clear")
def cache_clear(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help="Names of sets. Default: all.")] = None,
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Only sets that were not used for so many days."),
    ] = 0,
    place: Place = None,
) -> None:
    """Delete sets from the cache; those that are in use stay. They are decoded again when a run needs them."""
    from exmap.data.cached import clear_cache
    from exmap.settings import ImageSettings

    folder = ImageSettings(cache_dir=place).cache_folder
    deleted, left = clear_cache(folder, names or (), older_than=older_than)
    for one in left:
        why = "in use" if one.in_use else "it cannot be deleted: it has just been used, or this user may not"
        tell(f"kept: {one.name or one.path} ({why})")
    tell(f"{folder}: {_number(deleted)} deleted, {_in_words(sum(one.size for one in deleted))} freed")


def _number(sets: list[CachedSet]) -> str:
    return f"{len(sets):,} set{'s' * (len(sets) != 1)}"


def _last_use(one: CachedSet) -> str:
    if one.in_use:
        return "in use"
    days = int(one.days_unused)
    return "today" if days < 1 else f"{days} day{'s' * (days > 1)} ago"


def _row(one: CachedSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "source": one.source,
        "images": one.images,
        "decoded": one.decoded,
        "bytes": one.size,
        "last_use": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.used)),
        "in_use": one.in_use,
        "folder": str(one.path),
    }


def _in_words(size: float) -> str:
    """Return a number of bytes as people read it."""
    power = 0
    while size >= 1024 and power < len(UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.{int(power > 0 and size < 100)}f} {UNITS[power]}"
