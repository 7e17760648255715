"""Shares as percentages, written so that nothing is called 0 or 100 % that is not."""

from __future__ import annotations

import numpy as np

__all__ = ["percent", "small_percent"]


def percent(value: float | None) -> str:
    r"""Return a share as a percentage with one decimal; only what is none or all of it is called 0 or 100.

    The space does not break.

    Examples
    --------
    >>> [percent(share).replace("\xa0", " ") for share in (0.434, 1.0, 0.9999, 0.0, None)]
    ['43.4 %', '100 %', '> 99.9 %', '0 %', 'unknown']
    """
    if value is None or value != value:
        return "unknown"
    if value in (0, 1):
        return f"{100 * value:.0f}\xa0%"
    bound = ">\xa0" if value > 0.999 else "<\xa0" if value < 0.001 else ""
    return f"{bound}{100 * min(max(value, 0.001), 0.999):.1f}\xa0%"


def small_percent(share: float) -> str:
    r"""Return a share as a percentage with one digit that is not 0.

    Examples
    --------
    >>> [small_percent(share).replace("\xa0", " ") for share in (0.0312, 2e-6, 0)]
    ['3 %', '0.0002 %', '0 %']
    """
    value = float(f"{100 * share:.0e}")
    digits = 0 if value >= 1 or value == 0 else -int(np.floor(np.log10(value)))
    return f"{value:.{min(digits, 12)}f}\xa0%"
