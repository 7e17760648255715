"""Write the tables of results into the documents that show them, from the CSV files in docs/results.

Run it after a CSV file has changed. `--check` writes nothing and names the documents that are out of date.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
START, END = "<!-- table: {} -->", "<!-- /table -->"

Row = Mapping[str, str]

# Data set -> heading of its column, and the CSV file that holds its rows.
DATASETS = {
    "digits": ("digits", "digits/table.csv"),
    "cmnist": ("C-MNIST", "bench/table.csv"),
    "cmnist-paper": ("C-MNIST, the paper's network", "cmnist-paper/table.csv"),
    "dominoes": ("dominoes", "bench/table.csv"),
    "two-shortcuts": ("two shortcuts", "bench/table.csv"),
}
METHODS = {
    "erm": "ERM (the classifier as trained)",
    "class_balanced": "classes + DFR",
    "random+dfr": "random groups + DFR",
    "error_set+dfr": "error set + DFR",
    "george+dfr": "GEORGE + DFR",
    "exmap+dfr": "**ExMap + DFR**",
    "exmap[gap=relative]+dfr": "ExMap + DFR, relative eigengap",
    "auto+dfr": "**grouping chosen by `exmap auto`** + DFR",
    "exmap+subg": "ExMap + SUBG (whole network)",
    "oracle+dfr": "oracle + DFR (true groups)",
}
SUMMARY = ("erm", "class_balanced", "george+dfr", "exmap+dfr", "auto+dfr", "exmap+subg", "oracle+dfr")
ONE = tuple(method for method in METHODS if method != "exmap+subg")


def rows(dataset: str) -> dict[str, Row]:
    """Return the measured rows of a data set by what tables call the method."""
    with (RESULTS / DATASETS[dataset][1]).open(encoding="utf-8", newline="") as file:
        return {row.get("label") or row["method"]: row for row in csv.DictReader(file) if row["dataset"] == dataset}


def spread(row: Row | None, measure: str, *, scale: float = 100, digits: int = 1, std: str = "_std") -> str:
    """Return `mean ± standard deviation` of a measure; nothing where it has no value."""
    if row is None or not row.get(measure):
        return ""
    deviation = row.get(f"{measure}{std}")
    after = f" ± {scale * float(deviation):.{digits}f}" if deviation else ""
    return f"{scale * float(row[measure]):.{digits}f}{after}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def summary() -> str:
    """Return worst-group accuracies, methods by data sets."""
    found = {dataset: rows(dataset) for dataset in DATASETS}
    header = [f"{DATASETS[name][0]} ({_seeds(of['erm'])})" for name, of in found.items()]
    lines = [
        [METHODS[one], *(spread(of.get(one), "worst_group") or "not run" for of in found.values())] for one in SUMMARY
    ]
    return table(["worst-group test accuracy, %", *header], lines)


def one_set(dataset: str) -> str:
    """Return accuracies and the agreement of groups with the true ones on one data set."""
    header = ["method", "worst group", "mean", "weighted mean", "ARI", "minority precision / recall", "clusters"]
    found = rows(dataset)
    lines = [
        [
            METHODS[one],
            *(spread(found[one], name) for name in ("worst_group", "mean", "weighted_mean")),
            spread(found[one], "ari", scale=1, digits=3),
            _minority(found[one]),
            found[one]["n_clusters"].replace(";", "; "),
        ]
        for one in ONE
        if one in found
    ]
    return table(header, lines)


def beside_paper() -> str:
    """Return accuracies with the paper's network beside the paper's own."""
    found = rows("cmnist-paper")
    lines = [
        [
            METHODS[one],
            f"{spread(row, 'worst_group', std='_std_of_repeats')} / {spread(row, 'mean')}",
            " / ".join(filter(None, (spread(row, "paper_worst_group"), spread(row, "paper_mean")))),
            row["n_clusters"],
            row["repeats"],
        ]
        for one in ONE
        if (row := found.get(one))
    ]
    return table(["method", "here, worst group / mean", "the paper (its Table 4)", "clusters", "repeats"], lines)


def _minority(row: Row) -> str:
    both = (spread(row, f"minority_{name}", scale=1, digits=2) for name in ("precision", "recall"))
    return " / ".join(filter(None, both))


def _seeds(row: Row) -> str:
    count = len(row["seeds"].split())
    return "1 seed" if count == 1 else f"{count} seeds"


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "cmnist-paper": beside_paper,
    **{name: (lambda name=name: one_set(name)) for name in ("digits", "cmnist", "dominoes", "two-shortcuts")},
}
DOCUMENTS = {
    ROOT / "README.md": ("summary",),
    RESULTS / "README.md": ("summary",),
    RESULTS / "digits.md": ("digits",),
    RESULTS / "cmnist.md": ("cmnist", "cmnist-paper"),
    RESULTS / "shortcuts.md": ("dominoes", "two-shortcuts"),
}


def written(text: str, names: Sequence[str]) -> str:
    """Return a document's text with its tables as measured.

    Raises
    ------
    ValueError
        If the document lacks the markers of a table.
    """
    for name in names:
        before, start, rest = text.partition(START.format(name))
        _, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"the lines {START.format(name)} and {END} are missing")
        text = f"{before}{start}\n\n{TABLES[name]()}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a document is out of date")
    check = parser.parse_args().check
    stale = []
    for path, names in DOCUMENTS.items():
        now = path.read_text(encoding="utf-8")
        if (new := written(now, names)) != now:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale and check:
        sys.exit(f"out of date: {', '.join(map(str, stale))}; run python benchmarks/results_tables.py")


if __name__ == "__main__":
    main()
