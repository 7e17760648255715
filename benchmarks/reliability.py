"""Does a confidence mean what it says? A table of how often choices were right, by the confidence they had.

Reads CSV files with the columns `confidence` and `regret` (points of worst-group accuracy lost, as a share), or the
groupings.csv of groupings.py, of which it takes each run's chosen grouping beside the best one that could be chosen:

    python benchmarks/reliability.py docs/results/auto/groupings.csv
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from scipy.stats import beta

NEAR = 0.02  # regret up to which a choice is right
EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the bins of confidence


def exact_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a rate (Clopper and Pearson, 1934).

    Examples
    --------
    >>> [round(end, 3) for end in exact_interval(0, 10)]
    [0.0, 0.308]
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    return low, float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0


def reliability(
    rows: Iterable[tuple[float, float]], *, near: float = NEAR, edges: Sequence[float] = EDGES
) -> tuple[list[dict[str, float]], float]:
    """Return how often choices were right, by their confidence, and the Brier score.

    Parameters
    ----------
    rows : iterable of (float, float)
        Confidence and regret of each choice.
    near : float
        Regret up to which a choice is right.
    edges : sequence of float
        Rising. A bin holds its lower end, the last one its upper end as well.

    Returns
    -------
    list of dict, float
        Of each bin that has choices: `low` and `high` (its ends), `count`, `confidence` (mean), `right` (share), and
        `right_low` and `right_high` (exact 95 % interval of it). Then the mean square of confidence less right (1 or
        0): 0 is best, and saying 50 % always gives 0.25.

    Raises
    ------
    ValueError
        If there are no rows, or one has no confidence between the first edge and the last.

    Examples
    --------
    >>> bins, brier = reliability([(0.9, 0.0), (0.9, 0.01), (0.9, 0.2)], edges=(0, 1))
    >>> bins[0]["count"], round(bins[0]["right"], 3), round(brier, 3)
    (3, 0.667, 0.277)
    """
    choices = [(confidence, regret <= near + 1e-9) for confidence, regret in rows]
    if not choices:
        raise ValueError("there are no rows")
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, right in choices:
        if not edges[0] <= confidence <= edges[-1]:
            raise ValueError(f"a confidence lies in [{edges[0]}, {edges[-1]}], got {confidence}")
        number = sum(confidence >= edge for edge in edges[1:-1])
        bins[number].append((confidence, right))
    table = []
    for number, each in sorted(bins.items()):
        count, correct = len(each), sum(right for _, right in each)
        low, high = exact_interval(correct, count)
        table.append(
            {
                "low": edges[number],
                "high": edges[number + 1],
                "count": count,
                "confidence": sum(confidence for confidence, _ in each) / count,
                "right": correct / count,
                "right_low": low,
                "right_high": high,
            }
        )
    return table, sum((confidence - right) ** 2 for confidence, right in choices) / len(choices)


def read_rows(path: Path) -> list[tuple[float, float]]:
    """Return confidence and regret of each choice in a CSV file; choices that were not made are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["confidence"]]
    if not rows or "regret" in rows[0]:
        return [(float(row["confidence"]), float(row["regret"])) for row in rows]
    runs: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["eligible"] == "True":
            runs[row["data"], row["seed"]].append(row)
    found = []
    for run in runs.values():
        best = max(float(row["worst_group_accuracy"]) for row in run)
        chosen = next(row for row in run if row["chosen"] == "True")
        found.append((float(chosen["confidence"]), best - float(chosen["worst_group_accuracy"])))
    return found


def shown(rows: Iterable[tuple[float, float]]) -> str:
    """Return the table as Markdown, and the Brier score."""
    table, brier = reliability(rows)
    lines = ["| confidence | choices | mean confidence | right | 95 % interval |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row['low']:.0%} to {row['high']:.0%} | {row['count']} | {row['confidence']:.0%} | {row['right']:.0%} | "
        f"{row['right_low']:.0%} to {row['right_high']:.0%} |"
        for row in table
    ]
    return "\n".join([*lines, "", f"Brier score {brier:.3f} ({sum(row['count'] for row in table):.0f} choices)."])


def main() -> None:
    """Print the table of the files that are named, all their choices together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="CSV files")
    print(shown(row for path in parser.parse_args().files for row in read_rows(path)))


if __name__ == "__main__":
    main()
