"""Two classifiers on the same images."""

from __future__ import annotations

import numpy as np
import pytest

from exmap.evaluation.before_after import Comparison, compare_predictions

NAMES = ("plain", "<b>odd</b>")


@pytest.fixture
def found() -> Comparison:
    labels, index = np.zeros(100, dtype=np.int64), np.repeat([0, 1], [80, 20])
    before, after = labels.copy(), labels.copy()
    before[80:96] = 1  # 4 of 20 odd ones right
    after[80:84] = 1
    after[:8] = 1
    return compare_predictions(before, after, labels, index, NAMES, rng=np.random.default_rng(0))


def test_accuracies_and_differences_are_those_of_the_predictions(found: Comparison) -> None:
    assert found.before.accuracy.tolist() == [1.0, 0.2]
    assert found.after.accuracy.tolist() == [0.9, 0.8]
    assert found.worst.value == pytest.approx(0.6)
    assert found.mean.value == pytest.approx(0.04)
    assert found.worst.low < 0.6 < found.worst.high
    assert not found.worst.within_noise
    assert found.mean.within_noise


def test_it_is_a_frame_a_text_and_escaped_html(found: Comparison) -> None:
    frame = found.to_frame()
    assert frame["images"].tolist() == [80, 20]
    assert frame["after"].tolist() == [0.9, 0.8]
    assert "worst group            20.0%    80.0%  +60.0 points" in str(found)
    page = found._repr_html_()
    assert "<b>odd" not in page
    assert "&lt;b&gt;odd" in page
