"""The map of the report page in a real browser: what is selected on it, saved as groups, and how quickly it is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Open, downloaded, edit, selected
from playwright.sync_api import Page as Tab
from sample_page import GROUPS, SIZES, sample_page

from exmap.groups import edit_groups
from exmap.records import Explained, Groups, Outputs
from exmap.report.page import Page
from exmap.report.points import Points
from exmap.settings import Edits

MANY = 50_000
MOVING, ONCE = 25, 500  # milliseconds of script in a frame: a twentieth and a tenth of that where nothing else runs

pytestmark = pytest.mark.long  # a browser and a page for each


def corner_of(tab: Tab) -> tuple[float, float, float]:
    """Return where the map begins on the screen, and how wide it is."""
    tab.locator("#map").scroll_into_view_if_needed()
    box = tab.locator("#map").bounding_box()
    assert box is not None
    return box["x"], box["y"], box["width"]


def drag(tab: Tab, *shares: tuple[float, float], steps: int = 4) -> None:
    """Draw along places on the map, each as a share of its side."""
    left, top, side = corner_of(tab)
    for number, (x, y) in enumerate(shares):
        tab.mouse.move(left + side * x, top + side * y, steps=1 if number == 0 else steps)
        if number == 0:
            tab.mouse.down()
    tab.mouse.up()


RIGHT = ((0.6, 0.62), (0.99, 0.62), (0.99, 0.99), (0.6, 0.99))  # around the smallest cluster, 30 images
ABOVE = ((0.01, 0.01), (0.99, 0.01), (0.99, 0.5), (0.01, 0.5))  # the other class, 150


def counts(tab: Tab) -> dict[str, int]:
    """Return what the legend counts."""
    texts = tab.locator("#legend li").all_inner_texts()
    return {text.rpartition(" (")[0]: int(text.rpartition("(")[2].rstrip(")").replace(",", "")) for text in texts}


def save_as(tab: Tab, name: str) -> str:
    tab.locator("#own-name").fill(name)
    tab.locator("#own-name").press("Enter")
    return tab.locator("#own-note").inner_text()


def test_a_lasso_selects_what_is_inside_it(opened: Open) -> None:
    tab = opened()
    tab.locator("#tool").select_option("lasso")
    drag(tab, *RIGHT)
    assert counts(tab) == {GROUPS[1]: 30}
    drag(tab, (0.05, 0.99), (0.5, 0.01), (0.95, 0.99))  # a triangle between the two lower clusters holds few of them
    inside = counts(tab)
    assert 0 < inside[GROUPS[2]] < 150
    drag(tab, (0.4, 0.01), (0.6, 0.99), (0.4, 0.99), (0.6, 0.01))  # that crosses itself is inside twice
    assert sum(counts(tab).values()) < 300


def test_what_is_drawn_is_added_or_taken_out(opened: Open) -> None:
    tab = opened()
    drag(tab, RIGHT[0], RIGHT[2])
    assert counts(tab) == {GROUPS[1]: 30}
    tab.locator("#mode").select_option("more")
    drag(tab, ABOVE[0], ABOVE[2])
    assert counts(tab) == {GROUPS[1]: 30, GROUPS[2]: 150}
    tab.locator("#mode").select_option("less")
    drag(tab, RIGHT[0], RIGHT[2])
    assert counts(tab) == {GROUPS[2]: 150}
    tab.locator("#mode").select_option("new")
    tab.keyboard.down("Shift")
    drag(tab, RIGHT[0], RIGHT[2])
    tab.keyboard.up("Shift")
    assert counts(tab) == {GROUPS[1]: 30, GROUPS[2]: 150}
    tab.locator("#reset").click()
    tab.locator("#mode").select_option("less")
    drag(tab, ABOVE[0], ABOVE[2])  # of all
    assert counts(tab) == {GROUPS[0]: 120, GROUPS[1]: 30}


def test_only_what_is_shown_is_selected(opened: Open) -> None:
    tab = opened()
    tab.locator("#only").select_option("0")
    drag(tab, (0.01, 0.01), (0.99, 0.99))
    tab.locator("#only").select_option("")
    assert counts(tab) == {GROUPS[0]: 120}


def test_images_are_selected_by_keyboard_alone(opened: Open) -> None:
    tab = opened()
    tab.locator("#map").focus()
    tab.keyboard.press("Space")
    assert selected(tab).startswith("1 of 300 images selected")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    assert selected(tab).startswith("2 of 300")
    tab.keyboard.press("Space")
    assert selected(tab).startswith("1 of 300")
    tab.keyboard.press("Escape")
    assert selected(tab).startswith("300 of 300")
    for _ in range(80):
        tab.keyboard.press("ArrowUp")
    for _ in range(80):
        tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("b")
    assert "press B again" in selected(tab)
    for _ in range(80):
        tab.keyboard.press("ArrowDown")
    for _ in range(80):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("b")
    within = int(selected(tab).split()[0])
    assert 100 < within <= 300
    tab.keyboard.press("Escape")
    tab.locator("#near").fill("7")
    tab.locator("#select-near").press("Enter")
    assert selected(tab).startswith("7 of 300")
    assert len(counts(tab)) == 1


def test_the_map_is_enlarged_and_reduced(opened: Open) -> None:
    tab = opened()
    assert tab.locator("#whole").is_disabled()
    drag(tab, RIGHT[0], RIGHT[2])
    tab.locator("#zoom").click()
    assert counts(tab) == {GROUPS[1]: 30}
    drag(tab, (0.0, 0.0), (0.999, 0.999))  # all that is now seen
    assert counts(tab) == {GROUPS[1]: 30}
    tab.locator("#whole").click()
    assert tab.locator("#whole").is_disabled()
    tab.locator("#map").focus()
    tab.keyboard.press("+")
    assert tab.locator("#whole").is_enabled()
    tab.keyboard.press("-")
    assert tab.locator("#whole").is_disabled()
    left, top, side = corner_of(tab)
    tab.mouse.move(left + 0.3 * side, top + 0.3 * side)
    before = tab.evaluate("scrollY")
    tab.keyboard.down("Control")
    tab.mouse.wheel(0, -200)
    tab.keyboard.up("Control")
    tab.wait_for_function("!document.getElementById('whole').disabled")
    assert tab.evaluate("scrollY") == before


def test_a_selection_is_saved_as_a_group_and_can_be_applied(opened: Open) -> None:
    tab = opened()
    assert tab.locator("#own-save").is_disabled()
    assert tab.locator("#own-note").inner_text() == "select images on the map first"
    drag(tab, RIGHT[0], RIGHT[2])
    assert save_as(tab, "the  “green”\u2028ones: #1") == "30 images saved as the “green” ones: #1"
    assert tab.locator("#changes").text_content() == "1 group made"
    assert tab.locator("#own-list li").inner_text().startswith("the “green” ones: #1 30 images: 30 of class cat")
    assert counts(tab) == {"the “green” ones: #1": 30}
    assert "your group: the “green” ones: #1" in tab.locator("#chosen").inner_text()
    edit(tab, 0).locator("input[name=not]").check()
    tree = downloaded(tab)
    assert tree["selections"] == [{"name": "the “green” ones: #1", "rows": "120-149"}]
    assert tree["edits"] == [{"group": GROUPS[0], "not_a_shortcut": True}]
    groups = applied(sample_page(), tree)
    assert groups.names == (GROUPS[0], GROUPS[2], "the “green” ones: #1")
    assert groups.counts().tolist() == [120, 150, 30]


def applied(page: Page, tree: dict[str, Any]) -> Groups:
    """Return the groups of a page's images after the edits that were made in it."""
    points = page.points
    n = len(points.label)
    outputs = Outputs(np.zeros((n, 1), dtype=np.float32), np.zeros((n, 2), dtype=np.float32))
    explained = Explained("val", tuple(points.ids), points.label, tuple(page.class_names), outputs, None)
    groups = Groups(points.group, GROUPS, "exmap", ("class labels",), classes=(0, 0, 1))
    return edit_groups(groups, Edits.model_validate(tree), explained)


