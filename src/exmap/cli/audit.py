"""The command that audits a classifier of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exmap.cli.common import Address, EngineName, Override, app, at_work, console_of, listed, loading, with_engine

if TYPE_CHECKING:
    from rich.console import Console

    from exmap.audit import Audit

__all__ = ["audit"]

FOUND = 1  # exit code with --fail-on-shortcut


@app.command(rich_help_panel="Audit your classifier")
def audit(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID, onnx:FILE, torchscript:FILE, PACKAGE.MODULE:FUNCTION "
            "or FILE.py:FUNCTION.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Labelled images that the model was not trained on: a folder per class, a CSV or Parquet table, "
            "hf:FOLDER_OR_ID, or WebDataset shards.",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="A safetensors file, or one that torch.save wrote; nothing in it is executed."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", help="A second labelled set to measure accuracy on. Default: cross-fitting."),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(
            "--transform", help="Preprocessing: PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION. Default: the model's own."
        ),
    ] = None,
    classes: Annotated[
        str, typer.Option("--classes", help="Classes in the order of the model's outputs, separated by commas.")
    ] = "",
    outputs: Annotated[
        str, typer.Option("--outputs", help="Which outputs are the classes, by number, separated by commas.")
    ] = "",
    groups: Annotated[
        str, typer.Option("--groups", help="Columns of known groups, separated by commas; used for evaluation only.")
    ] = "",
    label: Annotated[str | None, typer.Option("--label", help="Column that holds the labels. Default: label.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder. Default: audits/MODEL-DATA.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the whole audit.")] = None,
    fail_on_shortcut: Annotated[
        bool,
        typer.Option("--fail-on-shortcut", help="Exit with code 1 if a shortcut is found, for continuous integration."),
    ] = False,
    program: Annotated[
        bool, typer.Option("--export", help="Also write the repaired classifier as a torch.export program.")
    ] = False,
    engine: EngineName = None,
    address: Address = None,
    overrides: Override = None,
) -> None:
    """Find the shortcuts your classifier takes, describe them, and repair its last layer.

    Exit code 0: done; 1: a shortcut was found (with --fail-on-shortcut); 2: could not be done.
    """
    with loading():
        from exmap.audit import audit_settings, run_audit
        from exmap.data.words import data_settings_of
        from exmap.errors import SettingsError
        from exmap.pipeline.store import sole_writer
    try:
        numbers = [int(number) for number in listed(outputs)]
    except ValueError:
        raise SettingsError(f"--outputs must be whole numbers separated by commas, got {outputs!r}") from None
    settings = audit_settings(
        model,
        data_settings_of(data),
        weights=weights,
        test=test,
        transform=transform,
        classes=listed(classes),
        outputs=numbers,
        groups=listed(groups),
        label=label,
        changes=overrides or (),
        seed=seed,
    )
    settings = with_engine(settings, engine, address)
    folder = out or Path("audits") / f"{_in_a_name(model)}-{_in_a_name(data)}"
    console = console_of()
    with sole_writer(folder), at_work(console, "the same command continues from the last finished step") as (bars, say):
        made = run_audit(folder, settings, source=data, program=program, listen=bars, say=say)
    _show(console, folder, made)
    sys.exit(FOUND if fail_on_shortcut and made.findings.found else 0)


def _in_a_name(word: str) -> str:
    """Return the last part of a word for the name of a folder: ``my_model-build`` of ``nets/my_model.py:build``."""
    from exmap.pipeline.disk import slug

    return slug(Path(word).name.replace(".py:", "-").replace(":", "-"))


def _show(console: Console, folder: Path, made: Audit) -> None:
    """Print the verdict, what the shortcut is, what a repair gives, and where the files are."""
    from exmap.cli.tables import changes_table

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False)

    findings = made.findings
    if findings.first_line:
        say(findings.first_line, "bold")
    say(findings.summary, "bold")
    for sentence in findings.shortcuts:
        say(f"  {sentence}")
    for warning in findings.warnings:
        say(f"Warning: {warning}")
    for note in findings.notes:
        say(f"Note: {note}")
    console.print(changes_table(findings))
    say(findings.repair.why)
    say(f"Measured on {findings.measured_on}.", "dim")
    for path, what in (
        ("report/report.html", "Report"),
        ("findings.json", "Findings"),
        ("model_card.md", "Model card"),
    ):
        say(f"{what}: {folder / path}")
    if made.saved is not None:
        say(f"Repaired classifier: {folder / findings.repair.model}")
