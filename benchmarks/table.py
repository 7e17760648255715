"""What the small benchmarks share: print the rows as a Markdown table, and write them as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def print_table(
    description: str | None, header: str, line: Callable[[Row], str], measure: Callable[[int], list[Row]], repeats: int
) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    rows = measure(arguments.repeats)
    print("\n".join([header, *map(line, rows)]))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
