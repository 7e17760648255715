"""The tutorials run, and are saved with the outputs of a whole run that are small and name nothing of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from notebooks import TUTORIALS, execute, notebooks

each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_each_is_in_the_table_of_contents() -> None:
    names = {path.stem for path in notebooks()}
    contents = (TUTORIALS / "index.md").read_text(encoding="utf-8")
    assert len(names) == 5
    assert set(re.findall(r"^(\w+)$", contents.split("```{toctree}")[1], flags=re.MULTILINE)) == names
    assert set(re.findall(r"\((\w+)\.ipynb\)", contents)) == names


@each_notebook
def test_it_is_saved_as_one_whole_run_left_it(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@each_notebook
def test_it_is_small_and_names_nothing_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 250_000
    said = json.dumps([cell.outputs for cell in code_cells(path)])
    above = re.escape(f"/{TUTORIALS.resolve().parts[1]}/")  # where the project lies on the machine that tests it
    assert not re.search(rf"/tmp/|/home/|/root/|{above}|site-packages", said)


@each_notebook
def test_its_pictures_have_words_and_its_links_lead_somewhere(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (path.parent / target).exists(), target
    for output in (output for cell in code_cells(path) for output in cell.outputs):
        for picture in re.findall(r"<img[^>]*>", output.get("data", {}).get("text/html", "")):
            assert re.search(r' alt="[^"]+"', picture)


@pytest.mark.long
@each_notebook
def test_it_runs(path: Path) -> None:
    book = execute(path)
    assert not [output for cell in book.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
