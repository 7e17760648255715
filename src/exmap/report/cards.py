"""What the report shows of groups, accuracies and clusterings: frozen records that the page's template reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from exmap.report.charts import eigenvalue_chart
from exmap.results import ClusterFit

if TYPE_CHECKING:
    from exmap.report.description_card import DescriptionCard

__all__ = ["ClusterCard", "Comparison", "Interval", "Sample", "Strategy"]


@dataclass(frozen=True)
class Interval:
    """A share in [0, 1], with the bounds of its bootstrap interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One line of bars: what is measured, before and after retraining; `after` is None where nothing was retrained."""

    name: str
    before: Interval
    after: Interval | None = None


@dataclass(frozen=True)
class Sample:
    """An image that is shown: its row among the points, its id, and what the classifier takes it for."""

    point: int
    id: str
    predicted: str
    picture: int | None


@dataclass(frozen=True)
class Strategy:
    """One pseudo-group.

    Attributes
    ----------
    group : int
    name, class_name : str
    size : int
        Images in it.
    share : float in [0, 1]
        Of its class.
    before : Interval
        Accuracy on the grouped split before retraining.
    after : Interval or None
        Accuracy on the same images after it; None where nothing was retrained.
    mean : int
        Tile of the mean heatmap.
    typical, borderline, wrong : sequence of Sample
    made_of : sequence of (name, count)
        True groups, the largest first; empty where they are not known.
    described : DescriptionCard or None
        How its images differ from the others of their class.
    """

    group: int
    name: str
    class_name: str
    size: int
    share: float
    before: Interval
    after: Interval | None
    mean: int
    typical: Sequence[Sample] = ()
    borderline: Sequence[Sample] = ()
    wrong: Sequence[Sample] = ()
    made_of: Sequence[tuple[str, int]] = ()
    described: DescriptionCard | None = None


@dataclass(frozen=True)
class ClusterCard:
    """One clustering: which images, into how many clusters, and why so many.

    Attributes
    ----------
    title : str
        Which images were clustered together, in words.
    fit : ClusterFit
    gap : str
        How the number of clusters was read off the eigenvalues: ``relative`` or ``absolute``.
    silhouette : float in [-1, 1], or None
        None where it is not defined.
    """

    title: str
    fit: ClusterFit
    gap: str = "relative"
    silhouette: float | None = None

    @property
    def chart(self) -> Markup | None:
        """The eigenvalues; None for clusterings without."""
        values = self.fit.eigenvalues
        if values is None:
            return None
        described = (
            f"The {len(values)} smallest eigenvalues for {self.title}, rising from {values[0]:.2g} to "
            f"{values[-1]:.2g}; {self.fit.n_clusters} clusters"
        )
        return eigenvalue_chart(np.asarray(values), self.fit.n_clusters, described, ratios=self.gap == "relative")
