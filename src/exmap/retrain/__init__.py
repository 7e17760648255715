"""Group-robust learners. Each takes a model, a split and groups, and returns a model."""

from exmap.registry import LEARNERS
from exmap.retrain.adapters import Adapters
from exmap.retrain.afr import AFR
from exmap.retrain.balance import balanced_subset
from exmap.retrain.bpa import BPA
from exmap.retrain.cheapest import Cheapest
from exmap.retrain.dpe import DPE
from exmap.retrain.estimators import DFRClassifier
from exmap.retrain.exchange import Exchange
from exmap.retrain.group_dro import GroupDRO
from exmap.retrain.head import Head, check_samples
from exmap.retrain.jtt import JTT
from exmap.retrain.last_layer import DFR, ClassBalanced
from exmap.retrain.learner import LastLayer, Learner, Selection, WholeNetwork, own_head
from exmap.retrain.lff import LfF
from exmap.retrain.lp_ft import LPFT
from exmap.retrain.neurontune import NeuronTune
from exmap.retrain.norms import Norms
from exmap.retrain.project import Project
from exmap.retrain.relevance_penalty import RelevancePenalty
from exmap.retrain.reweight import RWG, SUBG

__all__ = [
    "AFR",
    "BPA",
    "DPE",
    "DFR",
    "JTT",
    "LEARNERS",
    "LPFT",
    "RWG",
    "SUBG",
    "Adapters",
    "Cheapest",
    "ClassBalanced",
    "DFRClassifier",
    "Exchange",
    "GroupDRO",
    "Head",
    "LastLayer",
    "Learner",
    "LfF",
    "NeuronTune",
    "Norms",
    "Project",
    "RelevancePenalty",
    "Selection",
    "WholeNetwork",
    "balanced_subset",
    "check_samples",
    "own_head",
]
