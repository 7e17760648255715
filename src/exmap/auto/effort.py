"""How much work a choice among groupings takes: how many groupings, fits and draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exmap.settings import AutoSettings

__all__ = ["Effort"]


@dataclass(frozen=True)
class Effort:
    """How much work a choice takes; the defaults are those that ``docs/results/auto.md`` was measured with.

    Attributes
    ----------
    sizes : int
        Sizes of heatmaps that are clustered, the largest first.
    clusterings : tuple of str or None
        Settings of the clusterings, as the names of candidates have them; None is all of them.
    held_out : int
        Halvings are repeated until about so many margins of each candidate were held out.
    fewest_halvings, most_halvings : int
        Bounds of their number.
    refits : int
        Fits of each candidate that are averaged where other images are judged, so that nothing is halved.
    draws : int
        Draws of images and judges, behind the confidence.
    curve_draws : int
        Draws of each point of the data curve.
    strengths : tuple of float
        Strengths of DFR's penalty that are tried for comparing candidates.
    tuning_splits, subsamples : int
        Of DFR, for comparing candidates.
    """

    sizes: int = 3
    clusterings: tuple[str, ...] | None = None
    held_out: int = 20_000
    fewest_halvings: int = 2
    most_halvings: int = 6
    refits: int = 2
    draws: int = 100
    curve_draws: int = 3
    strengths: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)
    tuning_splits: int = 2
    subsamples: int = 5

    @classmethod
    def of(cls, settings: AutoSettings) -> Effort:
        """Return the effort that settings ask for."""
        return cls(most_halvings=settings.halvings, refits=min(settings.halvings, cls.refits), draws=settings.draws)

    def halvings(self, images: int) -> int:
        """Return how often so many images are halved."""
        return int(np.clip(self.held_out // max(images, 1), self.fewest_halvings, self.most_halvings))