def test_a_group_of_several_classes_is_one_in_each_and_images_are_in_one_group_only(opened: Open) -> None:
    tab = opened()
    drag(tab, (0.01, 0.01), (0.99, 0.99))
    save_as(tab, "all")
    drag(tab, RIGHT[0], RIGHT[2])
    assert save_as(tab, "few") == "30 images saved as few; 30 were in another group of yours"
    drag(tab, ABOVE[0], ABOVE[2])
    assert counts(tab) == {"all": 150}
    assert save_as(tab, "few") == "180 images saved as few; 150 were in another group of yours"  # as well as before
    tree = downloaded(tab)
    assert tree["edits"] == []
    assert tree["selections"] == [{"name": "all", "rows": "0-119"}, {"name": "few", "rows": "120-299"}]
    found = applied(sample_page(), tree)
    assert dict(zip(found.names, found.counts().tolist(), strict=True)) == {
        "all": 120,
        "class cat / few": 30,
        "class dog / few": 150,
    }
    tab.locator("button[aria-label='Show all']").click()
    assert selected(tab).startswith("120 of 300")
    tab.locator("button[aria-label='Remove all']").click()
    tab.locator("button[aria-label='Remove few']").press("Enter")
    assert tab.locator("#own-list li").count() == 0
    assert tab.locator("#save").is_disabled()
    assert tab.locator("#colour").input_value() == "cluster"


