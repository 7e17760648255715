"""The Python front door: load, train, infer groups, retrain, evaluate, analyze; nothing here touches a run folder."""

from exmap.api.analyzing import analyze
from exmap.api.chain import evaluate, load, train
from exmap.api.in_rounds import analyze_in_rounds
from exmap.api.sources import GEORGE, ExMap

__all__ = ["GEORGE", "ExMap", "analyze", "analyze_in_rounds", "evaluate", "load", "train"]
