"""What an audit found: of a record and its analysis alone, and as a model card that nothing in the data can break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_one_story import an_analysis, record

from exmap.analysis import Analysis
from exmap.errors import DataError
from exmap.report.findings import findings_of
from exmap.report.model_card import model_card
from exmap.results import Findings
from exmap.results.findings import AuditedModel
from sample_analysis import sample_analysis

HOSTILE = "a|b <script>alert(1)</script> `x` [y](z)\n# title"


def audited(verdict: str = "found in one", *, repaired: bool = True) -> Analysis:
    """Return an analysis of one labelled set, measured in parts."""
    analysis = an_analysis(record(verdict, repaired=repaired))
    task = replace(analysis.task, test=analysis.task.val, cross_fitted=True)
    fit = analysis.fits["auto+dfr"]
    after = np.repeat(analysis.explained.labels[None], len(fit.predicted), axis=0)  # all right
    fits = {**analysis.fits, "auto+dfr": replace(fit, predicted=after)}
    return replace(analysis, task=task, test=analysis.explained.outputs, fits=fits)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("found in one", "shortcut"),
        ("found in both", "shortcut"),
        ("found in none", "none"),
        ("none of the tested", "none"),
        ("not tested", "cannot say"),
    ],
)
def test_the_verdict_is_that_of_the_test(verdict: str, said: str) -> None:
    found = findings_of(audited(verdict, repaired="found in" in verdict))
    assert found.verdict == said
    assert found.found is (said == "shortcut")
    assert len(found.shortcuts) == (2 if verdict == "found in both" else said == "shortcut")


def test_it_holds_accuracies_before_and_after_by_group() -> None:
    analysis = audited()
    found = findings_of(analysis, source="photos/", saved="model")
    groups = analysis.groups["auto"]
    assert [each.images for each in sorted(found.groups, key=lambda each: each.name)] == [
        int(count) for _, count in sorted(zip(groups.names, groups.counts(), strict=True)) if count
    ]
    before = [each.before.value for each in found.groups]
    assert before == sorted(before)
    assert all(each.after is not None and each.after.value == 1 for each in found.groups)
    assert found.overall.before.value == pytest.approx(analysis.explained.correct.mean())
    assert found.overall.after is not None
    assert (found.repair.repaired, found.repair.model, found.data.source) == (True, "model", "photos/")
    assert found.repair.minority_images == 12
    assert Findings.from_json(found.to_json()) == found
    assert found.to_frame()["before"].tolist() == before


def test_nothing_is_said_of_after_where_nothing_was_repaired_or_all_was_fitted_to() -> None:
    left = findings_of(audited("found in none", repaired=False))
    assert not left.repair.repaired
    assert left.overall.after is None
    assert all(each.after is None for each in left.groups)
    second_set = findings_of(an_analysis(record("found in one", repaired=True)))
    assert second_set.overall.after is not None
    assert all(each.after is None for each in second_set.groups)


def test_without_a_test_there_are_no_findings() -> None:
    with pytest.raises(DataError, match="findings need the test for a shortcut; make it with auto=True"):
        findings_of(sample_analysis())


def test_the_card_escapes_what_comes_from_data() -> None:
    found = findings_of(audited(), model=AuditedModel(name=HOSTILE, classes=(HOSTILE, "b")))
    found = found.changed(groups=[each.changed(name=HOSTILE) for each in found.groups])
    card = model_card(found)
    assert "<script>" not in card
    assert "\n# title" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in rows)
    assert "A shortcut was found." in card
    assert "100.0%" in card
