"""What every data set, model, explainer, clusterer, group source and learner must keep, as functions for tests.

Each takes a name, a dotted path ``package.module:Thing`` or the thing itself, with options that make it quick, and
raises AssertionError with a sentence for the first promise that is broken. Our own things pass the same checks.

Examples
--------
>>> from exmap.testing import check_clusterer
>>> check_clusterer("kmeans")
"""

from exmap.testing.clusterer import check_clusterer
from exmap.testing.dataset import check_dataset
from exmap.testing.explainer import check_explainer
from exmap.testing.learner import check_learner
from exmap.testing.model import check_model_builder
from exmap.testing.source import check_source

__all__ = [
    "check_clusterer",
    "check_dataset",
    "check_explainer",
    "check_learner",
    "check_model_builder",
    "check_source",
]
