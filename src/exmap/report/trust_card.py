"""The report's section on how far heatmaps and groups can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from exmap.records import Heatmaps
from exmap.report.charts import share_chart
from exmap.report.percentages import small_percent
from exmap.results import Quantiles, Trust

__all__ = ["TrustCard", "accounted"]


@dataclass(frozen=True)
class TrustCard:
    """What says whether to believe the heatmaps and the groups.

    Attributes
    ----------
    heatmaps : Heatmaps
    trust : Trust or None
        None where it was not measured.
    """

    heatmaps: Heatmaps
    trust: Trust | None = None

    @property
    def images(self) -> int:
        """Heatmaps in all."""
        return len(self.heatmaps)

    @property
    def not_finite(self) -> int:
        """Heatmaps with NaN or infinity."""
        return int((~self.heatmaps.finite).sum())

    @property
    def all_zero(self) -> int:
        """Heatmaps that are zero everywhere."""
        return int(self.heatmaps.zero.sum())

    @property
    def accounted(self) -> str:
        """What of the explained logit the pixels and the constants hold."""
        maps = self.heatmaps
        shares = None if maps.input_share is None else Quantiles.of(maps.input_share[maps.finite])
        return accounted(shares, Quantiles.of(maps.conservation_error[maps.finite]))

    @property
    def chart(self) -> Markup | None:
        """A histogram of what the pixels hold; None where that is not known."""
        maps = self.heatmaps
        if maps.input_share is None or not (count := int(np.isfinite(maps.input_share[maps.finite]).sum())):
            return None
        described = f"Histogram of the share that the pixels hold in {count:,} heatmaps"
        return share_chart(maps.input_share[maps.finite], described)


def accounted(shares: Quantiles | None, errors: Quantiles | None) -> str:
    r"""State what of the explained logit the pixels and the constants hold, and what is missing.

    Parameters
    ----------
    shares : Quantiles or None
        Of what the pixels hold; None where that is not known.
    errors : Quantiles or None
        Of what is unaccounted for; None for explainers that promise no sum.

    Examples
    --------
    >>> print(accounted(Quantiles.of([0.93]), Quantiles.of([1e-6])).replace("\xa0", " "))
    Of the explained logit, the image's pixels hold 93 %, biases and other constants 7 %; 0.0001 % is unaccounted for.
    """
    if shares is None:
        return "How much of the explained logit the pixels hold is not known."
    share = round(100 * shares.median)
    if errors is None:
        return (
            f"The values of an image's pixels sum to {share}\xa0% of the explained logit (median); this explainer "
            "promises no sum, so nothing can be said of the rest."
        )
    said = (
        f"Of the explained logit, the image's pixels hold {share}\xa0%, biases and other constants {100 - share}\xa0%; "
        f"{small_percent(errors.median)} is unaccounted for."
    )
    if errors.images == 1:
        return said
    most = small_percent(errors.q95)
    return f"{said} These are medians over the images; for 95\xa0% of them at most {most} is unaccounted for."
