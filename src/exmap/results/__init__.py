"""What a run and a bench write, as typed and immutable records with JSON to and fro."""

from exmap.results.cells import CellResult, CellSeconds, DoneCell, FailedCell, read_cell
from exmap.results.choice import (
    AutoRecord,
    ClassFinding,
    DataCurvePoint,
    DoubtfulLabels,
    LastLayerVerdict,
    PropertyReliance,
    Reliance,
    ScoredGrouping,
)
from exmap.results.description import (
    ConstantPatch,
    Difference,
    RelevancePlace,
    StrategyDescription,
    descriptions_from_json,
)
from exmap.results.findings import Findings
from exmap.results.measured import ClassAgreement, ClassHarm, GroupAccuracy, GroupInference, MethodResult
from exmap.results.part import FORMAT, Part
from exmap.results.repairs import RepairTrial, repairs_in_words
from exmap.results.rounds import FoundShortcut, Round, Rounds
from exmap.results.run import ClusterFit, HeatmapCheck, HeatmapHealth, Results, TrainedOn
from exmap.results.trust import GradientAgreement, Quantiles, Rerun, Trust

__all__ = [
    "FORMAT",
    "AutoRecord",
    "CellResult",
    "CellSeconds",
    "ClassAgreement",
    "ClassFinding",
    "ClassHarm",
    "ClusterFit",
    "ConstantPatch",
    "DataCurvePoint",
    "DoubtfulLabels",
    "Difference",
    "DoneCell",
    "FailedCell",
    "Findings",
    "FoundShortcut",
    "GradientAgreement",
    "GroupAccuracy",
    "GroupInference",
    "HeatmapCheck",
    "HeatmapHealth",
    "LastLayerVerdict",
    "MethodResult",
    "Part",
    "PropertyReliance",
    "Quantiles",
    "RelevancePlace",
    "Reliance",
    "RepairTrial",
    "Rerun",
    "Results",
    "Round",
    "Rounds",
    "StrategyDescription",
    "ScoredGrouping",
    "TrainedOn",
    "Trust",
    "descriptions_from_json",
    "read_cell",
    "repairs_in_words",
]
