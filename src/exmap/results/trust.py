"""What says whether to believe heatmaps and groups: sums that hold, clusterings again, and a plainer explainer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from exmap.results.part import Part, Share

__all__ = ["GradientAgreement", "Quantiles", "Rerun", "Trust"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class Quantiles(Part):
    """Where the values of all images lie."""

    images: int = Field(ge=1, description="Images whose value is known.")
    q05: float = Field(description="5 % of the values are smaller.")
    q25: float = Field(description="25 % of the values are smaller.")
    median: float = Field(description="Half of the values are smaller.")
    q75: float = Field(description="75 % of the values are smaller.")
    q95: float = Field(description="95 % of the values are smaller.")

    @classmethod
    def of(cls, values: ArrayLike) -> Quantiles | None:
        """Return those of an array's finite values; None where it has none.

        Examples
        --------
        >>> Quantiles.of([0.0, 1.0, float("nan"), 2.0]).median
        1.0
        """
        known = np.asarray(values, dtype=np.float64).ravel()
        known = known[np.isfinite(known)]
        if not len(known):
            return None
        q05, q25, median, q75, q95 = np.quantile(known, LEVELS).tolist()
        return cls(images=len(known), q05=q05, q25=q25, median=median, q75=q75, q95=q95)


class Rerun(Part):
    """Groups inferred once more, from part of the images and with another seed."""

    images: int = Field(ge=1, description="Images that were grouped.")
    groups: int = Field(ge=0, description="Groups that came out.")
    ari: float = Field(
        ge=-1,
        le=1,
        description="Adjusted Rand index with the groups in question on the same images, within classes; 1: the same.",
    )


class GradientAgreement(Part):
    """What input times gradient, which has no relevance rules, finds in the heatmaps' place."""

    images: int = Field(ge=1, description="Random images whose input times gradient was clustered.")
    ari: float = Field(
        ge=-1, le=1, description="Adjusted Rand index of its groups with those of the run, within classes."
    )
    own_ari: float = Field(
        ge=-1, le=1, description="The same for the run's own heatmaps of these images, clustered again."
    )


class Trust(Part):
    """What says whether to believe the heatmaps and the groups."""

    images: int = Field(ge=0, description="Heatmaps in all.")
    not_finite: int = Field(ge=0, description="Heatmaps with NaN or infinity, which are left out of clustering.")
    all_zero: int = Field(ge=0, description="Heatmaps that are zero everywhere.")
    explained_by: str = Field(description="What made the heatmaps, in words.")
    is_gradient: bool = Field(description="Whether the heatmaps are input times gradient themselves.")
    input_share: Quantiles | None = Field(
        description="What the pixels hold of the explained logit, by finite heatmap; null where that is not known."
    )
    conservation_error: Quantiles | None = Field(
        description="What of the explained logit is unaccounted for, by finite heatmap, as a share of it; null for "
        "explainers that promise no sum."
    )
    rerun_share: Share = Field(description="Part of the images that each rerun groups.")
    reruns: tuple[Rerun, ...] = Field(
        description="Groups inferred again on random parts of the images; none where no image has a group."
    )
    gradient: GradientAgreement | None = Field(
        description="Input times gradient in the heatmaps' place; null where the images were not at hand, or the "
        "heatmaps are that already."
    )
