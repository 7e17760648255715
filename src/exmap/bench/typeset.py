"""Tables of a bench as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from exmap.bench.paper import PaperFigure
from exmap.bench.tables import Row, Spread, line, named_oracle

__all__ = ["against_text", "line", "spread_text", "to_latex", "to_markdown"]


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
        "fit with": [named_oracle(row.fitting) for row in rows],
        "chosen by": [named_oracle(row.selection) for row in rows],
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


def _markdown(text: str) -> str:
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", line(text).strip())


def _latex(text: str) -> str:
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in line(text).strip())
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)
