"""Run every benchmark, write JSON, and put the tables and the growth curve into a document.

The text between the two markers of the document is replaced. What ran, on what machine, stands above the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import clustering
import heatmaps
import processes
import retraining
import startup
import training

START, END = "<!-- measured -->", "<!-- /measured -->"
PARTS: dict[str, tuple[str, Any, Callable[[argparse.Namespace], list[dict[str, Any]]]]] = {
    "heatmaps": (
        "Heatmaps, beside the rule written slowly, an input gradient and a prediction",
        heatmaps,
        lambda _: heatmaps.measure(),
    ),
    "clustering": (
        "Spectral clustering of a planted mixture, 588 dimensions, beside scikit-learn's",
        clustering,
        lambda given: clustering.measure([*clustering.SIZES, *[clustering.MILLION] * given.million]),
    ),
    "retraining": ("Last-layer retraining, beside the plain loop", retraining, lambda _: retraining.measure()),
    "training": ("Training", training, lambda given: training.measure(given.repeats)),
    "processes": ("One process and two", processes, lambda _: processes.measure()),
    "startup": ("Start", startup, lambda given: startup.measure(given.repeats)),
}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    model = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        model = names[0] if names else model
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": devices,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def growth_figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw seconds over the number of samples, on logarithmic axes."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, label in (("seconds", "exmap"), ("exact_seconds", "all pairs"), ("sklearn_seconds", "scikit-learn")):
        known = [(row["samples"], row[key]) for row in rows if key in row]
        axes.loglog(*zip(*known, strict=True), marker="o", label=label)
    axes.set_xlabel("samples of 588 numbers")
    axes.set_ylabel("seconds")
    axes.set_title("Spectral clustering with the eigengap")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure


def document(found: dict[str, Any], figure: str) -> str:
    """Return the tables as Markdown."""
    where = found["machine"]
    chips = ", ".join(where["accelerators"]) or "no GPU"
    blocks = [
        f"Measured on {where['date']} by `make bench`: {where['processor']}, {where['cores']} cores, {chips}, "
        f"{where['threads']} torch threads, torch {where['torch']}, Python {where['python']}."
    ]
    for name, (title, module, _) in PARTS.items():
        if name in found:
            blocks.append("\n".join([f"### {title}\n", module.HEADER, *map(module.line, found[name])]))
        if name == "clustering" and name in found:
            blocks.append(f"![Seconds over the number of samples]({figure})")
    return "\n\n".join(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="of training and start")
    parser.add_argument(
        "--million", action="store_true", help="cluster 1,000,000 samples too: 2.4 GB of temporary disk"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-speed"), help="folder of the JSON file and the figure")
    parser.add_argument("--document", type=Path, help=f"Markdown file whose text between {START} and {END} is replaced")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        sys.exit(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "performance.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found["machine"] = machine()
    for name in given.parts or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = PARTS[name][2](given)
        path.write_text(json.dumps(found, indent=1) + "\n")  # at once: a later part may be interrupted
    picture = given.out / "growth.png"
    if "clustering" in found:
        growth_figure(found["clustering"]).savefig(picture, dpi=120)
    beside = given.document.parent if given.document else given.out
    text = document(found, os.path.relpath(picture, beside))
    print(text)
    if given.document is not None:
        before, _, rest = given.document.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        given.document.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
