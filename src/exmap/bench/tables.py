"""Finished cells to tables: one row per data set and method, as CSV, Markdown and LaTeX.

Names come from data and settings and may hold anything: line breaks and other unprintable characters become spaces,
and what the format would read as its own is escaped. CSV holds fractions in full precision, the other two per cent.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from exmap.bench.paper import PAPER, PaperFigure
from exmap.errors import DataError
from exmap.evaluation import Difference

__all__ = [
    "Row",
    "Spread",
    "against_text",
    "cells_to_csv",
    "spread_text",
    "summarise",
    "to_csv",
    "to_latex",
    "to_markdown",
]

LEGEND = (
    "Test accuracy in %: the lowest of all groups, the plain mean over test images, and the mean of the groups "
    "weighted by their training frequency; ± is the sample standard deviation over training seeds (none with one "
    "seed). *Fit with* and *chosen by* are the labels or groups that the fit and the choice of its epoch or strength "
    "used; methods in italics were given the true groups (oracle). *vs reference* is the difference in worst-group "
    "accuracy over the seeds that both methods finished, in points, with its bootstrap interval over test images and "
    "seeds; ≈ marks a difference within noise: its interval holds 0. ARI is computed inside each class against the "
    "true groups; precision and recall are those of each class's smallest group. Seconds are what finding the groups "
    "and fitting took, without the classifier and heatmaps that methods share; *seeds* are those that finished. "
    "*paper* is what Chakraborty et al. (CVPR 2024) print, worst group / mean, of classifiers that were selected with "
    "true group frequencies."
)

SIDE_BY_SIDE = (
    "Test accuracy in %, worst group / mean, of the methods that several data sets share; ≈: the worst group's is "
    "within noise of that of the reference"
)

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

LATEX_TABULARS = (  # one above the other: all columns in one would not fit a page
    ("worst group", "mean", "weighted mean", "paper", "vs reference", "seeds"),
    ("fit with", "chosen by", "groups' ARI", "minority precision / recall", "seconds"),
)

MARKDOWN_SPECIAL = re.compile(r"[\\`*|<>~#$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)")

LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},  # after a line's end they would be its options
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
}


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


def to_markdown(rows: Sequence[Row], *, reference: Mapping[str, str]) -> str:
    """Write rows as Markdown: what the columns mean, methods on all data sets side by side, then a table per data set.

    Parameters
    ----------
    rows : sequence of Row
    reference : mapping of str to str
        By data set, the method that the others are compared with.

    Returns
    -------
    str
        Below each table stand its gaps, if there are several shortcuts, and the cells that failed with their reasons.
    """
    blocks = [LEGEND]
    if shared := _shared(rows):
        blocks += ["## Side by side", f"{_markdown(_side_by_side(reference))}.", _markdown_table(*_overview(shared))]
    for dataset, own in _by_dataset(rows).items():
        blocks += [f"## {_markdown(dataset)}", _markdown_table(own, _columns(own, reference.get(dataset)))]
        if gaps := _gap_columns(own):
            blocks += ["Gaps: accuracy where exactly these shortcuts are uncommon, minus the weighted mean, in points."]
            blocks += [_markdown_table(own, gaps)]
        if failures := _failures(own):
            blocks += ["Failed:", "\n".join(f"- {_markdown(failure)}" for failure in failures)]
    return "\n\n".join(blocks) + "\n"


def _markdown_table(rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> str:
    header = ["method", *map(_markdown, columns)]
    methods = [f"*{_markdown(row.shown)}*" if row.oracle else _markdown(row.shown) for row in rows]
    body = zip(methods, *(map(_markdown, column) for column in columns.values()), strict=True)
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_latex(rows: Sequence[Row], *, reference: Mapping[str, str]) -> str:
    r"""Write rows as LaTeX, for ``\usepackage{booktabs}``: a table of all data sets side by side, then one for each.

    Parameters
    ----------
    rows : sequence of Row
    reference : mapping of str to str
        By data set, the method that the others are compared with.

    Returns
    -------
    str
        Letters outside ASCII stay as they are; pdfLaTeX knows fewer of them than LuaLaTeX.
    """
    tables = []
    if shared := _shared(rows):
        tables.append(_latex_environment(_latex(_side_by_side(reference)), [_latex_table(*_overview(shared))]))
    for dataset, own in _by_dataset(rows).items():
        columns = _columns(own, reference.get(dataset))
        blocks = [{name: columns[name] for name in names if name in columns} for names in LATEX_TABULARS]
        blocks += [gaps] if (gaps := _gap_columns(own)) else []
        parts = [_latex_table(own, block) for block in blocks]
        parts += [f"Failed: {_latex(failure)}" for failure in _failures(own)]
        caption = (
            f"{_latex(dataset)}: test accuracy in \\%, mean $\\pm$ standard deviation over seeds; $\\approx$: within "
            "noise; methods in italics were given the true groups"
        )
        tables.append(_latex_environment(caption, parts))
    return "\n".join(tables)


def _latex_environment(caption: str, parts: Sequence[str]) -> str:
    return (
        "\\begin{table}\n\\centering\\footnotesize\n\\setlength{\\tabcolsep}{4pt}\n"
        f"\\caption{{{caption}.}}\n" + "\n\n\\medskip\n".join(parts) + "\n\\end{table}\n"
    )


def _latex_table(rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> str:
    methods = [f"\\textit{{{_latex(row.shown)}}}" if row.oracle else _latex(row.shown) for row in rows]
    body = zip(methods, *(map(_latex, column) for column in columns.values()), strict=True)
    header, *lines = (" & ".join(line) + " \\\\\n" for line in [("method", *map(_latex, columns)), *body])
    kinds = "l" * (1 + len(columns))
    return (
        f"\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{header}\\midrule\n{''.join(lines)}\\bottomrule\n\\end{{tabular}}"
    )


def _shared(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """Return the methods that several data sets share, by the name they are shown with: their row by data set."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    unclear = set()
    for row in rows:
        if row.dataset in found[row.shown]:
            unclear.add(row.shown)  # a label that stands for several methods
        found[row.shown][row.dataset] = row
    return [at for name, at in found.items() if len(at) > 1 and name not in unclear]


