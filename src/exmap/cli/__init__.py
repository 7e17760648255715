"""The command line: read settings, run the steps, print a short summary. The only place that prints.

Exit codes: 0 done; 1 a check that did not pass, a shortcut that was found, or cells of a bench that failed; 2 something
the user can act on, said in one sentence; 130 interrupted; 141 ended because nobody reads what is printed any more.
"""

from __future__ import annotations

import sys

# The order is that of the help.
# isort: off
from exmap.cli import audit, run, look, data, cache, bench  # noqa: F401
from exmap.cli.common import app, fail
from exmap.cli.system import PIPE_CLOSED, flush, make_ready, reader_is_gone, refusal, silence
from exmap.cli.usage import UsageError, usage
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line and turn every error a user can act on into one sentence and exit code 2."""
    from exmap.homes import use_some_home
    from exmap.interrupts import end_at_once

    undo = end_at_once()
    try:
        make_ready()
        use_some_home()
        sys.exit(_command())
    finally:
        undo()


def _command() -> int:
    """Do what was asked for, and return the exit code."""
    from exmap.errors import ExMapError

    try:
        try:
            code = app(standalone_mode=False, prog_name="exmap")  # a number where help or the like was asked for
        except SystemExit as left:
            if isinstance(left.__context__, BrokenPipeError):  # so libraries end where nobody reads
                silence()
                return PIPE_CLOSED
            code = left.code
        flush()
    except ExMapError as error:
        sentence = str(error)
    except UsageError as error:
        sentence = usage(error)
        if not sentence:  # no words at all: the help was printed
            return 0
    except MemoryError as error:
        sentence = f"memory is short ({error or 'the system gave none'}); take smaller batches, or end other programs"
    except RecursionError:
        sentence = "what was given is nested too deeply, as a path of a thousand folders is; give a shorter one"
    except UnicodeEncodeError as error:  # of libraries that take no other names of files
        sentence = f"the names of files and folders must be UTF-8 here, got {error.object!r:.300}; rename it"
    except OSError as error:
        if reader_is_gone():
            silence()
            return PIPE_CLOSED
        sentence = refusal(error)
    else:
        return code if isinstance(code, int) else 0
    fail(sentence, 2)
