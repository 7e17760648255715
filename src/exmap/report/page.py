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
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records import IntArray
from exmap.report.charts import data_chart, eigenvalue_chart, score_chart, share_chart
from exmap.report.sprites import Sheet

__all__ = [
    "Amount",
    "Choice",
    "Comparison",
    "Finding",
    "Fit",
    "Interval",
    "Page",
    "Points",
    "Sample",
    "Strategy",
    "Trust",
    "Weighed",
    "render_page",
]

NONE = 65_535  # in the page's tables of 16-bit numbers: no group, no picture
STEPS = 65_534  # of a coordinate


@dataclass(frozen=True)
class Interval:
    """A share in [0, 1], with the bounds of its bootstrap interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One line of bars: what is measured, before and after retraining."""

    name: str
    before: Interval
    after: Interval


@dataclass(frozen=True)
class Sample:
    """An image that is shown: its row among the points, its id, and what the classifier takes it for."""

    point: int
    id: str
    predicted: str
    picture: int | None


@dataclass(frozen=True)
class Strategy:
    """One pseudo-group.

    Attributes
    ----------
    group : int
    name, class_name : str
    size : int
    share : float in [0, 1]
        Of its class.
    before, after : Interval
        Accuracy on the grouped split before retraining, and after it on the same images.
    mean : int
        Tile of the mean heatmap.
    typical, borderline, wrong : sequence of Sample
    made_of : sequence of (name, count)
        True groups, the largest first; empty where they are not known.
    """

    group: int
    name: str
    class_name: str
    size: int
    share: float
    before: Interval
    after: Interval
    mean: int
    typical: Sequence[Sample] = ()
    borderline: Sequence[Sample] = ()
    wrong: Sequence[Sample] = ()
    made_of: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Points:
    """The map: one entry per image that is on it.

    Attributes
    ----------
    places : ndarray of float32, shape (n, 2)
    group, label, predicted, repaired, truth, picture : ndarray of int64, shape (n,)
        Pseudo-group, class, predicted class before and after retraining, true group, and tile; -1: none.
    ids : sequence of str
        Of the images with a picture, by tile.
    total : int
        How many images there are, shown or not.
    method : str
        How the places were found.
    """

    places: NDArray[np.float32]
    group: IntArray
    label: IntArray
    predicted: IntArray
    repaired: IntArray
    truth: IntArray
    picture: IntArray
    ids: Sequence[str]
    total: int
    method: str

    def __post_init__(self) -> None:
        columns = ("group", "label", "predicted", "repaired", "truth", "picture")
        lengths = {name: len(getattr(self, name)) for name in ("places", *columns)}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of the map must have one length, got {lengths}")
        if (most := max((int(getattr(self, name).max(initial=-1)) for name in columns), default=-1)) >= NONE:
            raise DataError(f"a report shows at most {NONE - 1:,} groups, classes and pictures, got {most + 1:,}")


@dataclass(frozen=True)
class Fit:
    """One clustering: which images, into how many clusters, and why so many."""

    samples_of: str
    images: int
    n_clusters: int
    note: str
    gap: str = "relative"
    eigenvalues: NDArray[np.float64] | None = None
    components: int | None = None
    silhouette: float | None = None


@dataclass(frozen=True)
class Trust:
    """What says whether to believe the heatmaps and the clusters.

    Attributes
    ----------
    shares : ndarray of float32, shape (N,)
        Of each finite heatmap: what its pixels hold of the explained logit. NaN, or none, where that is not known.
    errors : ndarray of float32, shape (N,)
        What of the logit is unaccounted for; NaN for explainers that promise no sum.
    images, not_finite, all_zero : int
    reruns : sequence of (images, groups, ari)
        The clustering again, on random parts of the images with other seeds.
    rerun_share : float
    gradient : (images, ari, ari of the same clustering again on as many) or None
        Input times gradient in the heatmaps' place; None where the images are not at hand.
    explained : str
        What made the heatmaps, in words.
    plain : bool
        Whether the heatmaps are input times gradient themselves.
    """

    shares: NDArray[np.float32]
    errors: NDArray[np.float32]
    images: int
    not_finite: int
    all_zero: int
    reruns: Sequence[tuple[int, int, float]]
    rerun_share: float
    gradient: tuple[int, float, float] | None
    explained: str = ""
    plain: bool = False


