"""Pictures of a run: arrays in, matplotlib figures out, nothing shown or saved."""

from exmap.report.figures import strategies_figure

__all__ = ["strategies_figure"]
