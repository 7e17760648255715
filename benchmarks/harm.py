"""What a repair does to rare classes and to the worst group: handed over as fitted, and as `harm="keep"` hands it over.

    python benchmarks/harm.py --images 5 20 335 --seeds 100 115

Simulated penultimate features: four classes, a shortcut between the first two that holds for 95 % of the images, a
softmax regression as the classifier. The fourth class has the given number of images among a thousand that DFR is
fitted to. Accuracies are those of 4,000 other images, in which the shortcut holds for half.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression

from exmap.records import Groups
from exmap.retrain import DFR, Head
from exmap.retrain.harm import judge_head

CLASSES, FEATURES, LAST = 4, 30, "abcd"
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, labels, groups


def draw(rng: np.random.Generator, counts: list[int], centres: np.ndarray, holds: float) -> Drawn:
    """Return images of each class; the groups are the sides of the shortcut, and the other classes."""
    labels = np.repeat(np.arange(CLASSES), counts)
    features = rng.normal(size=(len(labels), FEATURES)) + centres[labels]
    follows = np.where(rng.random(len(labels)) < holds, labels, 1 - labels)
    side = np.where(labels < 2, follows, rng.integers(0, 2, len(labels)))
    features[:, -1] += 3 * (side - 0.5)
    return features.astype(np.float32), labels, np.where(labels < 2, 2 * labels + side, labels + 2)


def measured(head: Head, test: Drawn) -> tuple[np.ndarray, float]:
    """Return the accuracy of each class, and of the worst of the four groups of the shortcut."""
    features, labels, groups = test
    right = head.predict(features) == labels
    return (
        np.array([right[labels == k].mean() for k in range(CLASSES)]),
        float(min(right[groups == g].mean() for g in range(4))),
    )


def repairs(images: int, seeds: range) -> Iterator[tuple[float, ...]]:
    """Yield for each seed what :func:`main` prints the means of."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        centres = np.zeros((CLASSES, FEATURES))
        centres[:, :12] = rng.normal(size=(CLASSES, 12)) * 0.75
        train = draw(rng, [2000, 2000, 2000, 60], centres, 0.95)
        features, labels, index = draw(rng, [330, 330, 335, images], centres, 0.95)
        test = draw(rng, [1000] * CLASSES, centres, 0.5)
        fitted = LogisticRegression(max_iter=500).fit(train[0], train[1])
        own = Head(fitted.coef_.astype(np.float32), fitted.intercept_.astype(np.float32))
        groups = Groups(index, tuple(f"group {g}" for g in range(6)), "simulated", ())
        learner = DFR()
        head = learner.fit_head(features, labels, groups, n_classes=CLASSES, head=own)
        verdict = judge_head(learner, head, features, labels, groups, own=own, class_names=tuple(LAST))
        (was, worst), (plain, plain_worst), (kept, kept_worst) = (
            measured(each, test) for each in (own, head, verdict.applied(head, own, features))
        )
        yield worst, plain_worst, kept_worst, was[-1], plain[-1], kept[-1], min(plain - was), min(kept - was)


def main() -> None:
    """Print a row for each number of images of the last class: means over seeds, in per cent, and the largest falls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5, 20, 335])
    parser.add_argument("--seeds", type=int, nargs=2, default=[100, 115])
    given = parser.parse_args()
    print("| images of class d | worst group | class d | largest fall of a class |")
    print("|---|---|---|---|")
    for images in given.images:
        rows = list(zip(*repairs(images, range(*given.seeds)), strict=True))
        means = [100 * statistics.mean(row) for row in rows[:6]]
        falls = [-100 * min(row) for row in rows[6:]]
        print(
            f"| {images} | {means[0]:.1f}, {means[1]:.1f}, {means[2]:.1f} | {means[3]:.1f}, {means[4]:.1f}, "
            f"{means[5]:.1f} | -, {falls[0]:.0f}, {falls[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
