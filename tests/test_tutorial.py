"""The tutorial's cells run as they stand, and print what a reader is shown."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorials" / "audit.ipynb"


def test_the_notebook_holds_its_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])


@pytest.mark.long
def test_the_cells_run() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    said = StringIO()
    with redirect_stdout(said):
        exec(compile(source, str(NOTEBOOK), "exec"), {"__name__": "tutorial"})
    assert said.getvalue().startswith("shortcut\nA shortcut was found in ")
    assert "worst group" in said.getvalue()