def test_a_name_that_another_group_has_is_refused(opened: Open) -> None:
    tab = opened()
    drag(tab, RIGHT[0], RIGHT[2])
    for name in (GROUPS[0], "unassigned"):
        assert save_as(tab, name) == f"another name is needed than {name}"
        assert tab.locator("#own-save").is_disabled()
    assert save_as(tab, "mine").startswith("30 images")
    edit(tab, 0).locator("input[name=name]").fill("mine")
    assert tab.locator("#changes").text_content() == "another name is needed than mine"
    assert tab.locator("#save").is_disabled()


def test_rows_are_those_of_the_split_where_not_all_images_are_on_the_map(opened: Open) -> None:
    page = sample_page()
    rows = np.arange(300) * 1000 + 7  # beyond 16 bits
    tab = opened(replace(page, points=replace(page.points, rows=rows, total=400_000)))
    drag(tab, RIGHT[0], RIGHT[2])
    save_as(tab, "few")
    assert downloaded(tab)["selections"][0]["rows"] == ", ".join(map(str, rows[120:150]))


@pytest.mark.parametrize("width", [375, 1200])
def test_the_map_with_groups_of_the_readers_passes_axe(opened: Open, width: int) -> None:
    tab = opened(width=width)
    drag(tab, RIGHT[0], RIGHT[2])
    save_as(tab, "a name " * 25)
    drag(tab, ABOVE[0], ABOVE[2])
    tab.locator("#own-name").fill("unassigned")
    found = Axe().run(tab)
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found.response["violations"]] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ---- many points


@cache
def many() -> Page:
    """Return the page with 50,000 images on the map, in clusters of very different density."""
    rng = np.random.default_rng(0)
    group = rng.choice(3, MANY, p=np.array(SIZES) / sum(SIZES))
    centres, spread = np.array([[0.0, 0.0], [8.0, 0.0], [4.0, 6.0]]), np.array([0.1, 2.0, 1.0])
    places = (centres[group] + spread[group][:, None] * rng.normal(size=(MANY, 2))).astype(np.float32)
    label = (group == 2).astype(np.int64)
    page = sample_page()
    picture = np.where(np.arange(MANY) < 300, np.arange(MANY), -1)
    ids = page.points.ids
    points = Points(places, group, label, label, label, group, picture, ids, MANY, "UMAP")
    return replace(page, points=points)


MEASURE = """() => {
  window.frames_ = [];
  window.waiting_ = 0;
  const ask = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (use) => {
    const waiting = ++window.waiting_;
    return ask(() => {
      window.waiting_ -= 1;
      const start = performance.now();
      use(start);
      window.frames_.push({ waiting, took: performance.now() - start });
    });
  };
}"""


def frames(tab: Tab) -> list[dict[str, float]]:
    """Return of each drawing since the last call how many waited with it, and the milliseconds it took.

    Times of frames do not tell drawings of one frame apart: a busy machine gives two frames the same time.
    """
    tab.wait_for_timeout(100)
    found: list[dict[str, float]] = tab.evaluate("window.frames_.splice(0)")
    return found


def test_fifty_thousand_points_are_drawn_once_a_frame_and_quickly(opened: Open) -> None:
    tab = opened(many())
    tab.evaluate(MEASURE)
    left, top, side = corner_of(tab)
    frames(tab)
    took = {}
    for number in range(60):
        tab.mouse.move(left + side * (0.1 + 0.01 * number), top + side * 0.5)
    hovered = frames(tab)
    assert {frame["waiting"] for frame in hovered} == {1}  # a frame has one drawing, whatever was asked since the last
    took["pointing"] = hovered
    tab.locator("#tool").select_option("lasso")
    angles = np.linspace(0, 2 * np.pi, 60)
    drag(tab, *zip(0.5 + 0.4 * np.cos(angles), 0.5 + 0.4 * np.sin(angles), strict=True), steps=2)
    took["lasso"] = frames(tab)
    assert 0 < int(selected(tab).split()[0].replace(",", "")) < MANY
    for way in ("class", "correctness", "cluster"):
        tab.locator("#colour").select_option(way)
        took[way] = frames(tab)
    tab.locator("#zoom").click()
    took["zoom"] = frames(tab)
    for what, found in took.items():
        slowest = MOVING if what in ("pointing", "lasso") else ONCE
        assert np.median([frame["took"] for frame in found]) < slowest, what
    save_as(tab, "many")
    assert downloaded(tab)["selections"][0]["name"] == "many"
