"""The plug-in keeps what exmap asks of it."""

from __future__ import annotations

import numpy as np

from exmap.registry import CLUSTERERS, LEARNERS
from exmap.testing import check_clusterer, check_learner


def test_both_are_found_by_name() -> None:
    assert "group_weighted" in LEARNERS.names()
    assert "density" in CLUSTERERS.names()


def test_the_learner() -> None:
    check_learner("group_weighted", strength=0.3)


def test_the_clusterer() -> None:
    check_clusterer("density", min_cluster_size=5)


def test_samples_in_thin_regions_are_unassigned() -> None:
    points = np.concatenate([np.random.default_rng(0).normal(c, 0.1, (20, 2)) for c in (0, 5)] + [[[50.0, 50.0]]])
    found = CLUSTERERS.build("density", {"min_cluster_size": 5}).fit(points)
    assert found.labels_[-1] == -1
    assert found.note_.startswith("1 of 41 samples")
