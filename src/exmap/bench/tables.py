"""Finished cells to tables: one row per data set and method, as CSV, Markdown and LaTeX.

Names come from data and settings and may hold anything: line breaks and other unprintable characters become spaces,
and what the format would read as its own is escaped. CSV holds fractions in full precision, the other two per cent.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from exmap.bench.paper import PAPER, PaperFigure
from exmap.errors import DataError
from exmap.evaluation import Difference

__all__ = [
    "Row",
    "Spread",
    "cells_to_csv",
    "summarise",
    "to_csv",
]


ROW_MEASURES = {  # columns of CSV and what a row calls them
    "worst_group": "worst",
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "ari": "ari",
    "minority_precision": "minority_precision",
    "minority_recall": "minority_recall",
    "seconds": "seconds",
}
ROW_COLUMNS = (
    *("dataset", "method", "label", "oracle", "seeds", "failed", "fit_with", "chosen_by"),
    *(column for name in ROW_MEASURES for column in (name, f"{name}_std")),
    *("n_clusters", "difference", "difference_low", "difference_high", "within_noise"),
    *("paper_worst_group", "paper_worst_group_std", "paper_mean", "paper_mean_std", "paper_source"),
)

CELL_RESULTS = ("worst_group_accuracy", "worst_group", "mean_accuracy", "weighted_mean_accuracy", "std", "repeats")
CELL_AGREEMENT = ("ari", "nmi", "minority_precision", "minority_recall")
CELL_LABELS = ("training", "groups", "fitting", "selection", "evaluation")
CELL_SECONDS = ("shared", "groups", "fit")
CELL_PLAIN = ("dataset", "method", "label", "seed", "status", "reason", *CELL_RESULTS)
CELL_COLUMNS = (
    *(*CELL_PLAIN, *CELL_AGREEMENT, "n_clusters"),
    *(f"labels_{name}" for name in CELL_LABELS),
    *(f"seconds_{name}" for name in CELL_SECONDS),
)


class Spread(NamedTuple):
    """Mean over the seeds that have a value, and their sample standard deviation: None where only one has."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """One method on one data set, over seeds.

    Attributes
    ----------
    dataset, method : str
    label : str or None
        What tables show in place of the method.
    seeds : tuple of int
        Those that finished.
    failed : mapping of int to str
        Why each of the others did not.
    worst, mean, weighted_mean : Spread or None
        Of the worst-group, mean and weighted mean test accuracy, in [0, 1]. None where no seed has a value, here and
        below.
    seconds : Spread or None
        For groups and fit together.
    ari, minority_precision, minority_recall : Spread or None
        Of the groups that were fitted on, against the true ones.
    gaps : mapping of str to Spread or None
        By the shortcuts that are uncommon; empty where there are not two.
    worst_by_seed, mean_by_seed : mapping of int to (float or None)
    n_clusters : mapping of int to tuple of int
        By seed, one number per fit of the clustering; empty for methods without clusters.
    fitting, selection : str
        The labels or groups that were fitted on and chosen by, "none" without any; empty where no seed finished.
    difference : Difference or None
        Worst-group accuracy minus that of the data set's reference.
    paper : PaperFigure or None
    """

    dataset: str
    method: str
    label: str | None
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    worst: Spread | None
    mean: Spread | None
    weighted_mean: Spread | None
    seconds: Spread | None
    ari: Spread | None
    minority_precision: Spread | None
    minority_recall: Spread | None
    gaps: Mapping[str, Spread | None]
    worst_by_seed: Mapping[int, float | None]
    mean_by_seed: Mapping[int, float | None]
    n_clusters: Mapping[int, tuple[int, ...]]
    fitting: str
    selection: str
    difference: Difference | None = None
    paper: PaperFigure | None = None

    @property
    def shown(self) -> str:
        """What tables call the method."""
        return self.label or self.method

    @property
    def oracle(self) -> bool:
        """Whether the method was given the true groups, which no method without ``oracle`` in its name is."""
        return "oracle" in self.method


def summarise(
    cells: Sequence[Mapping[str, Any]],
    comparisons: Mapping[tuple[str, str], Difference] | None = None,
    paper: Mapping[tuple[str, str], PaperFigure] = PAPER,
) -> list[Row]:
    """Bring the seeds of every data set and method together.

    Parameters
    ----------
    cells : sequence of mapping
        As a bench writes them; those that failed have a reason and no results.
    comparisons : mapping of (data set, method) to Difference, optional
    paper : mapping of (data set, method) to PaperFigure

    Returns
    -------
    list of Row
        In the order in which data sets and methods first appear.

    Raises
    ------
    DataError
        If a cell is given twice.
    """
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        seeds = found.setdefault((cell["dataset"], cell["method"]), {})
        if cell["seed"] in seeds:
            raise DataError(
                f"a table needs every cell once, got {cell['method']} on {cell['dataset']} with seed {cell['seed']} "
                "twice; leave one out"
            )
        seeds[cell["seed"]] = cell
    return [_row(key, seeds, (comparisons or {}).get(key), paper.get(key)) for key, seeds in found.items()]


def _row(
    key: tuple[str, str],
    seeds: Mapping[int, Mapping[str, Any]],
    difference: Difference | None,
    paper: PaperFigure | None,
) -> Row:
    done = {seed: cell for seed, cell in seeds.items() if cell["status"] == "done"}
    finished = done.values()
    return Row(
        *key,
        label=next((cell["label"] for cell in seeds.values() if cell.get("label")), None),
        seeds=tuple(done),
        failed={seed: cell.get("reason") or "" for seed, cell in seeds.items() if seed not in done},
        worst=_spread(cell.get("worst_group_accuracy") for cell in finished),
        mean=_spread(cell.get("mean_accuracy") for cell in finished),
        weighted_mean=_spread(cell.get("weighted_mean_accuracy") for cell in finished),
        seconds=_spread(_own_seconds(cell) for cell in finished),
        ari=_spread(_agreement(cell).get("ari") for cell in finished),
        minority_precision=_spread(_agreement(cell).get("minority_precision") for cell in finished),
        minority_recall=_spread(_agreement(cell).get("minority_recall") for cell in finished),
        gaps={name: _spread(_gaps(cell).get(name) for cell in finished) for name in _gap_names(finished)},
        worst_by_seed={seed: _number(cell.get("worst_group_accuracy")) for seed, cell in done.items()},
        mean_by_seed={seed: _number(cell.get("mean_accuracy")) for seed, cell in done.items()},
        n_clusters={seed: tuple(cell["n_clusters"]) for seed, cell in done.items() if cell.get("n_clusters")},
        fitting=_labels(finished, "fitting"),
        selection=_labels(finished, "selection"),
        difference=difference,
        paper=paper,
    )


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV: one line each, fractions in full precision, nothing where there is no value.

    Parameters
    ----------
    rows : sequence of Row

    Returns
    -------
    str
        With the columns ``dataset``, ``method``, ``label``, ``oracle``, ``seeds``, ``failed``, ``fit_with``,
        ``chosen_by``; ``worst_group``, ``mean``, ``weighted_mean``, ``ari``, ``minority_precision``,
        ``minority_recall`` and ``seconds``, each followed by its ``NAME_std`` over seeds; ``n_clusters`` (``2;2+3``:
        seeds by semicolons, fits by plus); ``difference``, ``difference_low``, ``difference_high``, ``within_noise``;
        ``paper_worst_group``, ``paper_worst_group_std``, ``paper_mean``, ``paper_mean_std``, ``paper_source``; and
        ``gap: NAME`` and ``gap: NAME_std`` per gap.
    """
    gaps = dict.fromkeys(name for row in rows for name in row.gaps)
    columns = [*ROW_COLUMNS, *(column for name in gaps for column in (f"gap: {name}", f"gap: {name}_std"))]
    return _csv(columns, map(_csv_row, rows))


