"""How a method is written: ``[SOURCE+]LEARNER[@SOURCE]``, for example ``exmap+dfr`` or ``jtt@exmap``.

The source before ``+`` gives the groups that are fitted on. The source after ``@`` gives the groups whose worst one
epochs and hyperparameters are chosen by; without it they are chosen by the groups that are fitted on, or by classes
where none are. Options stand in brackets: ``exmap[size=7,method=kmeans,n_clusters=2]+dfr``; braces hold alternatives,
``exmap[size={14,7}]+dfr`` is two methods. The true groups are only ever used by a method that has ``oracle`` in its
name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from exmap.errors import SettingsError, shown, unknown_name
from exmap.plain_yaml import dump_yaml, parse_yaml
from exmap.registry import LEARNERS, SOURCES

__all__ = ["ERM", "Method", "Part", "expand_methods", "method_with", "parse_method", "parse_part", "text_of"]

ERM = "erm"  # the classifier as it was trained
CLASSES = "classes"
WHOLE_NETWORK = "whole network"
MOST_METHODS = 10_000

_PART = r"[A-Za-z0-9_.:-]+(?:\[[^\[\]]*\])?"
_METHOD = re.compile(rf"(?:({_PART})\+)?({_PART})(?:@({_PART}))?")


@dataclass(frozen=True)
class Part:
    """A source of groups or a learner, with its options in alphabetical order."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inside = ",".join(f"{key}={text_of(value)}" for key, value in self.options)
        return f"{self.name}[{inside}]" if inside else self.name


@dataclass(frozen=True)
class Method:
    """A learner, the source of the groups it is fitted on, and that of the groups it is chosen by.

    Attributes
    ----------
    learner : Part
        ``erm`` is the classifier itself.
    source : Part or None
        None where the fit takes no groups.
    selection : Part or None
        None where nothing is chosen by given groups.
    """

    learner: Part
    source: Part | None = None
    selection: Part | None = None

    def __str__(self) -> str:
        if self.learner.name == ERM:
            return ERM
        given = self.source is not None and self.source != _own_source(self.learner)
        usual = self.source if given else Part(CLASSES)
        after = "" if self.selection in (None, usual) else f"@{self.selection}"
        return f"{self.source}+{self.learner}{after}" if given else f"{self.learner}{after}"

    @property
    def whole_network(self) -> bool:
        """Whether all weights are trained, and not the last layer alone."""
        return self.learner.name != ERM and _learner(self.learner).part == WHOLE_NETWORK

    def groupings(self, grouped: str) -> list[tuple[Part, str]]:
        """Return the sources of groups that it fits on and chooses by, each with the split that it groups.

        A whole network is fitted on the training split and chosen by the validation split; a last layer uses `grouped`
        for both.
        """
        splits = ("train", "val") if self.whole_network else (grouped, grouped)
        parts = zip((self.source, self.selection), splits, strict=True)
        return [(part, split) for part, split in parts if part is not None]


def expand_methods(text: str) -> list[str]:
    """Return one text for every choice among the alternatives in braces.

    Examples
    --------
    >>> expand_methods("exmap[scope={local,global},size=7]+{dfr,subg}")[:2]
    ['exmap[scope=local,size=7]+dfr', 'exmap[scope=local,size=7]+subg']
    """
    whole: list[str] = []
    left = [text]
    while left:
        each = left.pop()
        found = re.search(r"\{([^{}]*)\}", each)
        if found is None:
            whole.append(each)
        else:
            choices = (each[: found.start()] + choice.strip() + each[found.end() :] for choice in found[1].split(","))
            left += reversed(list(choices))
        if len(whole) + len(left) > MOST_METHODS:
            raise SettingsError(f"braces may stand for at most {MOST_METHODS:,} methods, got more in {shown(text)}")
    return whole


def parse_method(text: str) -> Method:
    """Read a method.

    Raises
    ------
    SettingsError
        For an unknown source, learner or option, and for groups that a learner cannot use.

    Examples
    --------
    >>> str(parse_method("exmap[size=7] + dfr")), str(parse_method("jtt@classes"))
    ('exmap[size=7]+dfr', 'jtt')
    """
    found = _METHOD.fullmatch("".join(text.split()))
    if found is None:
        raise SettingsError(
            f"a method is written [SOURCE+]LEARNER[@SOURCE] with options in brackets, got {shown(text)}; for example "
            "exmap+dfr, jtt@exmap or exmap[size=7,method=kmeans]+dfr"
        )
    source, learner, selection = (None if part is None else parse_part(part) for part in found.groups())
    assert learner is not None
    if learner.name == ERM:
        if source or selection or learner.options:
            raise SettingsError(f"{ERM} is the classifier as it is and takes no groups, got {text!r}; write {ERM}")
        return Method(learner)
    _learner(learner)
    LEARNERS.check_options(learner.name, dict(learner.options))
    for part in (source, selection):
        if part is not None:
            _check_options(part, source_options(part))
    return _combined(text, learner, source, selection)


