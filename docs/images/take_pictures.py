"""Take the pictures of a report that the README shows: `python take_pictures.py RUN_DIR/report/report.html`.

The run is the audit in `examples/audit/train_shoes.py`; the browser is Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
WIDTH = 1100
SHOTS = {  # name -> what the picture begins with, and its height in pixels
    "audit-1-verdict": ("h1", 705),
    "audit-2-groups": (".chosen-groups", 428),
    "audit-3-map": (".explore", 540),
    "audit-4-evidence": ("h3:has-text('Is there a shortcut?')", 412),
}


def main() -> None:
    page = Path(sys.argv[1]).resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 900})
        tab.goto(page)
        tab.wait_for_timeout(1500)
        for name, (place, height) in SHOTS.items():
            box = tab.locator(place).first.bounding_box()
            assert box is not None
            top = 0 if place == "h1" else box["y"] - 12
            clip = {"x": 0, "y": top, "width": WIDTH, "height": height}
            tab.screenshot(path=HERE / f"{name}.png", full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
