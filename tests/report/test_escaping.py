"""Whatever a name is, it is text: a page and the tables of a notebook have the same elements as with plain names."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import sample_page as samples
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from exmap.records import Groups, GroupTable
from exmap.report.page import render_page

PARTS = (
    "<", ">", "&", '"', "'", "</script>", "<script>", "<!--", "-->", "]]>", "{{", "}}", "{%", "%}", "&lt;", "&#60",
    "onerror=", "javascript:", "`", "=", "/", "\\", " ", "a", "é", "\u2028",
)  # fmt: skip
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join)


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment",))

    def handle_data(self, data: str) -> None:
        self.text += "" if self.cdata_elem else data  # in a script or style no text is shown


@cache
def page(name: str) -> Elements:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "HOSTILE", name)
        patch.setattr(samples, "BREAKS_OUT", f"2 {name}")
        return Elements(render_page(samples.sample_page(hostile=True, with_pictures=False)))


@settings(max_examples=4, phases=[Phase.generate])  # a page takes a second: a failing name is not made simpler
@given(st.permutations(PARTS).map("".join))
def test_a_name_in_a_page_is_text(name: str) -> None:
    found, plain = page(name), page("plain")
    assert found.found == plain.found
    assert name in found.text


@given(NAMES, NAMES, NAMES)
def test_a_name_in_a_table_of_a_notebook_is_text(first: str, second: str, source: str) -> None:
    half, count = np.array([0.5, 0.25]), np.array([4, 4])

    def tables(*names: str) -> list[Elements]:
        made = (
            Groups(np.array([0, 1, -1]), names[:2], names[2], (names[2],)),
            GroupTable(names[:2], half, count, half, half),
        )
        return [Elements(each._repr_html_()) for each in made]

    for found, plain in zip(tables(first, second, source), tables("a", "b", "c"), strict=True):
        assert found.found == plain.found
        assert first in found.text
        assert second in found.text