def _side_by_side(reference: Mapping[str, str]) -> str:
    names = " or ".join(dict.fromkeys(reference.values()))
    return f"{SIDE_BY_SIDE}, {names}" if names else SIDE_BY_SIDE


def _overview(shared: Sequence[Mapping[str, Row]]) -> tuple[list[Row], dict[str, list[str]]]:
    """Return a row to name each method by, and a column per data set."""
    names = dict.fromkeys(name for at in shared for name in at)
    columns = {name: [_both(at[name]) if name in at else "" for at in shared] for name in names}
    return [next(iter(at.values())) for at in shared], columns


def _both(row: Row) -> str:
    """Return worst group and mean, marked where the worst group is within noise of the reference's."""
    if not row.seeds:
        return "failed"
    noise = row.difference is not None and row.difference.within_noise
    return f"{'≈ ' if noise else ''}{_pair(spread_text(row.worst), spread_text(row.mean))}"


def _columns(rows: Sequence[Row], reference: str | None) -> dict[str, list[str]]:
    """Return every column of a data set's table but the first, by its header."""
    columns = {
        "fit with": [_named_oracle(row.fitting) for row in rows],
        "chosen by": [_named_oracle(row.selection) for row in rows],
        "worst group": [spread_text(row.worst) for row in rows],
        "mean": [spread_text(row.mean) for row in rows],
        "weighted mean": [spread_text(row.weighted_mean) for row in rows],
        "paper": [_paper(row.paper) for row in rows],
        "vs reference": [against_text(row, reference) for row in rows],
        "groups' ARI": [spread_text(row.ari, 1, 3) for row in rows],
        "minority precision / recall": [
            _pair(spread_text(row.minority_precision, 1, 3), spread_text(row.minority_recall, 1, 3)) for row in rows
        ],
        "seconds": [spread_text(row.seconds, 1) for row in rows],
        "seeds": [", ".join(map(str, row.seeds)) for row in rows],
    }
    if not any(columns["paper"]):
        del columns["paper"]
    return columns


def _gap_columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for row in rows for name in row.gaps)
    return {f"gap: {name}": [spread_text(row.gaps.get(name)) for row in rows] for name in names}


def _failures(rows: Sequence[Row]) -> list[str]:
    return [f"{row.shown}, seed {seed}: {reason}" for row in rows for seed, reason in row.failed.items()]


def _by_dataset(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row)
    return found


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


def _named_oracle(labels: str) -> str:
    return labels.replace("true groups", "true groups (oracle)")


def spread_text(value: Spread | None, scale: float = 100, digits: int = 1) -> str:
    """Return mean ± standard deviation, as far as there are any."""
    if value is None:
        return ""
    return f"{scale * value.mean:.{digits}f}" + ("" if value.std is None else f" ± {scale * value.std:.{digits}f}")


def _pair(first: str, second: str) -> str:
    return f"{first} / {second}" if first or second else ""


def _paper(figure: PaperFigure | None) -> str:
    if figure is None:
        return ""
    return _pair(spread_text(Spread(figure.worst, figure.worst_std)), spread_text(Spread(figure.mean, figure.mean_std)))


def against_text(row: Row, reference: str | None) -> str:
    """Return a row's difference from the reference in points, with its interval and the mark for noise."""
    if row.method == reference:
        return "reference"
    if row.difference is None:
        return ""
    bounds = (row.difference.value, row.difference.low, row.difference.high)
    value, low, high = (f"{round(100 * bound, 1) + 0.0:+.1f}" for bound in bounds)  # + 0.0: no -0.0
    return f"{'≈ ' if row.difference.within_noise else ''}{value} [{low}, {high}]"


def _line(text: str) -> str:
    """Return the text on one line."""
    return "".join(character if character.isprintable() else " " for character in text)


def _markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", _line(text).strip())


def _latex(text: str) -> str:
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in _line(text).strip())
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_line, columns))
    writer.writerows([_field(line.get(name)) for name in columns] for line in lines)
    return out.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, str):
        return _line(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
