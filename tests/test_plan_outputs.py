"""Which splits are explained for whom: sources that look at no heatmaps want none."""

from __future__ import annotations

import pytest

from exmap.bench.work import bench_graph
from exmap.methods import parse_method
from exmap.settings import load_settings


@pytest.mark.parametrize(
    ("method", "explained"), [("classes+rwg@exmap", False), ("error_set+rwg@exmap", False), ("exmap+rwg", True)]
)
def test_training_images_are_explained_for_heatmaps_alone(method: str, explained: bool) -> None:
    graph = bench_graph(load_settings("digits"), None, [parse_method(method)])
    assert ("explain-train" in graph, "outputs-train" in graph) == (explained, not explained)
    assert "explain-val" in graph
