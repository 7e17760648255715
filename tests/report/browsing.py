"""What a reader does in the report page, for tests in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Download
from playwright.sync_api import Page as Tab

from exmap.settings import load_edits

Open = Callable[..., Tab]


def point_on_screen(tab: Tab, group: int) -> tuple[float, float]:
    """Return where the first sample of a strategy lies on the map, as the reader sees it."""
    tab.locator(f"article:has(#name-{group}) button.sample").first.click()
    tab.locator("#map").scroll_into_view_if_needed()
    box = tab.locator("#map").bounding_box()
    assert box is not None
    place = tab.evaluate(
        """(group) => {
          const data = JSON.parse(document.getElementById("data").textContent);
          const unpack = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
          const [x, y, groups] = [data.x, data.y, data.group].map(unpack);
          const i = groups.indexOf(group);
          return [x[i] / 65534, y[i] / 65534];
        }""",
        group,
    )
    return tuple(box[corner] + box["width"] * (0.04 + 0.92 * share) for corner, share in zip("xy", place, strict=True))


def selected(tab: Tab) -> str:
    return tab.locator("#selection").inner_text()


def edit(tab: Tab, group: int) -> Any:
    tab.locator(f"article:has(#name-{group}) details.edit > summary").click()
    return tab.locator(f"form[data-group='{group}']")


def downloaded(tab: Tab) -> dict[str, Any]:
    with tab.expect_download() as waiting:
        tab.locator("#save").click()
    file: Download = waiting.value
    assert file.suggested_filename == "edits.yaml"
    load_edits(file.path())
    tree: dict[str, Any] = yaml.safe_load(Path(file.path()).read_text(encoding="utf-8"))
    return tree
