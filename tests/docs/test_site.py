"""The built site: no warning, links and anchors that lead somewhere, search, and pages that everybody can read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

import exmap
from browsers import launched
from sharing import shared

pytestmark = pytest.mark.long  # a build of the site, and a browser

DOCS = Path(__file__).parents[2] / "docs"
LOOKED_AT = (  # one page of each kind
    "index.html",
    "start/read-the-report.html",
    "tutorials/audit.html",
    "explanation/method.html",
    "reference/cli.html",
    "reference/settings.html",
    "reference/api/exmap.DFR.html",
    "results/auto.html",
    "glossary.html",
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    return shared(tmp_path_factory, "site", build)


def build(folder: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--keep-going", "--quiet"]
    ended = subprocess.run([*command, str(DOCS), str(folder)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


class Page(HTMLParser):
    """What a page holds: ids, links, and images without a text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.silent: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids.update(found[name] for name in ("id", "name") if name in found)
        self.links += [
            found[name] for name in ("href", "src") if name in found and tag in ("a", "img", "link", "script")
        ]
        if tag == "img" and not found.get("alt"):
            self.silent.append(found.get("src", ""))


@cache
def read(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if not path.is_relative_to(site / "_static")]


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    wrong = []
    for path in pages(site):
        for link in read(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/\S*)?|mailto:\S+@\S+|data:\S+", link):
                    wrong.append((path.name, link))
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target.suffix == ".html" and anchor not in read(target).ids):
                wrong.append((path.name, link))
    assert wrong == []


def test_every_picture_has_a_text(site: Path) -> None:
    assert {path.name: read(path).silent for path in pages(site) if read(path).silent} == {}


def test_every_public_thing_has_a_page_with_its_docstring(site: Path) -> None:
    for name in exmap.__all__:
        if not name.isupper() or isinstance(getattr(exmap, name), type):  # tables of names are described together
            text = (site / "reference" / "api" / f"exmap.{name}.html").read_text(encoding="utf-8")
            beginning = re.match(r"[\w ,-]*", getattr(exmap, name).__doc__ or "")
            assert beginning is not None
            assert beginning[0] in text, name


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_page_is_accessible_and_asks_for_nothing(site: Path, browser: Browser, page: str) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    foreign: list[str] = []
    tab.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else foreign.append(request.url)
    )
    tab.goto((site / page).as_uri())
    tab.wait_for_timeout(300)
    found = Axe().run(tab)
    context.close()
    assert found.violations_count == 0, found.generate_report()
    assert foreign == []


def test_search_finds_pages(site: Path, browser: Browser) -> None:
    tab = browser.new_page()
    tab.goto(f"{(site / 'search.html').as_uri()}?q=eigengap")
    tab.wait_for_selector("#search-results li a")
    assert tab.locator("#search-results li").count() >= 3
    tab.close()


def test_a_narrow_screen_scrolls_tables_and_not_the_page(site: Path, browser: Browser) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    for page in ("index.html", "reference/settings.html", "results/bench.html", "run-folder.html"):
        tab.goto((site / page).as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 392, page
    tab.close()
