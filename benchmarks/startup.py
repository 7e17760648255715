"""Measure how long `exmap --help` and importing the package take, in fresh processes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

COMMANDS = {
    "exmap --help": ["-m", "exmap.cli", "--help"],
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    rows = measure(arguments.repeats)
    print("\n".join([HEADER, *map(line, rows)]))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
