"""Summarise several runs of one preset (one per seed) as a Markdown table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    runs = [json.loads((folder / "results.json").read_text()) for folder in parser.parse_args().runs]
    seeds = [run["seed"] for run in runs]
    print(f"{runs[0]['preset']}, seeds {', '.join(map(str, seeds))}; test accuracy in %, mean ± std over seeds\n")
    header = ["method", *(f"seed {seed}" for seed in seeds), "worst group", "mean", "weighted mean"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name in runs[0]["methods"]:
        rows = [run["methods"][name] for run in runs]
        worst = [100 * row["worst_group_accuracy"] for row in rows]
        cells = [f"{value:.1f}" for value in worst] + [
            spread(worst),
            spread([100 * row["mean_accuracy"] for row in rows]),
            spread([100 * row["weighted_mean_accuracy"] for row in rows]),
        ]
        print("| " + " | ".join([name, *cells]) + " |")
    if shortcuts := list(runs[0]["methods"]["erm"].get("gaps", {})):
        print("\n| gap, uncommon: | " + " | ".join(shortcuts) + " |\n|" + "---|" * (len(shortcuts) + 1))
        for name in runs[0]["methods"]:
            gaps = [[100 * run["methods"][name]["gaps"][key] for run in runs] for key in shortcuts]
            print("| " + " | ".join([name, *map(spread, gaps)]) + " |")
    print("\n| groups | ARI within class | NMI within class | minority precision | minority recall | clusters |")
    print("|---|---|---|---|---|---|")
    for name in runs[0]["group_inference"]:
        rows = [run["group_inference"][name] for run in runs]
        cells = [
            spread([row[key] for row in rows], 3) for key in ("ari", "nmi", "minority_precision", "minority_recall")
        ]
        fits = [[fit["n_clusters"] for fit in run["clusters"].get(name, [])] for run in runs]
        print("| " + " | ".join([name, *cells, "; ".join("+".join(map(str, f)) for f in fits)]) + " |")
    print("\n| seed | " + " | ".join(runs[0]["seconds"]) + " | peak MiB |\n|" + "---|" * (len(runs[0]["seconds"]) + 2))
    for run in runs:
        cells = [f"{value:.0f} s" for value in run["seconds"].values()]
        print("| " + " | ".join([str(run["seed"]), *cells, f"{run['peak_memory_mib']:.0f}"]) + " |")


def spread(values: list[float], digits: int = 1) -> str:
    """Return mean ± sample standard deviation."""
    std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{std}"


if __name__ == "__main__":
    main()