def _csv_row(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "dataset": row.dataset,
        "method": row.method,
        "label": row.label,
        "oracle": row.oracle,
        "seeds": " ".join(map(str, row.seeds)),
        "failed": " ".join(map(str, row.failed)),
        "fit_with": row.fitting,
        "chosen_by": row.selection,
        "n_clusters": ";".join("+".join(map(str, fits)) for fits in row.n_clusters.values()),
    }
    measured = {name: getattr(row, attribute) for name, attribute in ROW_MEASURES.items()}
    for name, value in (measured | {f"gap: {name}": value for name, value in row.gaps.items()}).items():
        if value is not None:
            line |= {name: value.mean, f"{name}_std": value.std}
    if (found := row.difference) is not None:
        line |= {"difference": found.value, "difference_low": found.low, "difference_high": found.high}
        line["within_noise"] = found.within_noise
    if (paper := row.paper) is not None:
        line |= {"paper_worst_group": paper.worst, "paper_worst_group_std": paper.worst_std}
        line |= {"paper_mean": paper.mean, "paper_mean_std": paper.mean_std, "paper_source": paper.source}
    return line


def cells_to_csv(cells: Sequence[Mapping[str, Any]]) -> str:
    """Write cells as CSV: one line each, those that failed with their reason.

    Parameters
    ----------
    cells : sequence of mapping

    Returns
    -------
    str
        With the columns ``dataset``, ``method``, ``label``, ``seed``, ``status``, ``reason``,
        ``worst_group_accuracy``, ``worst_group``, ``mean_accuracy``, ``weighted_mean_accuracy``, ``std`` (over
        repeats), ``repeats``, ``ari``, ``nmi``, ``minority_precision``, ``minority_recall``, ``n_clusters``,
        ``labels_training``, ``labels_groups``, ``labels_fitting``, ``labels_selection``, ``labels_evaluation``,
        ``seconds_shared``, ``seconds_groups``, ``seconds_fit``, and per gap ``gap: NAME``.
    """
    return _csv([*CELL_COLUMNS, *(f"gap: {name}" for name in _gap_names(cells))], map(_csv_cell, cells))


