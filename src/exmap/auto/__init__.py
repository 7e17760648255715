"""Which grouping to believe, without group labels, and whether there is anything to repair."""

from exmap.auto.candidates import Candidate, Candidates, find_candidates
from exmap.auto.choice import AutoChoice, choose_groups
from exmap.auto.repair import DataPoint, LastLayer, data_curve, judge_last_layer
from exmap.auto.shortcut import ShortcutTest, find_shortcuts

__all__ = [
    "AutoChoice",
    "Candidate",
    "Candidates",
    "DataPoint",
    "LastLayer",
    "ShortcutTest",
    "choose_groups",
    "data_curve",
    "find_candidates",
    "find_shortcuts",
    "judge_last_layer",
]
