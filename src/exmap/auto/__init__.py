"""Choose a grouping without group labels, and test whether there is anything to repair."""

from exmap.auto.candidates import AUTO, Candidate, Candidates, find_candidates
from exmap.auto.choice import JUDGED, AutoChoice, choose_groups
from exmap.auto.effort import Effort
from exmap.auto.exchange import Exchanges
from exmap.auto.experiment import experiment
from exmap.auto.intervene import Intervention
from exmap.auto.repair import REPAIRED_BY, data_curve, judge_last_layer
from exmap.auto.shortcut import ShortcutTest, find_shortcuts

__all__ = [
    "AUTO",
    "JUDGED",
    "REPAIRED_BY",
    "AutoChoice",
    "Candidate",
    "Candidates",
    "Effort",
    "Exchanges",
    "Intervention",
    "ShortcutTest",
    "choose_groups",
    "data_curve",
    "experiment",
    "find_candidates",
    "find_shortcuts",
    "judge_last_layer",
]
