"""Relevance rules by operation, and composites of them.

``RULES`` is the table of operations, :func:`rule` extends it, :func:`rules_table` shows it; ``COMPOSITES`` says which
rule linear maps get.
"""

from exmap.explain.rules import activations, attention, gradients, linear, normalisation, products, sums
from exmap.explain.rules.activations import OWN_FUNCTION, elementwise, gate
from exmap.explain.rules.composites import (
    COMPOSITES,
    DEFAULT,
    DEFAULT_ATTENTION,
    Composite,
    composite_names,
    make_composite,
)
from exmap.explain.rules.gradients import UNKNOWN, as_it_is
from exmap.explain.rules.products import product
from exmap.explain.rules.table import RULES, Rule, hold, is_held, rule, rules_table

__all__ = [
    "COMPOSITES",
    "DEFAULT",
    "DEFAULT_ATTENTION",
    "OWN_FUNCTION",
    "RULES",
    "UNKNOWN",
    "Composite",
    "Rule",
    "activations",
    "as_it_is",
    "attention",
    "composite_names",
    "elementwise",
    "gate",
    "gradients",
    "hold",
    "is_held",
    "linear",
    "make_composite",
    "normalisation",
    "product",
    "products",
    "rule",
    "rules_table",
    "sums",
]
