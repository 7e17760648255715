"""Is there a shortcut at all? A test for strategies of different accuracy inside a class.

Some images of a class are always harder than others, and clusters of heatmaps find them: on plain Fashion-MNIST one
cluster of pullovers is taken for coats in half of the cases. That is no shortcut, and the number of errors alone cannot
tell the two apart. What can is whether the cluster stands apart: hard images lie at the rim of their class, whereas
images that a classifier treats by another strategy have heatmaps of another kind, and few neighbours among the rest.

So a cluster is tested only if hardly any edge of the neighbour graph of its class's heatmaps leaves it (its
*conductance* is at most 0.02). Then a binomial test asks whether its error rate is more than twice that of the rest of
the class, as far as that is known, and p-values are multiplied by the number of clusters tested in all classes
(Bonferroni). A class whose graph does not fall apart has nothing to test, whatever the eigengap says. A cluster of more
than 35 % of its class is not tested: a shortcut works for most images, whereas a classifier may by chance be worse at
one of two colours that are as common as each other, which no balancing of groups repairs. Clusters of features are not
tested either: they follow the prediction itself. Measured in ``docs/results/auto.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from scipy.stats import beta, binom

from exmap.auto.candidates import Candidates
from exmap.records import Explained, IntArray
from exmap.results import ClassFinding
from exmap.settings import AutoSettings

__all__ = ["ShortcutTest", "conductance", "find_shortcuts", "upper_bound"]

FEWEST = 8  # images in a cluster and in the rest of its class
RATES = 100  # of the rest of a class, that a cluster's errors are compared with


@dataclass(frozen=True)
class ShortcutTest:
    """What the test says of all classes.

    Attributes
    ----------
    classes : dict of str to ClassFinding
        By name.
    tested : int
        Clusters that stand apart, in all classes together.
    """

    classes: dict[str, ClassFinding]
    tested: int

    @property
    def found(self) -> bool:
        """Whether a shortcut was found in any class."""
        return any(finding.found for finding in self.classes.values())


@dataclass(frozen=True)
class _Cluster:
    candidate: str
    conductance: float
    images: int
    wrong: int
    others: int
    others_wrong: int


def find_shortcuts(candidates: Candidates, explained: Explained, settings: AutoSettings | None = None) -> ShortcutTest:
    """Test every class.

    Parameters
    ----------
    candidates : Candidates
        Of the same images; the groupings of heatmaps are tested, with their graphs.
    explained : Explained
    settings : AutoSettings, optional
        The level, the conductance and the ratio that are asked for.
    """
    settings = settings or AutoSettings()
    wrong = ~explained.correct
    apart = [_standing_apart(candidates, label, wrong, settings) for label in range(len(explained.class_names))]
    tested = sum(len(found) for found in apart)
    findings = [
        _finding(found, wrong[explained.labels == label], tested, settings) for label, found in enumerate(apart)
    ]
    return ShortcutTest(dict(zip(explained.class_names, findings, strict=True)), tested)


def conductance(graph: sparse.csr_array, members: NDArray[np.bool_]) -> float:
    """Return the weight of the edges between some vertices and the rest, over that of all edges of the lighter side.

    Parameters
    ----------
    graph : csr_array, shape (N, N)
        Symmetric.
    members : ndarray of bool, shape (N,)

    Returns
    -------
    float in [0, 1]
        1 where a side has no edges.

    Examples
    --------
    >>> path = sparse.csr_array(np.diag([1.0, 1.0, 1.0], 1) + np.diag([1.0, 1.0, 1.0], -1))
    >>> round(conductance(path, np.array([True, True, False, False])), 3)
    0.333
    """
    degree = np.asarray(graph.sum(axis=1)).ravel()
    inside = members.astype(np.float64)
    cut = float(inside @ (graph @ (1 - inside)))
    lighter = min(float(degree[members].sum()), float(degree[~members].sum()))
    return min(cut / lighter, 1.0) if lighter > 0 else 1.0


def _standing_apart(
    candidates: Candidates, label: int, wrong: NDArray[np.bool_], settings: AutoSettings
) -> list[_Cluster]:
    """Return the clusters of one class that are small and that few edges leave, each once."""
    found: dict[bytes, _Cluster] = {}
    for candidate in candidates.each:
        if (candidate.representation, label) not in candidates.graphs:
            continue
        rows, graph = candidates.graphs[candidate.representation, label]
        index: IntArray = candidate.groups.index[rows]
        for group in np.unique(index[index >= 0]):
            members = index == group
            images, others = int(members.sum()), int((~members).sum())
            key = np.packbits(members).tobytes() + candidate.representation.encode()
            if key in found or min(images, others) < FEWEST or images > settings.minority * (images + others):
                continue
            value = conductance(graph, members)
            if value <= settings.conductance:
                k, rest = int(wrong[rows][members].sum()), int(wrong[rows][~members].sum())
                found[key] = _Cluster(candidate.name, value, images, k, others, rest)
    return list(found.values())


def _finding(apart: list[_Cluster], wrong: NDArray[np.bool_], tested: int, settings: AutoSettings) -> ClassFinding:
    """Return what is said of one class, given which of its images are classified wrong."""
    if not len(wrong):
        return ClassFinding.nothing(None, "None of the images is of this class, so there is nothing to test.")
    if not wrong.any():
        return ClassFinding.nothing(
            False, f"None of its {len(wrong):,} images is classified wrong, so no group of them can be worse."
        )
    if not apart:
        return ClassFinding.nothing(
            False, "Its heatmaps form no small cluster that stands apart, so there is nothing to test."
        )
    p_values = [_p_value(cluster, settings.ratio) for cluster in apart]
    best = int(np.argmin(p_values))
    cluster, p_value = apart[best], min(1.0, p_values[best] * tested)
    rate, rest = cluster.wrong / cluster.images, cluster.others_wrong / cluster.others
    right = cluster.images - cluster.wrong
    return ClassFinding(
        found=p_value <= settings.level,
        p_value=p_value,
        effect=rate - rest,
        effect_low=1 - upper_bound(right, cluster.images) - upper_bound(cluster.others_wrong, cluster.others),
        images=cluster.images,
        conductance=cluster.conductance,
        candidate=cluster.candidate,
        why=f"{cluster.wrong} of {cluster.images} images in a cluster that stands apart are classified wrong, "
        f"{cluster.others_wrong} of the other {cluster.others}.",
    )


def _p_value(cluster: _Cluster, ratio: float) -> float:
    """Return the chance of so many errors if the cluster's rate were so many times that of the rest of its class.

    The rest's rate is known only as well as its images say, so the chance is the mean over what it may be: a beta
    distribution, of Jeffreys' prior.
    """
    right = cluster.others - cluster.others_wrong
    shares = expit(np.linspace(-15, 15, RATES))  # close together at both ends, where small chances come from
    rates = beta.ppf(shares, cluster.others_wrong + 0.5, right + 0.5)
    chances = binom.sf(cluster.wrong - 1, cluster.images, np.minimum(rates * ratio, 1.0))
    return float(np.average(chances, weights=shares * (1 - shares)))


def upper_bound(count: int, total: int) -> float:
    """Return the upper end of the one-sided 95 % interval of a rate (Clopper and Pearson, 1934).

    Examples
    --------
    >>> round(upper_bound(0, 29), 3)
    0.098
    """
    return float(beta.ppf(0.95, count + 1, total - count)) if count < total else 1.0
