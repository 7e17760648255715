"""Group-robust learners. Each takes a model, a split and groups, and returns a model."""

from exmap.registry import LEARNERS
from exmap.retrain.afr import AFR
from exmap.retrain.balance import balanced_subset
from exmap.retrain.bpa import BPA
from exmap.retrain.group_dro import GroupDRO
from exmap.retrain.jtt import JTT
from exmap.retrain.last_layer import DFR, ClassBalanced, Head
from exmap.retrain.learner import Learner, Selection, WholeNetwork
from exmap.retrain.lff import LfF
from exmap.retrain.reweight import RWG, SUBG

__all__ = [
    "AFR",
    "BPA",
    "DFR",
    "JTT",
    "LEARNERS",
    "RWG",
    "SUBG",
    "ClassBalanced",
    "GroupDRO",
    "Head",
    "Learner",
    "LfF",
    "Selection",
    "WholeNetwork",
    "balanced_subset",
]
