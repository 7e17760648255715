"""Tables of what came of a run: accuracies by method, and what the choice of a grouping says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exmap.cli.common import plain

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.text import Text

    from exmap.results import AutoRecord, Findings, Results, Rounds, ScoredGrouping
    from exmap.results.findings import Change

__all__ = ["changes_table", "kept_repairs", "mention_choice", "rounds_table", "show_choice", "summary"]

ROWS_SHOWN = 8  # of classes, and of groups
GROUPINGS_SHOWN = 5  # the best, beside the worst
FIRST = ("erm", "exmap+", "exmap-edited", "auto")
OTHERS = len(FIRST)


def summary(results: Results) -> Any:
    """Return the table ERM -> learners by source of groups."""
    from rich.table import Table

    table = Table(title=plain([f"{results.dataset}, seed {results.seed}: test accuracy"])[0], title_justify="left")
    table.add_column("method")
    for column in ("worst group", "mean"):
        table.add_column(column, justify="right")
    table.add_column("labels used for groups")

    for name, row in sorted(results.methods.items(), key=lambda item: (_place(item[0]), item[0])):
        spread = f" ± {row.std:.1%}" if row.std is not None else ""
        used = ", ".join(row.labels_used.get("groups", ())) or "none"
        cells = (name, f"{row.worst_group_accuracy:.1%}{spread}", f"{row.mean_accuracy:.1%}", used)
        table.add_row(*plain(cells), style="" if _place(name) == OTHERS else "bold")
    return table


def _place(method: str) -> int:
    """Return where a method stands: the classifier, what ExMap gives, other sources and controls, the oracle last."""
    if "oracle" in method:
        return len(FIRST) + 1
    return next((n for n, word in enumerate(FIRST) if method.startswith(word) or method.endswith(f"@{word}")), OTHERS)


def kept_repairs(results: Results) -> list[Text]:
    """Return for each method that chose a repair among several which one was kept, and what the others would give."""
    from exmap.results import repairs_in_words

    said = {name: repairs_in_words(row.repairs) for name, row in results.methods.items()}
    return plain([f"{name}: {words}" for name, words in said.items() if words])


def changes_table(findings: Findings) -> Any:
    """Return accuracy before and after a repair: over all images, by class or known group, and by group found."""
    from rich.table import Table

    table = Table(title="Accuracy before and after", title_justify="left")
    table.add_column("images", overflow="fold")
    for column in ("number", "before", "after"):
        table.add_column(column, justify="right")

    def add(row: Change, style: str = "") -> None:
        after = "" if row.after is None else f"{row.after.value:.1%}"
        table.add_row(
            *plain((row.name, f"{row.images:,}", f"{row.before.value:.1%}", after)),
            style=style,
        )

    add(findings.overall, "bold")
    table.add_section()
    for row in findings.measured[:ROWS_SHOWN]:
        add(row)
    table.add_section()
    for row in findings.groups[:ROWS_SHOWN]:
        add(row)
    return table


def rounds_table(rounds: Rounds) -> Any:
    """Return what each round found, and the accuracies before and after its repair."""
    from rich.table import Table

    def change(before: float | None, after: float | None) -> str:
        first, second = ("" if each is None or each != each else f"{100 * each:.1f}" for each in (before, after))
        return f"{first} -> {second}" if second else first

    title = f"{rounds.dataset}, seed {rounds.seed}: {len(rounds.rounds)} of at most {rounds.asked} rounds"
    table = Table(title=plain([title])[0], title_justify="left")
    table.add_column("round", justify="right")
    for column in ("shortcuts found", "repaired by"):
        table.add_column(column, overflow="fold")
    for column in ("worst pseudo-group, %", "test: worst group, %", "test: mean, %"):
        table.add_column(column, justify="right", min_width=len("33.3 -> 86.2"))
    for each in rounds.rounds:
        cells = (
            str(each.number),
            each.in_words or "none",
            each.method or "left as it is",
            change(each.before, each.after),
            change(each.test_worst_before, each.test_worst_after),
            change(each.test_mean_before, each.test_mean_after),
        )
        table.add_row(*plain(cells))
    return table


def mention_choice(console: Console, record: AutoRecord, folder: Path, left_alone: str = "") -> None:
    """Print what was chosen without group labels in a few lines."""
    from exmap.report import story

    lines = [story.verdict(record, left_alone), *(f"Warning: {each}" for each in story.warnings(record))]
    if record.chosen is not None:
        lines.append(f"Chosen grouping: {record.chosen}, confidence {record.confidence:.0%}.")
        lines += [*filter(None, [story.last_layer(record)]), f"All groupings: exmap auto {folder}"]
    console.print("\n".join(lines), highlight=False, markup=False)


def show_choice(console: Console, record: AutoRecord, left_alone: str = "") -> None:
    """Print all that a choice of groups says, the verdict first."""
    from exmap.auto import words
    from exmap.report import story

    def say(line: str, style: str = "") -> None:
        if line:
            console.print(line, style=style, highlight=False, markup=False)

    say(story.verdict(record, left_alone), "bold")
    if not record.found:
        say(f"The report shows groups of heatmaps to look at: {story.NO_EVIDENCE}")
    for warning in story.warnings(record):
        say(f"Warning: {warning}")
    console.print(_findings(record))
    if story.exchanges(record):
        console.print(_exchanges(record))
        say(story.EXCHANGE_NOTE)
    if record.chosen is None:
        return
    say(f"Chosen grouping: {record.chosen}", "bold")
    say(f"{record.why} {words.confidence(record)}")
    console.print(_candidates(record))
    say(story.last_layer(record))
    if record.data_curve:
        console.print(_data_curve(record))
    say(words.more_images(record))
    for remark in words.remarks(record):
        say(remark)


def _exchanges(record: AutoRecord) -> Any:
    """Return what predictions follow, by property and class."""
    from rich.table import Table

    from exmap.report import story

    table = Table(title="What predictions follow", title_justify="left")
    for column in story.EXCHANGE_COLUMNS:
        name = column in ("property", "class")
        table.add_column(column, overflow="fold", justify="left" if name or column == "followed" else "right")
    for row, each in zip(story.exchange_rows(record), story.exchanges(record), strict=True):
        table.add_row(*plain(row), style="bold" if each.relied_on else "")
    return table


def _findings(record: AutoRecord) -> Any:
    """Return what the test says of each class."""
    from rich.table import Table

    table = Table(title="Is there a shortcut?", title_justify="left")
    table.add_column("class", overflow="fold")
    table.add_column("shortcut")
    for column in ("p", "more errors"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, row in record.shortcut.items():
        found = {True: "found", False: "not found", None: "not tested"}[row.found]
        p_value = effect = ""
        if row.effect is not None and row.p_value is not None:
            p_value = "< 0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
            effect = f"{100 * row.effect:+.0f} points"
        table.add_row(*plain((name, found, p_value, effect, row.why)), style="bold" if row.found else "")
    return table


def _candidates(record: AutoRecord) -> Any:
    """Return the best groupings and the worst one, with their scores."""
    from rich.table import Table

    rows = record.candidates
    marks = {record.chosen: "chosen", record.runner_up: "runner-up"}
    table = Table(
        title=f"Groupings by score, {len(rows)} in all (0 is best), and similarity to the chosen one",
        title_justify="left",
    )
    table.add_column("grouping", overflow="fold")
    for column in ("score", "groups", "likeness"):
        table.add_column(column, justify="right")
    table.add_column("")

    def add(row: ScoredGrouping) -> None:
        mark = marks.get(row.name, "") if row.eligible else "cannot be chosen"
        cells = (row.name, f"{row.score:.2f}", str(row.groups), f"{row.like_chosen:.2f}", mark)
        table.add_row(*plain(cells), style="bold" if mark == "chosen" else "")

    for row in rows[:GROUPINGS_SHOWN]:
        add(row)
    if len(rows) > GROUPINGS_SHOWN:
        table.add_section()
        add(min(rows[GROUPINGS_SHOWN:], key=lambda row: row.score))
    if record.reliance is not None:
        table.add_section()
        table.add_row("the classifier as it is", f"{-record.reliance.classifier:.2f}")
    return table


def _data_curve(record: AutoRecord) -> Any:
    """Return how the repair depends on the number of images."""
    from rich.table import Table

    table = Table(title="Accuracy by number of images", title_justify="left")
    for column in ("images", "in the smallest group", "worst chosen group is right"):
        table.add_column(column, justify="right")
    for point in record.data_curve:
        right = f"{point.worst_group_accuracy:.1%} ± {point.spread:.1%}"
        table.add_row(f"{point.images:,}", f"{point.smallest_group:,.0f}", right)
    return table
