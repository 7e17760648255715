"""Measure how long `exmap --help` and importing the package take, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np

from table import print_table

COMMANDS = {
    "exmap --help": ["-m", "exmap", "--help"],
    "import exmap": ["-c", "import exmap"],
    "python alone": ["-c", ""],
}
HEADER = "| | s |\n|---|---|"


def measure(repeats: int = 7) -> list[dict[str, Any]]:
    """Return the median seconds on the clock of each command; one run before does not count."""
    return [{"command": name, "seconds": _median(arguments, repeats)} for name, arguments in COMMANDS.items()]


def _median(arguments: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    return f"| `{row['command']}` | {row['seconds']:.2f} |"


if __name__ == "__main__":
    print_table(__doc__, HEADER, line, measure, 7)