@dataclass(frozen=True)
class Finding:
    """What the test for a shortcut says of one class.

    Attributes
    ----------
    class_name : str
    found : bool or None
        None where it was not tested.
    p_value : float or None
    effect, effect_low : float or None
        Error rate of the cluster less that of the rest of the class, and the lower end of that difference.
    why : str
    """

    class_name: str
    found: bool | None
    p_value: float | None
    effect: float | None
    effect_low: float | None
    why: str


@dataclass(frozen=True)
class Weighed:
    """A grouping that was weighed: its names, number of groups, score, and how like the chosen one it is."""

    name: str
    also: Sequence[str]
    groups: int
    score: float
    like_chosen: float
    eligible: bool
    mark: str = ""


@dataclass(frozen=True)
class Amount:
    """A point of the data curve: images, those of the smallest group, and how right the worst group then is."""

    images: int
    smallest_group: float
    worst: float
    spread: float


@dataclass(frozen=True)
class Choice:
    """Which grouping was chosen without group labels, and what else was found on the way.

    Attributes
    ----------
    verdict : str
        In one sentence.
    findings : sequence of Finding
        One per class.
    why, confidence : str
        Of the choice; the latter empty where nothing was chosen.
    candidates : sequence of Weighed
    as_is : float or None
        Score of the classifier as it is; None where nothing was weighed.
    last_layer, more_images : str
        Whether these would be enough; empty where it was not measured.
    curve : sequence of Amount
    remarks : sequence of str
    outcomes : sequence of Comparison
        The worst group of the test images before, and after retraining on the chosen groups; empty where the
        classifier is left as it is.
    """

    verdict: str
    findings: Sequence[Finding]
    why: str
    confidence: str = ""
    candidates: Sequence[Weighed] = ()
    as_is: float | None = None
    last_layer: str = ""
    more_images: str = ""
    curve: Sequence[Amount] = ()
    remarks: Sequence[str] = ()
    outcomes: Sequence[Comparison] = ()


