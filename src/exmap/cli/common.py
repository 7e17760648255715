"""What all commands share: the app, its options, and how work is shown, interrupted and ended."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from exmap.cli.progress import ProgressBars
from exmap.cli.usage import Commands
from exmap.interrupts import INTERRUPTED, raised
from exmap.plain_text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console
    from rich.text import Text

    from exmap.settings import Settings

__all__ = [
    "Address",
    "DataDir",
    "Devices",
    "EngineName",
    "Nodes",
    "Override",
    "RunDir",
    "Trust",
    "app",
    "at_work",
    "bars_at_work",
    "console_of",
    "end_with_the_others",
    "fail",
    "listed",
    "loading",
    "plain",
    "tell",
    "with_engine",
    "with_processes",
]

app = typer.Typer(
    name="exmap",
    cls=Commands,
    help="Find the shortcuts an image classifier takes, without group labels, and fix it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="EXMAP_DATA_DIR", help="Folder that holds the data set's files."),
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeat the option for more."),
]
Devices = Annotated[int | None, typer.Option("--devices", help="Processes per host, one per device.")]
Nodes = Annotated[int | None, typer.Option("--num-nodes", help="Number of hosts; start the processes with torchrun.")]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="local|ray",
        help="What computes heatmaps and features: this machine's own processes, or the workers of a Ray cluster.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="HOST:PORT of a running Ray cluster, or auto for the one that this machine belongs to; implies "
        "--engine ray. Default: a cluster on this machine only.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Execute code that the run names, such as a FILE.py. Use it for your own runs only."),
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of an earlier run.")]


def _version(wanted: bool) -> None:
    if wanted:
        from exmap import __version__

        print(f"exmap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find the shortcuts an image classifier takes, without group labels, and fix it."""


def listed(text: str) -> list[str]:
    """Return the items of a list separated by commas; those inside brackets stay."""
    return [item.strip() for item in re.split(r",(?![^\[]*\])(?![^{]*\})", text) if item.strip()]


def with_processes(settings: Settings, devices: int | None, num_nodes: int | None) -> Settings:
    """Return the settings with the processes that were asked for, or that torchrun has started."""
    from exmap.errors import SettingsError
    from exmap.runtime import launched_runtime
    from exmap.settings import change_settings

    asked = change_settings(settings, runtime__devices=devices, runtime__num_nodes=num_nodes)
    started = launched_runtime(asked.runtime)
    if (devices or num_nodes) and asked.runtime.processes != started.processes:
        raise SettingsError(
            f"--devices and --num-nodes ask for {asked.runtime.processes} processes, but torchrun has started "
            f"{started.processes}; leave them out"
        )
    return change_settings(settings, runtime__devices=started.devices, runtime__num_nodes=started.num_nodes)


def with_engine(settings: Settings, engine: str | None, address: str | None) -> Settings:
    """Return the settings with the engine that was asked for."""
    from exmap.settings import change_settings

    named = engine or (None if address is None else "ray")
    return change_settings(settings, runtime__engine=named, runtime__address=address)


def console_of() -> Console:
    """Return the console that results are printed on."""
    from rich.console import Console

    class Plain(Console):
        """A console on which names from somebody's data do nothing but stand there."""

        def render_str(self, text: str, **given: Any) -> Text:
            """Make a text of what is printed, or stands in a table."""
            return super().render_str(printable(text, keep="\n"), **given)

        def on_broken_pipe(self) -> None:
            """Leave it to whoever called the command."""
            raise BrokenPipeError

    return Plain(soft_wrap=True)


def plain(cells: Iterable[str]) -> list[Text]:
    """Return the cells of a table without anything that a terminal would obey."""
    from rich.text import Text

    return [Text(printable(cell)) for cell in cells]


def tell(line: str) -> None:
    """Print a line; what a terminal would obey is written out."""
    print(printable(line))


@contextmanager
def loading() -> Iterator[None]:
    """State that libraries are loading, and keep theirs from saying more."""
    import logging

    from rich.console import Console

    from exmap.runtime import process_number

    with Console(stderr=True, quiet=process_number() > 0).status("loading"):
        import lightning_fabric  # noqa: F401  sets the level of its own logger, which is then changed below

        yield
    for name in ("lightning_fabric", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def at_work(console: Console, continued: str) -> Iterator[tuple[ProgressBars, Callable[[str], None]]]:
    """Yield progress bars and a function that prints a line between them; on an interrupt, print how to continue."""
    with bars_at_work(continued) as bars:

        def say(line: str) -> None:
            bars.close()
            console.print(printable(line), style="dim", highlight=False, markup=False)

        yield bars, say


@contextmanager
def bars_at_work(continued: str = "rerun the same command") -> Iterator[ProgressBars]:
    """Yield progress bars; on an interrupt, print how to continue."""
    with ProgressBars() as bars, raised() as pressed:
        try:
            yield bars
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt) and not pressed():  # of which libraries may make other errors
                raise
            bars.close()
            fail(f"interrupted; {continued}", INTERRUPTED)


def end_with_the_others(*_: Any) -> NoReturn:
    """State why torchrun ends this process."""
    from exmap.errors import ProcessError

    raise ProcessError(
        "torchrun stopped this process because another process of the run ended; rerun the same command: finished "
        "steps and epochs are kept"
    )


def fail(sentence: str, code: int) -> NoReturn:
    """Print an error as one sentence, and exit with a code."""
    number = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    which = "" if number == "0" else f" (process {number})"
    with suppress(OSError):  # nobody may be reading
        print(f"exmap{which}: {printable(sentence)}", file=sys.stderr, flush=True)
    sys.exit(code)