def _csv_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    labels, seconds = cell.get("labels_used") or {}, cell.get("seconds") or {}
    return {
        **{name: cell.get(name) for name in CELL_PLAIN},
        **{name: _agreement(cell).get(name) for name in CELL_AGREEMENT},
        "n_clusters": "+".join(map(str, cell.get("n_clusters") or ())),
        **{f"labels_{name}": ", ".join(labels.get(name, ())) for name in CELL_LABELS},
        **{f"seconds_{name}": seconds.get(name) for name in CELL_SECONDS},
        **{f"gap: {name}": value for name, value in _gaps(cell).items()},
    }


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _spread(values: Iterable[Any]) -> Spread | None:
    numbers = [number for value in values if (number := _number(value)) is not None]
    if not numbers:
        return None
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


def _own_seconds(cell: Mapping[str, Any]) -> float | None:
    seconds = cell.get("seconds") or {}
    parts = [number for name in ("groups", "fit") if (number := _number(seconds.get(name))) is not None]
    return sum(parts) if parts else None


def _agreement(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    return cell.get("group_inference") or {}


def _gaps(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    return cell.get("gaps") or {}


def _gap_names(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in _gaps(cell)))


def _labels(cells: Iterable[Mapping[str, Any]], step: str) -> str:
    used = [(cell.get("labels_used") or {}).get(step, ()) for cell in cells]
    return (", ".join(dict.fromkeys(label for labels in used for label in labels)) or "none") if used else ""


def named_oracle(labels: str) -> str:
    return labels.replace("true groups", "true groups (oracle)")


def line(text: str) -> str:
    """Return the text on one line."""
    return "".join(character if character.isprintable() else " " for character in text)


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(line, columns))
    writer.writerows([_field(line.get(name)) for name in columns] for line in lines)
    return out.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return line(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
