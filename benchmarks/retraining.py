"""Measure last-layer retraining (DFR) beside the plain loop it stands for, in one process, and print ratios.

The plain loop is what one writes from the paper with scikit-learn: for every strength and half, standardise, fit
liblinear from zero, score; then 20 fits more, averaged. It runs with scikit-learn's own tolerance, and with one that
makes liblinear converge about as far as ours does.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from exmap.evaluation import worst_share
from exmap.records import Groups
from exmap.retrain import DFR
from exmap.retrain.balance import balanced_subset
from exmap.retrain.last_layer import halves
from exmap.runtime import generator
from table import print_table

CASES = {  # samples, sizes of the four groups' shares
    "10,000 x 512, minorities of 0.5 %": (10_000, (0.495, 0.005, 0.005, 0.495)),
    "4,000 x 512, even groups": (4_000, (0.25, 0.25, 0.25, 0.25)),
}
TOLERANCES = {"plain loop": 1e-4, "plain loop, converged": 1e-6}
COLUMNS = ("case", "plain loop, s", "plain loop, converged, s", "ours, s", "plain / ours", "converged / ours")


def planted(number: int, shares: tuple[float, ...], width: int = 512, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return features as a ReLU leaves them, labels and groups: a strong shortcut, and a weak sign of the class."""
    rng = np.random.default_rng(seed)
    index = rng.choice(4, number, p=shares)
    labels, mark = index // 2, index % 2
    mixing = rng.standard_normal((width, width)) / np.sqrt(width)
    signs = np.zeros((number, width))
    signs[:, :20] = 0.4 * (2 * labels - 1)[:, None]
    signs[:, 20:40] = 1.5 * (2 * mark - 1)[:, None]
    features = np.maximum((signs + rng.standard_normal((number, width))) @ (np.eye(width) + 0.5 * mixing), 0)
    return features.astype(np.float32), labels.astype(np.int64), index.astype(np.int64)


def plain_loop(
    features: np.ndarray, labels: np.ndarray, index: np.ndarray, learner: DFR, tolerance: float
) -> tuple[float, np.ndarray]:
    """Return the strength and the averaged weights, in the standardised features."""

    def fit(rows: np.ndarray, strength: float) -> LogisticRegression:
        regression = LogisticRegression(
            l1_ratio=1, C=strength, solver="liblinear", tol=tolerance, max_iter=2_000, random_state=0
        )
        return regression.fit(scaled[rows], labels[rows])

    scores: dict[float, list[float]] = {strength: [] for strength in learner.strengths}
    for strength in learner.strengths:
        for number in range(learner.tuning_splits):
            scaled = StandardScaler().fit_transform(features.astype(np.float64))
            rng = generator(learner.seed, "halves", number)
            fitted, held_out = halves(index, rng)
            regression = fit(fitted[balanced_subset(index[fitted], rng, smallest_group=6)], strength)
            right = regression.predict(scaled[held_out]) == labels[held_out]
            scores[strength].append(worst_share(right, index[held_out]))
    chosen = max(scores, key=lambda strength: float(np.mean(scores[strength])))
    weights = []
    for number in range(learner.subsamples):
        scaled = StandardScaler().fit_transform(features.astype(np.float64))
        rng = generator(learner.seed, "subsample", number)
        weights.append(fit(balanced_subset(index, rng, smallest_group=6), chosen).coef_[0])
    return chosen, np.mean(weights, axis=0)


def measure(repeats: int = 3) -> list[dict[str, Any]]:
    """Return a row per case: seconds (the best of the repeats), chosen strengths, how far weights differ."""
    rows = []
    for name, (number, shares) in CASES.items():
        features, labels, index = planted(number, shares)
        groups = Groups(index, ("a", "b", "c", "d"), "planted", ())
        learner = DFR()
        row: dict[str, Any] = {"case": name}
        best = np.inf
        for _ in range(repeats):
            start = time.perf_counter()
            head = learner.fit_head(features, labels, groups, n_classes=2)
            best = min(best, time.perf_counter() - start)
        row |= {"ours": best, "strength": head.strength}
        ours = (head.weight[1] - head.weight[0]) * features.std(axis=0, dtype=np.float64)
        for kind, tolerance in TOLERANCES.items():
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                strength, weights = plain_loop(features, labels, index, learner, tolerance)
            row[kind] = time.perf_counter() - start
            row[f"{kind}: strength"] = strength
            row[f"{kind}: largest difference of a weight"] = float(np.abs(weights - ours).max() / np.abs(ours).max())
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    times = [row[kind] for kind in TOLERANCES]
    cells = [row["case"], *(f"{seconds:.2f}" for seconds in (*times, row["ours"]))]
    cells += [f"{seconds / row['ours']:.1f}" for seconds in times]
    strengths = " / ".join(f"{row[key]:g}" for key in (*(f"{kind}: strength" for kind in TOLERANCES), "strength"))
    apart = " / ".join(f"{row[f'{kind}: largest difference of a weight']:.0e}" for kind in TOLERANCES)
    return "| " + " | ".join([*cells, strengths, apart]) + " |"


HEADER = (
    f"| {' | '.join(COLUMNS)} | chosen C: plain / converged / ours | largest difference of a weight |\n|" + "---|" * 8
)


if __name__ == "__main__":
    print_table(__doc__, HEADER, line, measure, 3)
