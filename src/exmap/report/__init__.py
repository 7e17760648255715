"""Pictures of a run: arrays in, matplotlib figures out, nothing shown or saved but by :func:`save_figure`."""

from exmap.report.bench_figure import bench_figure
from exmap.report.drawing import save_figure
from exmap.report.embedding_figure import embedding_figure
from exmap.report.figures import comparison_figure, mistakes_figure, strategies_figure

__all__ = [
    "bench_figure",
    "comparison_figure",
    "embedding_figure",
    "mistakes_figure",
    "save_figure",
    "strategies_figure",
]
