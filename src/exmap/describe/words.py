"""One sentence of a description: what a person would say who sees the group beside the others of its class.

It says what is so and what goes together, never why: the groups were not drawn by lot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exmap.results import AutoRecord, ConstantPatch, Difference, RelevancePlace

__all__ = ["followed", "is_against", "overlaps", "picked", "sentence"]

MOST_NAMED = 3  # differences in a sentence
BESIDE = 0.5  # of the strongest effect, below which a difference is not named beside it
BACKGROUND = " background"
EXCHANGED = "exchange[property="  # how groupings by an exchange are named
AREA = "relevance"  # topic of how large an area the classifier looks at
AS_SHARE = 0.15  # of an effect, by which "83 % are green" goes before "greener"
UNSEEN, FOLLOWED = 0.2, 0.25  # by which files stand behind what one sees, and what predictions follow before others
PLACE, CLEAR = {"place across", "place down"}, 0.7


def followed(record: AutoRecord | None, class_name: str) -> str:
    """Return the property that predictions of a class were seen to follow; empty where none was.

    The one that a shortcut was found in, or else the one that moves predictions furthest.
    """
    if record is None or not class_name:
        return ""
    finding = record.shortcut.get(class_name)
    if finding is not None and finding.found and finding.property:
        return finding.property
    seen = [each for each in record.exchanges if each.relied_on and each.class_name == class_name]
    return max(seen, key=lambda each: each.moved).property if seen else ""


def is_against(record: AutoRecord | None, class_name: str, part: int) -> bool | None:
    """Return whether a chosen group is of the images in which the exchanged property speaks for another class.

    None where the chosen grouping is none that was made by an exchange.
    """
    if record is None or record.chosen is None or not record.chosen.startswith(EXCHANGED):
        return None
    prop = record.chosen.removeprefix(EXCHANGED).removesuffix("]")
    return part == 1 if followed(record, class_name) == prop and part in (0, 1) else None


def picked(differences: Iterable[Difference], follows: str = "") -> list[Difference]:
    """Return the differences that a sentence names: the strongest of each topic, what is followed first.

    Parameters
    ----------
    differences : iterable of Difference
        Those that do not matter are left out.
    follows : str
        A property that predictions follow.

    Returns
    -------
    list of Difference
        Without that of the area of relevance, which is no property of the images.
    """
    inside = [each for each in differences if each.matters and each.topic != AREA]
    inside.sort(key=lambda each: -_rank(each, follows))
    chosen = [each for each in inside if _about(each, follows)][:1]
    strongest = max((abs(each.effect) for each in inside), default=0.0)
    for each in inside:
        said = {other.topic for other in chosen}
        if each.topic not in said and abs(each.effect) >= BESIDE * strongest and len(chosen) < MOST_NAMED:
            chosen.append(each)
    return [_completed(each, inside) for each in chosen]


def _rank(each: Difference, follows: str) -> float:
    """Return how far in front a difference stands: its effect, and a little for how well one sees and says it."""
    share = AS_SHARE if each.value and each.effect > 0 else 0
    unseen = UNSEEN if each.kind == "file" else 0
    return abs(each.effect) + share - unseen + (FOLLOWED if _about(each, follows) else 0)


def _completed(one: Difference, inside: Sequence[Difference]) -> Difference:
    """Return a place with how far down beside how far across, where both are about as clear."""
    beside = [each for each in inside if one.name in PLACE and each.name in PLACE - {one.name}]
    if not beside or abs(beside[0].effect) < CLEAR * abs(one.effect):
        return one
    down, across = sorted((one, beside[0]), key=lambda each: each.name == "place across")
    return one.changed(words=f"{down.words} and to the {across.words.split()[-1]}")


def _about(each: Difference, follows: str) -> bool:
    """Return whether a difference is one of what predictions follow."""
    if follows == "background":
        return each.kind == "pixels" and each.name.startswith("background")
    return each.kind == "pixels" and each.topic == follows


def sentence(
    class_name: str,
    images: int,
    others: int,
    *,
    follows: str = "",
    against: bool | None = None,
    relevance: RelevancePlace | None = None,
    patch: ConstantPatch | None = None,
    differences: Sequence[Difference] = (),
    pixels: bool = True,
) -> str:
    """Return one sentence.

    Parameters
    ----------
    class_name : str
        Empty where the group is of no one class.
    images, others : int
    follows : str
        A property that predictions of the class follow.
    against : bool or None
        Whether it speaks for another class in the images of this group, where that is known.
    relevance, patch
        As described, or None.
    differences : sequence of Difference
        Those to name, from :func:`picked`.
    pixels : bool
        Whether the images themselves were at hand.

    Examples
    --------
    >>> sentence("coat", 3, 40)
    'Nothing that was measured sets these images of “coat” apart from the others of their class.'
    """
    if not images:
        return "No image is in this group."
    if not others:
        return _alone(class_name, relevance)
    speaker = _Speaker(class_name)
    begin = [_begin(speaker, follows, against)] if follows else []
    parts = [*_looks(speaker, relevance, patch), *_they(speaker, differences)]
    if not parts:
        what = "nothing that was measured" if pixels else "without the images nothing that was measured"
        of_class = " of their class" if class_name else ""
        parts = [f"{what} sets {speaker.these()} apart from the others{of_class}"]
    said = "; ".join([*begin, *parts])
    return f"{said[:1].upper()}{said[1:]}."


def _begin(speaker: _Speaker, follows: str, against: bool | None) -> str:
    """State what predictions follow, and for which class it speaks in these images."""
    speaker.class_said = True
    said = f"predictions for \u201c{speaker.class_name}\u201d follow the {_property(follows)}"
    if against is None:
        return said
    whom = "another class" if against else f"\u201c{speaker.class_name}\u201d"
    return f"{said}, which speaks for {whom} in {speaker.these()}"


@dataclass
class _Speaker:
    """Who says "these images of coat" the first time, and "they" from then on."""

    class_name: str
    class_said: bool = False
    said: bool = False

    def these(self) -> str:
        of = f" of \u201c{self.class_name}\u201d" if self.class_name and not self.class_said else ""
        self.said = self.class_said = True
        return f"these images{of}"

    def they(self) -> str:
        return "they" if self.said else self.these()

    def share_of_them(self, value: float) -> str:
        return _share_of(value, "them" if self.said else self.these())


def _share_of(value: float, whom: str) -> str:
    """Return how many of some images, in words.

    Examples
    --------
    >>> [_share_of(share, "them") for share in (1.0, 0.0)]
    ['all of them', 'none of them']
    """
    return {1.0: f"all of {whom}", 0.0: f"none of {whom}"}.get(value, f"{_share(value)} of {whom}")


def _alone(class_name: str, relevance: RelevancePlace | None) -> str:
    """Say of a group that is its whole class where relevance lies."""
    said = f"All images of \u201c{class_name}\u201d are in this group" if class_name else "All images are in this group"
    if relevance is None:
        return f"{said}."
    if not relevance.where:
        return f"{said}, and the classifier looks at no one part of them more than at the rest."
    return f"{said}, and the classifier looks mostly at the {relevance.where}."


def _looks(speaker: _Speaker, relevance: RelevancePlace | None, patch: ConstantPatch | None) -> Iterable[str]:
    """Yield where the classifier looks, and a patch there."""
    looks = relevance is not None and relevance.apart
    if looks and relevance is not None:
        where = "there" if speaker.said else f"in {speaker.these()}"
        here = f"{where} the classifier looks at the {relevance.where}"
        if patch is not None and not patch.lacking and overlaps(relevance, patch):
            yield f"{here}, where {_has(speaker, patch, place=patch.where != relevance.where)}"
            return
        share, other = _share(relevance.share), _share(relevance.share_others)
        yield f"{here} more than in the others ({share} of the relevance against {other})"
    if patch is not None:
        yield _has(speaker, patch, place=True)


def _property(follows: str) -> str:
    return {"place": "place of what is shown"}.get(follows, follows)


def _has(speaker: _Speaker, patch: ConstantPatch, *, place: bool) -> str:
    where = f" at the {patch.where}" if place else ""
    if patch.lacking:
        beside = _share_of(patch.share_others, "the others")
        return f"{speaker.share_of_them(patch.share)} have the {patch.looks} patch{where} that {beside} have"
    others = _share_of(patch.share_others, "the others")
    return f"{speaker.share_of_them(patch.share)} have the same {patch.looks} patch{where} ({others})"


def overlaps(relevance: RelevancePlace, patch: ConstantPatch) -> bool:
    """Return whether a patch lies where the relevance of a group lies."""
    if relevance.where == "border":
        return patch.where != "centre"
    sides = {"upper", "lower", "left", "right"} & set(relevance.where.split())
    return relevance.where == patch.where or bool(sides & set(patch.where.split()))


def _they(speaker: _Speaker, differences: Sequence[Difference]) -> Iterable[str]:
    """Yield what the images are: shares of values first, then comparisons."""
    for each in differences:
        if each.value:
            others = _share_of(each.others, "the others")
            yield f"{speaker.share_of_them(each.group)} {_without_less(each.words)} ({others})"
    verbs: dict[str, list[str]] = {}
    for each in differences:
        if not each.value:
            verb, _, what = each.words.partition(" ")
            verbs.setdefault(verb, []).append(what)
    if verbs:
        they = speaker.they()
        yield f"{they} {_listed([f'{verb} {_things(whats)}' for verb, whats in verbs.items()])} than the others"


def _things(whats: Sequence[str]) -> str:
    r"""Return what images are or have; two things about the background become one.

    Examples
    --------
    >>> _things(["a bluer background", "more contrast", "a smoother background"])
    'a bluer and smoother background and more contrast'
    """
    backgrounds = [what for what in whats if what.startswith("a ") and what.endswith(BACKGROUND)]
    if len(backgrounds) < 2:
        return _listed(whats)
    kinds = _listed([what.removeprefix("a ").removesuffix(BACKGROUND) for what in backgrounds])
    return _listed([f"a {kinds}{BACKGROUND}", *(what for what in whats if what not in backgrounds)])


def _without_less(words: str) -> str:
    """Return words about a value as they stand beside its shares, which say themselves which is larger."""
    return words.replace("are less often ", "are mostly ").removeprefix("less often ")


def _share(value: float) -> str:
    """Return a share in whole per cent, which are 0 or 100 only where it is none or all."""
    whole = f"{100 * value:.0f}"
    if whole == "100" and value < 1:
        return "over 99\u00a0%"
    if whole == "0" and value > 0:
        return "under 1\u00a0%"
    return f"{whole}\u00a0%"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
