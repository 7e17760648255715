"""The seam of the sources of groups: what a classifier does with a split goes in, one group per image comes out."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from exmap.errors import SettingsError
from exmap.methods import Part, parse_part
from exmap.records import Explained, Groups
from exmap.registry import SOURCES
from exmap.settings import Settings

__all__ = [
    "CLASS_LABELS",
    "TRUE_GROUPS",
    "TRUE_LABELS",
    "GroupSource",
    "explains",
    "make_source",
    "needs_of",
    "sees_truth",
    "source_names",
]

CLASS_LABELS, TRUE_LABELS = "class labels", "true groups"  # kinds of labels that a method used
TRUE_GROUPS = "truth"  # what an oracle needs, and nothing else may
PREPARED = ("reference", "twins", "choice", TRUE_GROUPS)  # needs that are no other source


class GroupSource(Protocol):
    """One way to infer groups; the same seed gives the same groups.

    A source is a class with the decorator ``@SOURCES.register``. Its constructor's arguments are its options. What it
    needs beyond the classifier's outputs and heatmaps it names in ``needs``, and finds in ``explained.given``:

    ``reference``
        :class:`~exmap.records.Outputs` of a classifier that was stopped early.
    ``twins``
        Predicted class of each image by networks that were not trained on it, shape (N,).
    ``choice``
        :class:`~exmap.records.Groups` that were chosen among many (``groups.auto``).
    ``truth``
        :class:`~exmap.data.TrueGroups`; only for a source that says ``oracle`` in its name.
    any other text
        :class:`~exmap.records.Groups` of another source, written as in ``exmap bench``: ``exmap[n_clusters=4]``.

    A source that looks at no heatmaps says ``explains = False``: a split that is grouped by it alone is not explained
    then, and its ``explained.heatmaps`` may be None.

    A source with settings of its own names their sections in ``sections``, and is built by ``from_settings(settings,
    options)``.
    """

    name: ClassVar[str]

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return one group per image."""
        ...


def make_source(part: Part, settings: Settings) -> GroupSource:
    """Return a source with its options.

    Parameters
    ----------
    part : Part
        Name and options.
    settings : Settings
        Sources with a section of their own begin with that.

    Raises
    ------
    SettingsError
        For an unknown name or option, and for a source that wants the true groups and does not say so.
    """
    SOURCES.check_call(part.name)
    kind: Any = SOURCES.get(part.name)
    options = dict(part.options)
    if hasattr(kind, "from_settings"):
        source: GroupSource = kind.from_settings(settings, options)
    else:
        source = SOURCES.build(part.name, options)
    if "oracle" not in kind.name and _sees_truth(source, settings):
        raise SettingsError(
            f"only a source that says oracle in its name may see the true groups, but {kind.name} needs them; rename "
            "it, or infer its groups without them"
        )
    return source


def explains(source: GroupSource) -> bool:
    """Return whether a source looks at heatmaps."""
    return bool(getattr(source, "explains", True))


def source_names() -> list[str]:
    """Return the names of all sources, sorted."""
    return SOURCES.names()


def needs_of(source: GroupSource) -> tuple[str, ...]:
    """Return what a source needs beyond the classifier's outputs and heatmaps."""
    return tuple(getattr(source, "needs", ()))


def sees_truth(part: Part, settings: Settings) -> bool:
    """Return whether a source needs the true groups, itself or by another source that it needs."""
    return _sees_truth(make_source(part, settings), settings)


def _sees_truth(source: GroupSource, settings: Settings) -> bool:
    needs = needs_of(source)
    others = [parse_part(need) for need in needs if need not in PREPARED]
    return TRUE_GROUPS in needs or any(sees_truth(part, settings) for part in others)
