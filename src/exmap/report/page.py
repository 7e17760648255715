"""The report page: one frozen record of all that it shows, and the HTML text made from it.

The page is one file that asks for nothing else: styles, script, charts and pictures are in it. Whatever comes from
data (names, labels, settings) reaches it through Jinja's escaping or as JSON; a content security policy allows the
page's own script and nothing more.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exmap.report.cards import ClusterCard, Comparison, Strategy
from exmap.report.choice_card import ChoiceCard
from exmap.report.description_card import ChosenGroup
from exmap.report.percentages import percent
from exmap.report.points import Points
from exmap.report.sprites import Sheet
from exmap.report.trust_card import TrustCard

__all__ = ["Page", "render_page"]

SCRIPTS = ("data.js", "map.js", "selection.js", "edits.js")  # one function in the page, in this order


@dataclass(frozen=True)
class Page:
    """All that the report shows.

    Attributes
    ----------
    title, headline : str
    remarks : sequence of str
        What the reader must know beside it, for example that the images were not at hand.
    comparisons : sequence of Comparison
        On the test split; empty where nothing was evaluated.
    labels_used : mapping of str to sequence of str
        Kinds of labels by step.
    split : str
        Name of the grouped split.
    class_names, truth_names : sequence of str
        The latter empty where true groups are not known.
    strategies : sequence of Strategy
    points : Points
    pictures, heats : Sheet or None
        Tiles of images and of their heatmaps, with the same numbers. Without the images the pictures are None.
    means : Sheet or None
    clusterings : sequence of ClusterCard
    trust : TrustCard
    provenance : sequence of (name, value)
    settings : str
        YAML.
    seconds : mapping of str to float
    command : str
        That makes the run again; empty for an analysis that is no run.
    grouping : str
        Digest of the grouping, for edits; empty where these are not to be made.
    choice : ChoiceCard or None
        None in runs that do not choose their groups.
    whole_network : bool
        Whether not the last layer alone was retrained.
    method : str
        What repaired the classifier, where that is to be said; empty for the last layer on the groups found here.
    chosen : mapping of str to sequence of ChosenGroup
        By class, where the chosen groups are others than those shown.
    cross_fitted : bool
        Whether images are measured by what was fitted to the others.
    measured : str
        What the images are called that accuracies are measured on.
    judged : bool
        Whether the headline begins with accuracies of classes by which the repair was judged.
    """

    title: str
    headline: str
    remarks: Sequence[str]
    comparisons: Sequence[Comparison]
    labels_used: Mapping[str, Sequence[str]]
    split: str
    class_names: Sequence[str]
    truth_names: Sequence[str]
    strategies: Sequence[Strategy]
    points: Points
    pictures: Sheet | None
    heats: Sheet | None
    means: Sheet | None
    clusterings: Sequence[ClusterCard]
    trust: TrustCard
    provenance: Sequence[tuple[str, str]]
    settings: str
    seconds: Mapping[str, float]
    command: str
    grouping: str
    choice: ChoiceCard | None = None
    whole_network: bool = False
    method: str = ""
    chosen: Mapping[str, Sequence[ChosenGroup]] = field(default_factory=dict)
    cross_fitted: bool = False
    measured: str = "test images"
    judged: bool = False

    @property
    def retrained(self) -> bool:
        """Whether anything is shown after retraining."""
        after = [row.after for row in self.comparisons] + [strategy.after for strategy in self.strategies]
        return any(accuracy is not None for accuracy in after)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("exmap.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": "{:,}".format, "seconds": _duration, "p_value": _p_value}
    return environment


def render_page(page: Page) -> str:
    """Return the page as one HTML text that needs no other file and no network."""
    script = "".join(['(() => {\n"use strict";\n', *map(_asset, SCRIPTS), "})();\n"])
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            page=page,
            classes=_by_class(page.strategies),
            style=Markup(_asset("report.css")),
            script=Markup(script),
            script_digest=allowed,
            data=_for_script(page),
            sheets=[("p", page.pictures), ("h", page.heats), ("m", page.means)],
        )
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _asset(name: str) -> str:
    return (resources.files("exmap.report") / "assets" / name).read_text(encoding="utf-8")


def _by_class(strategies: Sequence[Strategy]) -> list[tuple[str, list[Strategy]]]:
    names = dict.fromkeys(strategy.class_name for strategy in strategies)
    return [(name, [strategy for strategy in strategies if strategy.class_name == name]) for name in names]


def _for_script(page: Page) -> Markup:
    """Return what the page's script reads: JSON in which nothing can end the element it stands in."""
    data = {
        "grouping": page.grouping,
        **page.points.for_script(),
        "groups": [{"group": s.group, "name": s.name, "class": s.class_name} for s in page.strategies],
        "classes": list(page.class_names),
        "truths": list(page.truth_names),
        "sheet": None if page.heats is None else {"columns": page.heats.columns, "rows": page.heats.rows},
        "pictures": page.pictures is not None,
    }
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
