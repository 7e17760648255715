"""JSON schemas of what exmap writes, for programs in other languages; files of them lie in ``exmap/schemas``."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from exmap.results.cells import CellResult
from exmap.results.choice import AutoRecord
from exmap.results.findings import Findings
from exmap.results.rounds import Rounds
from exmap.results.run import Results

__all__ = ["WRITTEN", "json_schema"]

WRITTEN: dict[str, Any] = {
    "results": Results,
    "auto": AutoRecord,
    "cell": CellResult,
    "findings": Findings,
    "rounds": Rounds,
}
"""What has a schema: results.json, auto.json, findings.json, rounds.json, and the files of a bench's cells."""


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``results``, ``auto``, ``findings``, ``rounds`` or ``cell``."""
    schema = TypeAdapter(WRITTEN[name]).json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema}
