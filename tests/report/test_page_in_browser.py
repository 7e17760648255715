"""The report page in a real browser, headless Chromium: what a reader does, and what must never happen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import Open, downloaded, edit, point_on_screen, selected
from playwright.sync_api import Browser
from sample_page import GROUPS, HOSTILE, as_it_is, sample_choice, sample_page

from exmap.report.page import render_page
from running import finished_run

pytestmark = pytest.mark.long  # a browser and a page for each


def test_the_page_opens_from_disk_and_shows_every_section(opened: Open) -> None:
    tab = opened()
    assert tab.title() == "exmap report: pets, seed 0"
    titles = ["Groups of heatmaps", "Map of the heatmaps", "Why this many clusters", "Trust", "Provenance"]
    assert tab.locator("h2").all_inner_texts() == titles
    assert tab.locator("article h4").all_inner_texts() == [GROUPS[1], GROUPS[0], GROUPS[2]]
    assert selected(tab).startswith("300 of 300 images selected")


def test_all_groupings_that_were_weighed_open_by_keyboard(opened: Open) -> None:
    tab = opened(sample_page(choice=sample_choice()))
    assert tab.locator("nav a[href='#choice']").inner_text() == "Choice"
    rows = tab.locator("#choice details tbody tr")
    assert not rows.first.is_visible()
    tab.locator("#choice summary").focus()
    tab.keyboard.press("Enter")
    assert rows.count() == 4
    assert rows.first.is_visible()
    tab.keyboard.press("Tab")  # what scrolls sideways on a phone can be reached
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "All groupings"


def test_the_page_of_a_real_run_opens_and_its_cards_filter_the_map(
    opened: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = finished_run(tmp_path_factory)
    tab = opened((run / "report" / "report.html").read_text(encoding="utf-8"))
    assert selected(tab).startswith("450 of 450 images selected")
    count = int(tab.locator("article .facts").first.inner_text().split()[0])
    tab.locator("button[data-show-group]").first.click()
    assert selected(tab).startswith(f"{count} of 450 images selected")
    assert tab.locator("#selected button .tile.image").count() == min(count, 18)


def test_the_map_is_drawn_in_the_colours_of_its_legend(opened: Open) -> None:
    tab = opened()
    tab.locator("#map").scroll_into_view_if_needed()
    tab.wait_for_timeout(200)
    drawn = tab.evaluate(
        """() => {
          const canvas = document.getElementById("map");
          const bytes = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          const seen = new Set();
          for (let i = 0; i < bytes.length; i += 4) if (bytes[i + 3] > 200) seen.add([...bytes.slice(i, i + 3)].join());
          return [...seen];
        }"""
    )
    legend = tab.locator("#legend .swatch").evaluate_all(
        "(all) => all.map((one) => getComputedStyle(one).backgroundColor.match(/\\d+/g).map(Number))"
    )
    assert len(legend) == 3
    colours = [tuple(map(int, text.split(","))) for text in drawn]
    assert all(any(max(abs(a - b) for a, b in zip(one, c, strict=True)) < 12 for c in colours) for one in legend)


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("class", ["class cat (150)", "class dog (150)"]),
        ("correctness", ["right before and after (285)", "repaired: right after retraining only (15)"]),
        ("truth", ["cat, red (120)", "cat, blue (30)", "dog, red (150)"]),
    ],
)
def test_the_map_can_be_coloured_otherwise(opened: Open, way: str, names: list[str]) -> None:
    tab = opened()
    tab.locator("#colour").select_option(way)
    assert tab.locator("#legend li").all_inner_texts() == names


def test_before_retraining_images_are_right_or_wrong_and_what_is_no_run_has_no_edits(opened: Open) -> None:
    tab = opened(as_it_is(sample_page(grouping="", command="")))
    tab.locator("#colour").select_option("correctness")
    assert tab.locator("#legend li").all_inner_texts() == ["right (285)", "wrong (15)"]
    assert "after retraining" not in tab.locator("#chosen").inner_text()
    assert "class cat, predicted dog" in tab.locator("#chosen").inner_text()
    assert not tab.locator("#save").is_visible()
    assert tab.locator("form").count() == 0


def test_a_card_filters_the_map_and_the_samples(opened: Open) -> None:
    tab = opened()
    button = tab.locator("button[data-show-group='1']")
    button.click()
    assert selected(tab).startswith("30 of 300 images selected")
    assert tab.locator("#legend li").all_inner_texts() == [f"{GROUPS[1]} (30)"]
    labels = tab.locator("#selected button").evaluate_all("(all) => all.map((one) => one.getAttribute('aria-label'))")
    assert len(labels) == 18
    assert all(GROUPS[1] in label for label in labels)
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert selected(tab).startswith("300 of 300")


def test_a_box_drawn_on_the_map_selects_what_is_in_it(opened: Open) -> None:
    tab = opened()
    tab.locator("#map").scroll_into_view_if_needed()
    box = tab.locator("#map").bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + 2, box["y"] + 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=4)  # one cluster lies above
    tab.mouse.up()
    assert selected(tab).startswith("150 of 300")
    assert tab.locator("#legend li").all_inner_texts() == [f"{GROUPS[2]} (150)"]
    tab.locator("#zoom").click()
    tab.locator("#reset").click()
    assert selected(tab).startswith("300 of 300")


def test_pointing_at_an_image_shows_it_with_its_heatmap(opened: Open) -> None:
    tab = opened()
    tab.mouse.move(*point_on_screen(tab, 1))
    tip = tab.locator("#tooltip")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    assert re.search(r"val/\d+\.png", text)
    assert GROUPS[1] in text
    assert "true group: cat, blue" in text
    assert tip.locator(".tile.image.p").count() == 1
    assert tip.locator(".tile.heat > i.h").count() == 1
    assert tip.locator(".tile.overlay > i.h").count() == 1
    drawn = tip.locator(".tile.image").evaluate("(one) => getComputedStyle(one).backgroundImage.slice(0, 25)")
    assert drawn == 'url("data:image/webp;base'


def test_the_map_and_the_samples_can_be_used_by_keyboard(opened: Open) -> None:
    tab = opened()
    tab.locator("button.sample").first.focus()
    tab.keyboard.press("Enter")
    first = tab.locator("#chosen").inner_text()
    assert "val/120.png" in first
    tab.locator("#map").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#chosen").inner_text() != first
    tab.keyboard.press("ArrowLeft")
    assert "png" in tab.locator("#chosen").inner_text()


@pytest.mark.parametrize(
    "name", ["green background", 'a "b" \\ c: #d', "été, 猫 🐈", "one\u2028two\x85\x7f three", "</script>", "{a: [b]}"]
)
def test_edits_are_downloaded_as_they_were_made_and_can_be_read(opened: Open, name: str) -> None:
    tab = opened()
    assert tab.locator("#save").is_disabled()
    form = edit(tab, 1)
    form.locator("input[name=name]").fill(name)
    form.locator("select[name=merge]").select_option(GROUPS[0])
    edit(tab, 2).locator("input[name=not]").check()
    assert tab.locator("#changes").inner_text() == "2 groups changed"
    name = "".join(c if c.isprintable() else " " for c in name).replace("   ", " ")
    assert tab.locator("#name-1").text_content() == name
    assert downloaded(tab) == {
        "format": 1,
        "source": "exmap",
        "grouping": "f" * 64,
        "edits": [
            {"group": GROUPS[1], "name": name, "merge_into": GROUPS[0]},
            {"group": GROUPS[2], "not_a_shortcut": True},
        ],
    }


@pytest.mark.parametrize("name", [GROUPS[2], "unassigned"])
def test_a_name_that_cannot_be_given_is_not_saved(opened: Open, name: str) -> None:
    tab = opened()
    field = edit(tab, 1).locator("input[name=name]")
    field.fill(name)
    assert tab.locator("#changes").inner_text() == f"another name is needed than {name}"
    assert tab.locator("#save").is_disabled()
    field.fill("something else")
    assert tab.locator("#save").is_enabled()


def test_groups_merge_only_within_their_class_and_never_in_a_circle(opened: Open) -> None:
    tab = opened()
    first, second = edit(tab, 1).locator("select"), edit(tab, 0).locator("select")
    assert first.locator("option").all_inner_texts() == ["no other group", GROUPS[0]]
    assert edit(tab, 2).locator("select option").all_inner_texts() == ["no other group"]
    first.select_option(GROUPS[0])
    assert second.is_disabled()
    first.select_option("")
    assert second.is_enabled()
    assert tab.locator("#save").is_disabled()


def test_a_hostile_name_is_shown_as_text_everywhere(opened: Open) -> None:
    tab = opened(sample_page(hostile=True, choice=sample_choice(hostile=True)))
    assert HOSTILE in tab.locator("#choice").inner_text()
    assert HOSTILE in tab.locator("#found table.bars").inner_text()
    tab.mouse.move(*point_on_screen(tab, 0))
    tab.locator("#tooltip").wait_for(state="visible")
    for place in ("#tooltip", "#chosen"):
        assert HOSTILE in tab.locator(place).inner_text()
    tab.locator("#colour").select_option("truth")
    assert HOSTILE in tab.locator("#legend").inner_text()
    assert HOSTILE in str(tab.locator("button.sample").first.get_attribute("title"))
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2
    group = tab.locator("form[data-group='2']").get_attribute("data-name")
    edit(tab, 2).locator("input[name=not]").check()
    assert downloaded(tab)["edits"] == [{"group": group, "not_a_shortcut": True}]


def test_markup_that_got_into_the_page_all_the_same_would_not_run(browser: Browser, tmp_path: Path) -> None:
    text = render_page(sample_page())
    bad = "<button id=bad onclick='window.ran = 1'>x</button><script>window.ran = 1</script><img src=https://example.org/x>"
    (tmp_path / "bad.html").write_text(text.replace("<main>", f"<main>{bad}"), encoding="utf-8")
    tab = browser.new_page()
    said: list[str] = []
    failed: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("requestfailed", lambda request: failed.append(str(request.failure)))
    tab.goto((tmp_path / "bad.html").as_uri())
    tab.locator("#bad").click()
    assert tab.evaluate("window.ran") is None
    assert sum("Content Security Policy" in text for text in said) == 3
    assert failed == ["csp"]
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_the_page_passes_axe_and_does_not_scroll_sideways(opened: Open, width: int, scheme: str) -> None:
    tab = opened(sample_page(choice=sample_choice()), width=width, scheme=scheme)
    for summary in tab.locator("summary").all():
        summary.click()
    tab.locator("button.sample").first.click()
    found = Axe().run(tab)
    assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found.response["violations"]] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_colours_follow_the_system_until_the_reader_chooses(opened: Open) -> None:
    tab = opened(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    button = tab.locator("#theme")
    button.click()
    assert button.inner_text() == "Colours: light"
    light = tab.evaluate(background)
    button.click()
    assert tab.evaluate(background) == dark != light


def test_nothing_moves_while_the_page_loads_and_is_used(opened: Open) -> None:
    tab = opened()
    tab.evaluate(
        """() => {
          window.shift = 0;
          new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
          }).observe({ type: "layout-shift", buffered: true });
        }"""
    )
    tab.mouse.move(*point_on_screen(tab, 1))
    tab.wait_for_timeout(300)
    assert tab.evaluate("window.shift") < 0.01


def test_without_pictures_heatmaps_are_shown_alone(opened: Open) -> None:
    tab = opened(sample_page(with_pictures=False, remarks=("The images were not at hand.",)))
    assert "The images were not at hand." in tab.locator("#found").inner_text()
    tab.locator("button.sample").first.click()
    assert tab.locator("#chosen .tile").count() == 1
    assert tab.locator(".tile.image, .tile.overlay").count() == 0
