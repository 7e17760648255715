"""The documents quote the figures that were measured, and the README's links lead somewhere wherever it is shown."""

from __future__ import annotations

import csv
import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def tables() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "results_tables.py")))


def test_tables_in_documents_are_those_of_the_csv_files(tables: SimpleNamespace) -> None:
    for path, names in tables.DOCUMENTS.items():
        text = path.read_text(encoding="utf-8")
        assert tables.written(text, names) == text, f"{path}: run python benchmarks/results_tables.py"


def test_a_document_without_markers_is_refused(tables: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"<!-- table: summary --> and <!-- /table --> are missing"):
        tables.written("# Results\n", ["summary"])


def test_the_page_of_the_bench_agrees_with_its_csv_file(tables: SimpleNamespace) -> None:
    page = (ROOT / "docs" / "results" / "bench.md").read_text(encoding="utf-8")
    with (ROOT / "docs" / "results" / "bench" / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        cells = " | ".join(tables.spread(row, measure) for measure in ("worst_group", "mean", "weighted_mean"))
        assert f" | {cells} | " in page, f"{row['dataset']}, {row['method']}: bench.md lacks {cells}"


def test_figures_in_the_readme_stand_on_a_page_of_results(tables: SimpleNamespace) -> None:
    before, _, rest = README.partition(tables.START.format("summary"))
    prose = before.partition("## Results")[2] + rest.partition(tables.END)[2].partition("\n## ")[0]
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md"))
    figures = re.findall(r"\b\d+\.\d+\b", prose)
    assert figures
    assert [figure for figure in figures if figure not in pages] == []


def test_links_of_the_readme_are_absolute_and_lead_to_files_of_the_repository() -> None:
    links = {first or second for first, second in LINK.findall(README)}
    assert any(link.startswith(BASE) for link in links)
    for link in links:
        assert link.startswith("https://"), f"{link} does not work where the README is shown alone"
        if link.startswith(f"{BASE}/"):
            kind, branch, path = link.removeprefix(f"{BASE}/").partition("#")[0].split("/", 2)
            assert (kind, branch) in {("blob", "main"), ("raw", "main"), ("tree", "main")}, link
            assert (ROOT / path).exists(), f"{link} leads to no file of the repository"


def test_pictures_of_the_readme_say_what_they_show() -> None:
    alternatives = re.findall(r"!\[([^\]]*)\]", README)
    assert alternatives
    assert all(len(words) > 20 for words in alternatives)
    assert README.count("<img") == len(re.findall(r"<img[^>]* alt=\"[^\"]{20,}\"", README))


@pytest.mark.parametrize("command", ["pip install exmap", "exmap audit --model", "make demo", "make test"])
def test_the_readme_shows_the_first_commands(command: str) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert any(command in block for language, block in blocks if not language)
