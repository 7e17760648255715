"""Commands that look: figures and exports of a run, the check of a model, and the settings there are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exmap.cli.common import (
    DataDir,
    Override,
    RunDir,
    Trust,
    app,
    bars_at_work,
    console_of,
    listed,
    loading,
    plain,
    tell,
)
from exmap.trusted import looking_only

__all__ = ["figures"]


@app.command(rich_help_panel="Look at a run")
def figures(
    run_dir: RunDir,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder. Default: RUN_DIR/figures.")] = None,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            help="Figures to draw, separated by commas: comparison, strategies, true-groups, embedding, mistakes.",
        ),
    ] = "",
    trust: Trust = False,
) -> None:
    """Draw the paper's figures for a run as PNG and PDF. Figures that cannot be drawn are named with the reason."""
    with loading():
        from exmap.draw import draw_figures
        from exmap.pipeline.looking import open_analysis
    with bars_at_work() as bars, looking_only(trust=trust):
        analysis = open_analysis(run_dir, data_dir=data_dir, trust=trust, listen=bars)
        drawn = draw_figures(analysis, out or run_dir / "figures", listed(only), listen=bars)
    for each in drawn:
        if each.note:
            tell(f"{each.name}: {each.note}" if each.paths else f"{each.name}: left out, {each.note}")
        for path in each.paths:
            tell(f"Figure: {path}")


@app.command(rich_help_panel="Look at a run")
def export(
    run_dir: RunDir,
    to: Annotated[str, typer.Option("--to", help="fiftyone, spotlight, virelay, or parquet (a table with pictures).")],
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder. Default: RUN_DIR/export/FORMAT.")] = None,
    trust: Trust = False,
) -> None:
    """Export a run's images, heatmaps and groups for other tools."""
    with loading():
        from exmap.export import check_target, export_run
        from exmap.pipeline.looking import open_analysis
    check_target(to)
    with bars_at_work() as bars, looking_only(trust=trust):
        analysis = open_analysis(run_dir, data_dir=data_dir, trust=trust, listen=bars)
        path = export_run(analysis, to, out or run_dir / "export" / to, listen=bars)
    if analysis.no_images:
        tell(f"Without thumbnails: {analysis.no_images}")
    tell(f"Export: {path}")


@app.command(rich_help_panel="Models, data and settings")
def settings(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET_OR_YAML]", help="A preset or a YAML file. Default: exmap's defaults."),
    ] = None,
    overrides: Override = None,
) -> None:
    """List every setting with its value and meaning, and the options of the learner, clusterer and explainer."""
    from rich.table import Table

    from exmap.precision import native_precision
    from exmap.settings import Settings, change_settings, load_settings
    from exmap.settings.describe import describe_settings
    from exmap.threads import choose_threads

    chosen = load_settings(source, overrides or ()) if source else change_settings(Settings(), overrides or ())
    table = Table()
    for title in ("setting", "value", "allowed", "meaning"):
        table.add_column(title, overflow="fold")
    for row in describe_settings(chosen):
        value = row.value
        if row.name == "runtime.precision" and value == "auto":
            value = f"auto, here {native_precision(chosen.runtime.accelerator)}"
        if row.name == "runtime.threads" and value == "auto":
            value = f"auto, now {choose_threads(chosen.runtime).number}"
        table.add_row(*plain(map(str, (row.name, value, row.allowed, row.meaning))))
    console_of().print(table)


@app.command("check-model", rich_help_panel="Models, data and settings")
def check_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run folder, torchvision:NAME, timm:NAME, hf:FOLDER, PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION.",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="A safetensors file, or one that torch.save wrote; nothing in it is executed."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="A .npy file of float images, (n, C, H, W). Default: random images.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", help="Side of the random images in pixels. Default: the model's own, or 224."),
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="Channels of the random images. Default: 3.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes if exmap builds the model. Default: 2.")
    ] = None,
    composite: Annotated[
        str, typer.Option("--composite", help="Relevance rules; auto chooses them for the kind of model.")
    ] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")
    ] = None,
    data_dir: DataDir = None,
    trust: Trust = False,
) -> None:
    """Check that a classifier's relevance adds up: input + constants = logit. Exit code 1 if it does not."""
    with loading():
        from exmap.model_source import check_named, check_record
        from exmap.pipeline.disk import write_json
    with bars_at_work() as bars, looking_only(trust=trust or not Path(model).is_dir()):
        checked = check_named(
            model,
            weights=weights,
            images=images,
            size=size,
            channels=channels,
            classes=classes,
            composite=composite,
            data_dir=data_dir,
            listen=bars,
        )
    tell(f"Model: {checked.model}")
    tell(f"Images: {checked.images}")
    for line in str(checked.found).splitlines():
        tell(line)
    if json_file is not None:
        write_json(json_file, check_record(checked))
        tell(f"Result: {json_file}")
    sys.exit(0 if checked.found.passed else 1)