def method_with(learner: Part, source: Part) -> Method:
    """Return the method of a learner that is given one source of groups, for whatever it takes groups for."""
    kind = _learner(learner)
    if kind.fits_groups:
        return _combined(f"{source}+{learner}", learner, source, None)
    return _combined(f"{learner}@{source}", learner, None, source if kind.tunes_groups else None)


def _combined(text: str, learner: Part, source: Part | None, selection: Part | None) -> Method:
    """Return a method, after a look at what its learner takes groups for."""
    kind = _learner(learner)
    whole = kind.part == WHOLE_NETWORK
    if source and not kind.fits_groups:
        instead = f"{learner}@{source}" if kind.tunes_groups else str(learner)
        raise SettingsError(f"{learner.name} is not fitted on groups, got {text!r}; write {instead}")
    source = source or (_own_source(learner) if kind.fits_groups else None)
    if kind.fits_groups and source is None:
        raise SettingsError(f"{learner.name} needs groups to fit on, got {text!r}; write, for example, exmap+{learner}")
    if selection and (not kind.tunes_groups or (kind.fits_groups and not whole)):
        raise SettingsError(
            f"{learner.name} is tuned by {'the groups it is fitted on' if kind.fits_groups else 'classes'} alone, got "
            f"{text!r}; leave out @{selection}"
        )
    if selection is None and kind.tunes_groups:
        selection = source if source and source != _own_source(learner) else Part(CLASSES)
    return Method(learner, source, selection if kind.tunes_groups else None)


def source_options(part: Part) -> set[str]:
    """Return the names of a source's options; they may depend on what is given (``option_names``)."""
    kind: Any = SOURCES.get(part.name)
    if hasattr(kind, "option_names"):
        return set(kind.option_names(dict(part.options)))
    return set(SOURCES.options(part.name))


def _learner(part: Part) -> Any:
    try:
        kind = LEARNERS.get(part.name)
    except SettingsError:
        if ":" in part.name or part.name in LEARNERS.names():  # it is there, and cannot be imported
            raise
        raise SettingsError(unknown_name("learner", part.name, [ERM, *LEARNERS.names()])) from None
    if not hasattr(kind, "part"):  # a dotted path may lead to anything
        raise SettingsError(
            f"a learner must say what it trains by a class variable part, but {part.name} has none; give another path, "
            f"or one of {', '.join(LEARNERS.names())}"
        )
    return kind


def _own_source(learner: Part) -> Part | None:
    """Return the source that a learner brings along where it is given none (``own_source``)."""
    own = getattr(_learner(learner), "own_source", None)
    return None if own is None else parse_part(own)


def parse_part(text: str) -> Part:
    """Read a name with its options.

    Examples
    --------
    >>> parse_part("exmap[size=7,method=kmeans]")
    Part(name='exmap', options=(('method', 'kmeans'), ('size', 7)))
    """
    name, _, inside = text.rstrip("]").partition("[")
    options: dict[str, Any] = {}
    for item in filter(None, inside.split(",")):
        key, sep, value = item.partition("=")
        if not sep or key in options:
            raise SettingsError(f"options are written key=value, each once, got {item!r} in {text!r}")
        try:
            options[key] = parse_yaml(value, key)
        except SettingsError:
            raise SettingsError(
                f"the value of an option is a number, a word or null, got {item!r} in {text!r}; change it"
            ) from None
    return Part(name, tuple(sorted(options.items())))


def _check_options(source: Part, allowed: set[str]) -> None:
    for key, _ in source.options:
        if key not in allowed:
            if not allowed:
                raise SettingsError(f"the group source {source.name} has no options, got {key!r}; leave it out")
            raise SettingsError(unknown_name(f"option of the group source {source.name}", key, allowed))


def text_of(value: Any) -> str:
    """Return a value as YAML reads it back.

    Examples
    --------
    >>> text_of(None), text_of(True), text_of(1e-05), text_of("kmeans"), text_of("7")
    ('null', 'true', '1.0e-05', 'kmeans', "'7'")
    """
    return dump_yaml(value).partition("\n")[0]
