"""The learners of a last layer as scikit-learn estimators: features and labels in, a linear classifier out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from exmap.errors import DataError
from exmap.records import IntArray
from exmap.retrain.balanced import STRENGTHS, BalancedRegression

__all__ = ["DFRClassifier"]


class DFRClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Deep feature reweighting (Kirichenko et al., 2023) of features that are at hand.

    With the same integer as `random_state` and `seed` it finds what :class:`~exmap.retrain.DFR` finds.

    Parameters
    ----------
    strengths : sequence of float
        Values of C to choose from; smaller is sparser.
    tuning_splits : int
        Random halvings of the samples to choose by; with one strength nothing is tuned.
    subsamples : int
        Balanced subsets whose weights are averaged.
    smallest_group : int
        A smaller group takes part but does not set the balanced size.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : ndarray, shape (K,)
    coef_ : ndarray of float64, shape (K, D), or (1, D) for two classes
    intercept_ : ndarray of float64, shape (K,), or (1,) for two classes
    n_features_in_ : int
    strength_ : float
        The value of C that was chosen.
    tuning_ : dict of float to float
        Mean worst-group accuracy on the held-out halves, by strength.

    Examples
    --------
    >>> X = np.array([[-2.0], [-1.0], [1.0], [2.0]] * 10)
    >>> DFRClassifier(random_state=0).fit(X, ["left", "left", "right", "right"] * 10).predict([[-3.0], [3.0]])
    array(['left', 'right'], dtype='<U5')
    """

    def __init__(
        self,
        strengths: Sequence[float] = STRENGTHS,
        *,
        tuning_splits: int = 5,
        subsamples: int = 20,
        smallest_group: int = 6,
        random_state: Any = None,
    ) -> None:
        self.strengths = strengths
        self.tuning_splits = tuning_splits
        self.subsamples = subsamples
        self.smallest_group = smallest_group
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit the weights.

        Parameters
        ----------
        X : array-like of float, shape (N, D)
        y : array-like, shape (N,)
        groups : array-like, shape (N,), optional
            Group of each sample; an integer of -1 is unassigned. By default the classes are the groups.

        Raises
        ------
        DataError
            For groups of another length, and for fewer than two classes in the groups.
        """
        features, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        labels = labels.astype(np.int64)
        index = labels if groups is None else _numbered(groups, len(labels))
        if len(np.unique(labels[index >= 0])) < 2:
            raise DataError(
                "the samples in groups must be of at least 2 classes, got 1 class; give samples of another class, or "
                "groups for them"
            )
        regression = BalancedRegression(
            self.strengths,
            self.tuning_splits,
            self.subsamples,
            self.smallest_group,
            seed=_seed(self.random_state),
        )
        made = regression.fit(features, labels, index, len(self.classes_))
        two = len(self.classes_) == 2
        self.coef_ = made.weight[1:] - made.weight[:1] if two else made.weight
        self.intercept_ = made.bias[1:] - made.bias[:1] if two else made.bias
        self.strength_, self.tuning_ = made.strength, dict(made.tuning)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the logits, shape (N, K); for two classes that of the second against the first, shape (N,)."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = features @ self.coef_.T + self.intercept_
        return np.asarray(scores.ravel() if len(self.classes_) == 2 else scores, dtype=np.float64)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the class of each sample, shape (N,)."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of each class, shape (N, K)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return np.asarray(softmax(scores, axis=1))


def _seed(random_state: Any) -> int:
    """Return a seed: an integer is one."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


def _numbered(groups: ArrayLike, length: int) -> IntArray:
    """Return groups as numbers."""
    index = column_or_1d(np.asarray(groups))
    if len(index) != length:
        raise DataError(
            f"there must be one group per sample, got {len(index)} groups for {length} samples; use those of the same "
            "samples"
        )
    if not np.issubdtype(index.dtype, np.integer):
        index = np.unique(index, return_inverse=True)[1]
    return np.asarray(index, dtype=np.int64)