@dataclass(frozen=True)
class Page:
    """All that the report shows.

    Attributes
    ----------
    title, headline : str
    remarks : sequence of str
        What the reader must know beside it, for example that the images were not at hand.
    comparisons : sequence of Comparison
        On the test split.
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
    fits : sequence of Fit
    trust : Trust
    provenance : sequence of (name, value)
    settings : str
        YAML.
    seconds : mapping of str to float
    command : str
        That makes the run again.
    grouping : str
        Digest of the grouping, for edits.
    choice : Choice or None
        None in runs that do not choose their groups.
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
    fits: Sequence[Fit]
    trust: Trust
    provenance: Sequence[tuple[str, str]]
    settings: str
    seconds: Mapping[str, float]
    command: str
    grouping: str
    choice: Choice | None = None


def render_page(page: Page) -> str:
    """Return the page as one HTML text that needs no other file and no network."""
    environment = Environment(
        loader=PackageLoader("exmap.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": "{:,}".format, "seconds": _duration, "p_value": _p_value}
    script = _asset("report.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(
        page=page,
        classes=_by_class(page.strategies),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_digest=allowed,
        data=_for_script(page),
        sheets=[("p", page.pictures), ("h", page.heats), ("m", page.means)],
        eigenvalues=[_spectrum(fit) for fit in page.fits],
        shares=_shares(page.trust),
        accounted=accounted(page.trust.shares, page.trust.errors),
        scores=_scores(page.choice),
        curve=_curve(page.choice),
    )


def percent(value: float | None) -> str:
    r"""Return a share as a percentage with one decimal; only what is none or all of it is called 0 or 100.

    The space does not break.

    Examples
    --------
    >>> [percent(share).replace("\xa0", " ") for share in (0.434, 1.0, 0.9999, 0.0, None)]
    ['43.4 %', '100 %', '> 99.9 %', '0 %', 'unknown']
    """
    if value is None or value != value:
        return "unknown"
    if value in (0, 1):
        return f"{100 * value:.0f}\xa0%"
    bound = ">\xa0" if value > 0.999 else "<\xa0" if value < 0.001 else ""
    return f"{bound}{100 * min(max(value, 0.001), 0.999):.1f}\xa0%"


def accounted(shares: NDArray[np.float32], errors: NDArray[np.float32]) -> str:
    r"""Say in one sentence what of the explained logit the pixels and the constants hold, and what is missing.

    Examples
    --------
    >>> print(accounted(np.array([0.93]), np.array([1e-6])).replace("\xa0", " "))
    Of the explained logit, the image's pixels hold 93 %, biases and other constants 7 %; 0.0001 % is unaccounted for.
    """
    known, missing = shares[np.isfinite(shares)], errors[np.isfinite(errors)]
    if not len(known):
        return "How much of the explained logit the pixels hold is not known."
    share = round(100 * float(np.median(known)))
    if not len(missing):
        return (
            f"The values of an image's pixels sum to {share}\xa0% of the explained logit (median); this explainer "
            "promises no sum, so nothing can be said of the rest."
        )
    said = (
        f"Of the explained logit, the image's pixels hold {share}\xa0%, biases and other constants {100 - share}\xa0%; "
        f"{_small(float(np.median(missing)))} is unaccounted for."
    )
    if len(missing) == 1:
        return said
    most = _small(float(np.quantile(missing, 0.95)))
    return f"{said} These are medians over the images; for 95\xa0% of them at most {most} is unaccounted for."


def _small(share: float) -> str:
    """Return a share as a percentage with one digit that is not 0."""
    value = float(f"{100 * share:.0e}")
    digits = 0 if value >= 1 or value == 0 else -int(np.floor(np.log10(value)))
    return f"{value:.{min(digits, 12)}f}\xa0%"


def _shares(trust: Trust) -> Markup | None:
    """Return the histogram of what the pixels hold, or None where that is not known."""
    count = int(np.isfinite(trust.shares).sum())
    if not count:
        return None
    return share_chart(trust.shares, f"Histogram of the share that the pixels hold in {count:,} heatmaps")


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


def _spectrum(fit: Fit) -> Markup | None:
    if fit.eigenvalues is None:
        return None
    described = (
        f"The {len(fit.eigenvalues)} smallest eigenvalues for {fit.samples_of}, rising from "
        f"{fit.eigenvalues[0]:.2g} to {fit.eigenvalues[-1]:.2g}; {fit.n_clusters} clusters"
    )
    return eigenvalue_chart(fit.eigenvalues, fit.n_clusters, described, ratios=fit.gap == "relative")


def _scores(choice: Choice | None) -> Markup | None:
    if choice is None or not choice.candidates or choice.as_is is None:
        return None
    weighed = choice.candidates
    marked = "".join(f"; {each.mark} {each.name} {each.score:.2f}" for each in weighed if each.mark)
    return score_chart(
        np.array([each.score for each in weighed]),
        [each.mark for each in weighed],
        np.array([each.eligible for each in weighed]),
        f"Scores of {len(weighed)} groupings{marked}; the classifier as it is {choice.as_is:.2f}",
        as_is=choice.as_is,
    )


def _curve(choice: Choice | None) -> Markup | None:
    if choice is None or len(choice.curve) < 2:
        return None
    points = choice.curve
    said = ", ".join(f"{percent(point.worst)} with {point.images:,} images" for point in points)
    return data_chart(
        [point.images for point in points],
        [point.smallest_group for point in points],
        np.array([point.worst for point in points]),
        np.array([point.spread for point in points]),
        f"The worst chosen group is right {said}",
    )


def _for_script(page: Page) -> Markup:
    """Return what the page's script reads: JSON in which nothing can end the element it stands in."""
    points = page.points
    places = _filled(points.places)
    tables = {name: getattr(points, name) for name in ("group", "label", "predicted", "repaired", "truth", "picture")}
    data: dict[str, Any] = {
        "grouping": page.grouping,
        "count": len(points.places),
        "x": _packed(places[:, 0]),
        "y": _packed(STEPS - places[:, 1]),
        **{name: _packed(np.where(values < 0, NONE, values)) for name, values in tables.items()},
        "ids": list(points.ids),
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


def _filled(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return places that fill a square of 16-bit coordinates; the shorter axis is stretched to twice at most."""
    low, high = (f(axis=0, initial=0) if not len(places) else f(axis=0) for f in (places.min, places.max))
    span = np.maximum(high - low, (high - low).max() / 2)
    share = (places - (low + high) / 2) / np.where(span > 0, span, 1) + 0.5
    return np.asarray(np.clip(share, 0, 1) * STEPS, dtype=np.float32)


def _packed(values: NDArray[Any]) -> str:
    """Return numbers as 16-bit little-endian integers in base64."""
    return base64.b64encode(np.rint(values).astype("<u2").tobytes()).decode()
