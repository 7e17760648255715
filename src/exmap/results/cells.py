"""What a bench writes of each cell: one file in cells/ per data set, method and seed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from exmap.results.measured import GroupInference, MethodResult
from exmap.results.part import Part

__all__ = ["CellResult", "CellSeconds", "DoneCell", "FailedCell", "read_cell"]


class CellSeconds(Part):
    """How long a cell took."""

    shared: NonNegativeFloat = Field(description="Seconds of what it shares with others: the classifier, the heatmaps.")
    groups: NonNegativeFloat = Field(description="Seconds to infer its groups, with what only their source needs.")
    fit: NonNegativeFloat = Field(description="Seconds to fit the learner, all repeats together.")


class _Cell(Part):
    file_name: ClassVar[str] = "a bench's cell"
    made_by: ClassVar[str] = "exmap bench"

    format: Literal[1] = Field(1, description="Format of the file.")
    dataset: str = Field(description="Name of the data set's settings in the bench.")
    method: str = Field(description="The method, for example exmap[size=7]+dfr.")
    seed: int = Field(ge=0, description="Seed of the run that the cell belongs to.")
    identity: str = Field(description="Digest of the settings, seed and method that the cell was made from.")


class DoneCell(MethodResult, _Cell):
    """A cell that was measured."""

    status: Literal["done"] = Field("done", description="That the cell was measured.")
    n_clusters: tuple[int, ...] | None = Field(
        None, description="Clusters of each fit of its source of groups; absent where the method has no groups."
    )
    groups_of: str | None = Field(None, description="The split its groups are of: train or val.")
    group_inference: GroupInference | None = Field(
        None, description="How well its groups follow the true groups, where those are known."
    )
    seconds: CellSeconds = Field(description="How long it took.")


class FailedCell(_Cell):
    """A cell that could not be measured."""

    status: Literal["failed"] = Field("failed", description="That the cell was not measured.")
    reason: str = Field(description="Why, in one sentence.")
    details: str = Field(description="The error's traceback, or what else is known of it.")


CellResult = DoneCell | FailedCell


def read_cell(tree: Any, *, where: object = None) -> CellResult:
    """Read a cell from the value of its JSON file.

    Raises
    ------
    RunFolderError
        If it is of another format, or is not as a bench writes it.
    """
    failed = isinstance(tree, dict) and tree.get("status") == "failed"
    return FailedCell.from_json(tree, where=where) if failed else DoneCell.from_json(tree, where=where)
