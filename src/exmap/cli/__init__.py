"""The command line: read settings, run the steps, print a short summary. The only place that prints.

Exit codes: 0 done; 1 a check that did not pass, a shortcut that was found, or cells of a bench that failed; 2 something
the user can act on, said in one sentence; 130 interrupted.
"""

from __future__ import annotations

# The order is that of the help.
# isort: off
from exmap.cli import audit, run, look, data, bench  # noqa: F401
from exmap.cli.common import app, fail
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line and turn every error a user can act on into one sentence and exit code 2."""
    from exmap.errors import ExMapError

    try:
        app()
    except ExMapError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(
            f"the system refused a file: {error}; free space or permit writing, and give the same command again: "
            "finished steps and epochs are kept",
            2,
        )
