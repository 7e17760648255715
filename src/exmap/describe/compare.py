"""How far two sets of images differ in one thing: an effect with its interval, and a p-value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from exmap.describe.columns import MOST_VALUES, Column
from exmap.records import IntArray
from exmap.results import Difference

__all__ = ["FEWEST", "LEVEL", "WORTH", "Found", "compare_numbers", "compare_texts", "differences"]

FEWEST = 3  # images of a group, and of the others, with a known value
LEVEL = 0.05  # of a corrected p-value
WORTH = 1 / 3  # an effect from which a difference matters: two of three pairs are in order
SIDES = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Found:
    """A difference between two sets of images: `effect` in [-1, 1] with its interval, and a p-value."""

    group: float
    others: float
    effect: float
    low: float
    high: float
    p_value: float
    value: str = ""
    cramers_v: float | None = None


def compare_numbers(group: NDArray[np.float64], others: NDArray[np.float64]) -> Found | None:
    """Compare two sets of numbers by rank: Mann and Whitney's test, and the rank-biserial correlation.

    Its interval is that of DeLong, DeLong and Clarke-Pearson (1988) for the area under a curve.

    Parameters
    ----------
    group, others : ndarray of float64
        NaN where not known.

    Returns
    -------
    Found or None
        None where either has fewer than three known numbers, or all are one.

    Examples
    --------
    >>> found = compare_numbers(np.arange(20) + 30.0, np.arange(40.0))
    >>> round(found.effect, 2), found.p_value < 0.001
    (0.88, True)
    """
    group, others = group[np.isfinite(group)], others[np.isfinite(others)]
    n, m = len(group), len(others)
    if min(n, m) < FEWEST:
        return None
    both = np.concatenate([group, others])
    if np.ptp(both) <= 1e-9 * max(1.0, float(np.abs(both).max())):
        return None
    effect, error, p_value = _by_rank(both, n)
    low, high = max(effect - SIDES * error, -1.0), min(effect + SIDES * error, 1.0)
    return Found(float(np.median(group)), float(np.median(others)), effect, low, high, p_value)


def _by_rank(both: NDArray[np.float64], n: int) -> tuple[float, float, float]:
    """Return the correlation, its standard error and the p-value of no difference; the first `n` numbers are the group.

    The p-value is of Mann and Whitney's test with the normal approximation, corrected for ties and continuity.
    """
    m = len(both) - n
    ranks, counts = _ranks(both), np.unique(both, return_counts=True)[1]
    above = (ranks[:n] - _ranks(both[:n])) / m  # of each: the share of the others that lie below it
    below = 1 - (ranks[n:] - _ranks(both[n:])) / n
    effect = float(2 * above.mean() - 1)
    error = 2 * float(np.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m))
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = np.sqrt(n * m / 12 * (n + m + 1 - ties))
    z = max(0.0, abs(effect) * n * m / 2 - 0.5) / spread
    return effect, max(error, 1 / min(n, m)), float(special.erfc(z / np.sqrt(2)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def compare_texts(group: NDArray[np.object_], others: NDArray[np.object_], of: str = "") -> Found | None:
    """Compare two sets of texts: by the value whose share differs most, a test of all values, and Cramér's V.

    Parameters
    ----------
    group, others : ndarray of object
        Texts; empty where not known.
    of : str
        The value whose share is compared, whichever differs most.

    Returns
    -------
    Found or None
        None where either has fewer than three known texts, or all are one.
    """
    group, others = group[group != ""], others[others != ""]
    if min(len(group), len(others)) < FEWEST:
        return None
    values, index = np.unique(np.concatenate([group, others]).astype(str), return_inverse=True)
    if len(values) < 2:
        return None
    in_group = np.arange(len(index)) < len(group)
    table = np.stack([np.bincount(index[part], minlength=len(values)) for part in (in_group, ~in_group)])
    if len(values) > MOST_VALUES:
        kept = np.sort(np.argsort(-table.sum(axis=0), kind="stable")[: MOST_VALUES - 1])
        rest = table.sum(axis=1) - table[:, kept].sum(axis=1)
        values, table = values[kept], np.column_stack([table[:, kept], rest])
    p_value, v = _association(table)
    shares = table / table.sum(axis=1, keepdims=True)
    difference = (shares[0] - shares[1])[: len(values)]
    most = int(np.argmax(difference))
    if of in values[: len(difference)]:
        most = int(np.flatnonzero(values == of)[0])
    elif -difference.min() > 1.5 * difference[most]:  # what is there is easier to say than what is not
        most = int(np.argmin(difference))
    sizes = table.sum(axis=1)
    share, other = (float(each) for each in shares[:, most])
    low, high = _newcombe(share, other, *sizes.tolist())
    return Found(share, other, float(difference[most]), low, high, p_value, str(values[most]), v)


def _association(table: IntArray) -> tuple[float, float]:
    """Return the p-value of independence, and Cramér's V corrected for bias (Bergsma, 2013)."""
    if table.shape[1] == 2:
        p_value = float(stats.fisher_exact(table).pvalue)
    else:
        p_value = float(stats.chi2_contingency(table, correction=False).pvalue)
    n, columns = table.sum(), table.shape[1]
    phi = float(stats.chi2_contingency(table, correction=False).statistic) / n
    least = max(0.0, phi - (columns - 1) / (n - 1))
    size = columns - (columns - 1) ** 2 / (n - 1)
    rows = 2 - 1 / (n - 1)
    return p_value, float(min(1.0, np.sqrt(least / max(min(size - 1, rows - 1), 1e-9))))


def _newcombe(share: float, other: float, n: int, m: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares (Newcombe, 1998, of Wilson's intervals)."""
    (low, high), (other_low, other_high) = _wilson(share, n), _wilson(other, m)
    difference = share - other
    return (
        difference - float(np.hypot(share - low, other_high - other)),
        difference + float(np.hypot(high - share, other - other_low)),
    )


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = SIDES**2 / n
    centre, half = share + z / 2, SIDES * float(np.sqrt(share * (1 - share) / n + z / (4 * n)))
    return (centre - half) / (1 + z), (centre + half) / (1 + z)


def differences(columns: list[Column], group: IntArray, others: IntArray) -> list[tuple[Column, Found]]:
    """Compare two sets of images in all that is known of both.

    Parameters
    ----------
    columns : list of Column
    group, others : ndarray of int64
        Rows of the columns.
    """
    found = []
    for column in columns:
        (numbers, texts), (other_numbers, other_texts) = column.rows(group), column.rows(others)
        one: Found | None = None
        if numbers is not None and other_numbers is not None:
            one = compare_numbers(numbers, other_numbers)
        elif texts is not None and other_texts is not None:
            one = compare_texts(texts, other_texts, column.of)
        if one is not None:
            found.append((column, one))
    return found


def as_difference(column: Column, found: Found, tests: int) -> Difference:
    """Return what is written of a difference; `tests` is how many p-values there are."""
    p_value = min(1.0, found.p_value * tests)
    words = (column.more if found.effect >= 0 else column.less).replace("{}", found.value)
    return Difference(
        name=column.name,
        kind=column.kind,
        topic=column.topic,
        words=words,
        value=found.value,
        group=found.group,
        others=found.others,
        unit=column.unit,
        effect=min(max(found.effect, -1.0), 1.0),
        effect_low=max(found.low, -1.0),
        effect_high=min(found.high, 1.0),
        p_value=p_value,
        cramers_v=found.cramers_v,
        matters=p_value <= LEVEL and abs(found.effect) >= WORTH,
    )
