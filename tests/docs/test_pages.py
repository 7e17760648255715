"""The pages of the site, without building it: what is generated, listed and cited, and links of Markdown."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from PIL import Image

import exmap
from exmap.registry import Registry
from exmap.settings import describe_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if not page.is_relative_to(DOCS / "_build"))])
REGISTRIES = {name for name in exmap.__all__ if isinstance(getattr(exmap, name), Registry)}


@cache
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference() -> None:
    listed = set(re.findall(r"\bexmap\.(\w+)", text_of("reference/api.md")))
    assert set(exmap.__all__) <= listed


def test_every_setting_has_a_row_with_its_meaning() -> None:
    text = generate().settings()
    for row in describe_settings():
        if not row.owner:
            assert f"| `{row.name}` |" in text
            assert row.meaning, row.name


def test_every_command_and_option_is_described() -> None:
    text = generate().commands()
    for line in ("## exmap audit", "## exmap run", "### exmap data check", "`--fail-on-shortcut`", "`--rounds"):
        assert line in text
    assert "`--help`" not in text


@pytest.mark.parametrize("table", sorted(REGISTRIES))
def test_every_name_is_described(table: str) -> None:
    text = generate().names(table)
    for name in getattr(exmap, table).names():
        assert re.search(rf"^(?:### {name}\n\n\w|\| `{name}` \| \w)", text, re.M), name


def test_schemas_and_presets_are_tables() -> None:
    made = generate()
    assert "| `verdict` |" in made.schema("findings")
    assert "### results: MethodResult" in made.schema("results")
    assert "| `digits` |" in made.presets()
    assert "`conv2d`" in made.rules()


def test_a_file_of_the_root_keeps_its_links() -> None:
    text = generate().file("SECURITY")
    assert "](../plugins.md)" in text
    assert "](docs/" not in text


def test_papers_that_pages_cite_are_in_the_bibliography() -> None:
    entries = re.findall(r"author = \{(.+?)\},\n.*\n  year = \{(\d+)\}", text_of("references.bib"))
    known = {(re.sub(r"^(?:von )", "", authors.split(",")[0]), year) for authors, year in entries}
    for page in PAGES:
        for name, year in re.findall(
            r"\b([A-Z][\w-]+)(?: et al\.|, [A-Z]\w+ and [A-Z]\w+),? \(?(\d{4})\)?", page.read_text()
        ):
            assert (name, year) in known, f"{page.name} cites {name} et al., {year}; add it to docs/references.bib"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./~%#?=&+@:-]*)?|mailto:\S+@\S+", link), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        if anchor and target.suffix == ".md" and "generated:" not in target.read_text(encoding="utf-8"):
            assert anchor in anchors(target), f"{page.name} links to {link}, but there is no such heading"


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [textwrap.dedent(code) for _, code in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_and_settings_that_pages_show_can_be_read(page: Path) -> None:
    for code in blocks(page, "python"):
        if ">>>" not in code:
            ast.parse(code)
    for text in blocks(page, "yaml"):
        yaml.safe_load(text)


def test_the_model_of_the_first_page_can_be_explained() -> None:
    (code,) = (block for block in blocks(DOCS / "start" / "your-model.md", "python") if "def build" in block)
    names: dict[str, object] = {"__name__": "model"}
    exec(compile(code, "model.py", "exec"), names)
    model = names["build"]()  # type: ignore[operator]
    checked = exmap.check_model(model, torch.rand(2, 3, 64, 64))
    assert checked.passed
    assert model.preprocess(Image.new("RGB", (80, 60))).shape == (3, 64, 64)
