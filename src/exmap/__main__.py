"""``python -m exmap``, and the installed command."""

from exmap.interrupts import end_at_once

__all__ = ["main"]


def main() -> None:
    """Run the command line; from the first moment on, Ctrl-C ends it in one sentence."""
    end_at_once()
    from exmap.cli import main as command

    command()


if __name__ == "__main__":
    main()
