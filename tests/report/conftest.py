"""A browser for the tests of the report page, and a page that is opened from disk in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from browsing import Open
from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab
from sample_page import sample_page

from browsers import launched
from exmap.report.page import render_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Open a page from disk; on leaving it must have had no error, no dialog and no request beside its own."""
    wrong: list[str] = []
    contexts = []

    def open_page(page: Any = None, *, width: int = 1200, height: int = 900, scheme: str = "light") -> Tab:
        path = tmp_path / "report.html"
        text = page if isinstance(page, str) else render_page(page) if page else usual_text()
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: wrong.append(request.url) if is_foreign(request.url, path) else None)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@cache
def usual_text() -> str:
    """Return the text of the page that most tests open."""
    return render_page(sample_page())


def is_foreign(url: str, path: Path) -> bool:
    return not url.startswith(("data:", "blob:")) and url.split("#")[0] != path.as_uri()
