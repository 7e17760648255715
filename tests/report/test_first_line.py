"""What retraining does to a class stands first: in fits and their files, results, the page and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from exmap.analysis import Analysis, Fit
from exmap.cli.run import _show
from exmap.methods import Method, Part
from exmap.pipeline.files import load_fits, save_fits
from exmap.pipeline.fitting import fit_last_layer
from exmap.records import Groups, Outputs, silent
from exmap.report.notebook import analysis_html
from exmap.report.outcome import headline
from exmap.results import ClassHarm, MethodResult, Results
from exmap.retrain.harm import judge_network
from exmap.settings import Settings, change_settings
from sample_analysis import sample_analysis

QUICK = ("retrain.repeats=2", "retrain.strengths=[0.3]", "retrain.subsamples=2", "retrain.tuning_splits=1")
HOSTILE = "<img src=x onerror=alert(1)>"
SAID = "No image to retrain on is of class {!r}, so it keeps the classifier's own decision."


def fitted(analysis: Analysis, outputs: Outputs, *more: str) -> Fit:
    """Fit last layers where the images of the last class are in no group."""
    split, settings = analysis.grouped, change_settings(Settings(), [*QUICK, *more])
    index = np.where(split.labels == split.n_classes - 1, -1, split.labels)
    groups = Groups(index, split.class_names, "own", ("class labels",))
    method = Method(Part("dfr"), Part("own"))
    model = analysis.network()
    return fit_last_layer(method, settings, model, split, outputs, groups, outputs, listen=silent)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return sample_analysis(3)


@pytest.fixture(scope="module")
def fit(analysis: Analysis) -> Fit:
    return fitted(analysis, analysis.explained.outputs)


def test_a_fit_says_it_first_and_keeps_it_in_its_files(analysis: Analysis, fit: Fit, tmp_path: Path) -> None:
    name = analysis.explained.class_names[2]
    assert SAID.format(name) in fit.first_line
    assert fit.notes[0] == fit.first_line
    assert repr(fit).startswith(fit.first_line)
    assert ClassHarm.without_images(name, kept=True) in fit.harm
    test = analysis.explained
    recalls = [(each[test.labels == 2] == 2).mean() for each in (test.predicted, *fit.predicted)]
    assert min(recalls) > recalls[0] - 0.15
    save_fits({"own+dfr": fit}, tmp_path)
    again = load_fits(tmp_path, analysis.network)["own+dfr"]
    assert (again.first_line, again.harm, again.notes) == (fit.first_line, fit.harm, fit.notes)


def test_one_who_insists_gets_the_repair_as_it_was_fitted(analysis: Analysis) -> None:
    fit = fitted(analysis, analysis.explained.outputs, "retrain.harm=warn")
    assert "worse, and is handed over anyway." in fit.first_line
    assert all(not each.kept for each in fit.harm)
    assert not (fit.predicted == 2).any()


def test_an_image_that_is_not_finite_is_left_out_and_named(analysis: Analysis) -> None:
    features = analysis.explained.features.copy()
    features[4] = np.nan
    fit = fitted(analysis, Outputs(features, analysis.explained.outputs.logits))
    said = f"1 image was left out, because features hold NaN or infinity: {analysis.explained.ids[4]}"
    assert said in fit.notes
    assert (fit.predicted[:, 4] == -1).all(), "it counts as wrong"


def test_results_begin_with_it(analysis: Analysis, fit: Fit) -> None:
    assert analysis.results is not None
    method = next(iter(analysis.results.methods))
    row = analysis.results.methods[method].changed(first_line=fit.first_line, harm=fit.harm)
    results = analysis.results.changed(methods={method: row}, first_lines=(f"{method}: {fit.first_line}",))
    tree = results.to_json()
    assert list(tree)[:2] == ["format", "first_lines"]
    assert Results.from_json(tree) == results
    assert MethodResult.from_json(tree["methods"][method]).harm == fit.harm
    assert str(results).splitlines()[0] == f"{method}: {fit.first_line}"
    untouched = analysis.results.to_json()
    assert "first_lines" not in untouched


def test_the_command_line_prints_it_before_any_table(
    analysis: Analysis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis.results is not None
    _show(Console(width=200), tmp_path, analysis.results.changed(first_lines=("exmap+dfr: [red]worse",)), None)
    assert capsys.readouterr().out.splitlines()[0] == "exmap+dfr: [red]worse"


def test_the_page_begins_with_it_and_escapes_it(analysis: Analysis, fit: Fit) -> None:
    assert analysis.method is not None
    said = f"Retraining makes class {HOSTILE!r} worse."
    worse = replace(fit, first_line=said)
    shown = replace(analysis, fits={**analysis.fits, analysis.method: worse})
    assert headline(shown, outcome_before(shown)).startswith(said)
    html = analysis_html(shown)
    assert HOSTILE not in html
    assert "Retraining makes class" in html


def test_the_first_line_states_accuracies_of_classes_alone_and_the_page_says_whose(
    analysis: Analysis, fit: Fit, tmp_path: Path
) -> None:
    assert analysis.method is not None
    index = np.repeat([0, 1, 2], [180, 20, 100])  # of the class cat a large and a small group, and the class dog
    labels, at = (index == 2).astype(np.int64), np.arange(300)
    before = np.where((index == 1) & (at >= 182), 1, labels)
    after = np.where((at < 40) | ((index == 1) & (at >= 198)), 1, labels)
    verdict = judge_network(before, after, labels, index, ("cat", "dog"))
    said = "Retraining costs class 'cat' (91 % to 79 % of 200 images), while the worst group improves."
    assert verdict.first_line == said
    worse = replace(fit, first_line=said, harm=verdict.classes)
    shown = replace(analysis, fits={**analysis.fits, analysis.method: worse})
    for each, count in ((shown, 1), (replace(analysis, fits={analysis.method: replace(fit, harm=())}), 0)):
        text = each.report(tmp_path / "report.html").read_text()
        assert text.count("by which the repair was judged before it was handed over") == count


def outcome_before(analysis: Analysis) -> list:
    from exmap.report.outcome import accuracy_by_group

    return accuracy_by_group(analysis, analysis.explained.predicted, "before")
