"""The one reader of YAML: text or a file to plain values, and the one writer that it reads back.

A file of settings is data. So it may hold text, numbers, truth values, null, lists and mappings with text as keys, and
nothing that a YAML library would make of it beyond: no tags, no objects, no dates. What is ambiguous is refused, with
its line and column: a key that stands there twice, a number with thousands of digits, lists in lists without end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from exmap.errors import ExMapError, SettingsError, shown

__all__ = ["NO_TEXT", "dump_yaml", "parse_yaml", "read_yaml"]

LARGEST_FILE = 2 * 2**20  # bytes; settings have a few thousand
DEEPEST = 40  # lists and mappings inside each other
MOST_VALUES = 200_000  # repeated ones (``*name``) counted each time
LONGEST_NUMBER = 300  # characters; the largest number a computer calculates with has 309 digits

WORDS: Mapping[str, bool | None] = {
    **{form(word): True for word in ("yes", "true", "on") for form in (str.lower, str.capitalize, str.upper)},
    **{form(word): False for word in ("no", "false", "off") for form in (str.lower, str.capitalize, str.upper)},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]*[0-9a-fA-F][0-9a-fA-F_]*|0b[01_]*[01][01_]*)")
FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN)"
)
LINE_ENDS = re.compile("[\x85\u2028\u2029]")
NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the rest of the surrogates stands for bytes of a file's name


def read_yaml(file: Traversable, where: str, refuse: type[ExMapError] = SettingsError) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Parameters
    ----------
    file : Path or file of the package
    where : str
        What errors call it.
    refuse : type of error
        What is raised.

    Raises
    ------
    SettingsError, or `refuse`
        If the file holds anything else, or is no regular file.
    """
    if not file.is_file():
        raise refuse(f"{where} must be a file with YAML, but it is none; give another")
    with file.open("rb") as stream:
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise refuse(
            f"{where} must be a YAML file of at most {LARGEST_FILE // 2**20} MiB, but it is larger; give another"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(content[: error.start].decode("utf-8", "replace"))
        raise refuse(
            f"{where} must be a YAML file in UTF-8, but {place} cannot be read as text; save it as UTF-8"
        ) from None
    tree = parse_yaml(text, where, refuse)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise refuse(f"{where} must hold a mapping of settings, got a {type(tree).__name__}")
    return tree


def parse_yaml(text: str, where: str, refuse: type[ExMapError] = SettingsError) -> Any:
    """Return what a text holds: None, truth values, numbers, text, lists, and mappings with text as keys.

    Parameters
    ----------
    text : str
    where : str
        What errors call it.
    refuse : type of error
        What is raised.

    Raises
    ------
    SettingsError, or `refuse`
        If it is no YAML, or more than plain values; the sentence names line and column.

    Examples
    --------
    >>> parse_yaml("{side: 7, rate: 1e-3, day: 2020-01-01, code: 007}", "the text")
    {'side': 7, 'rate': 0.001, 'day': '2020-01-01', 'code': '007'}
    """
    try:
        return _Builder(text).whole()
    except _RefusedYAML as error:
        line, column, problem = error.args
        said = f"in line {line}, column {column} {problem}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = "at its end" if mark is None else f"in line {mark.line + 1}, column {mark.column + 1}"
        problem = ", ".join(filter(None, (error.context, error.problem)))
        said = f"{at} it cannot be parsed: {problem}; correct it, or put text in quotes"
    except yaml.reader.ReaderError as error:
        found = f"U+{error.character:04X}" if isinstance(error.character, int) else "one"
        said = f"{_place(text[: error.position])} is a character that YAML does not allow, {found}; take it away"
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # of escapes for characters that there are none of
        said = f"it cannot be parsed: {error}; correct it"
    raise refuse(f"{where} must be plain YAML, but {said}")


def dump_yaml(tree: Any) -> str:
    """Return plain values as a text that :func:`parse_yaml` reads back.

    Examples
    --------
    >>> print(dump_yaml({"rate": 0.001, "name": "1e-3"}), end="")
    rate: 0.001
    name: '1e-3'
    """
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _RefusedYAML(Exception):
    """Line, column, and what is wrong there."""


class _Dumper(yaml.SafeDumper):
    """Writes in quotes what this module, or other readers of YAML, would take for anything but text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write each value out."""
        return True

    def analyze_scalar(self, scalar: str) -> Any:
        """Allow other characters that end a line only where they are escaped; elsewhere they are not read back."""
        found = super().analyze_scalar(scalar)
        if LINE_ENDS.search(scalar):
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


class _Events(yaml.SafeLoader):
    """Tells what a text holds, as far as lists and mappings are not too many inside each other."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Take a bracket; the library would look at a thousand before it tells of the first."""
        if self.flow_level > DEEPEST:
            raise _too_deep(self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


class _Builder:
    """Builds plain values of the events of one text.

    Events, and not the nodes and objects of the library: they come one by one, so depth and number are known before
    anything is made, and nothing is made but what stands here.
    """

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Events))
        self._named: dict[str, tuple[Any, int]] = {}  # values by anchor, and how many each holds
        self._values = 0

    def whole(self) -> Any:
        """Return the value of the one document there may be; None for none."""
        next(self._events)  # the beginning of the stream
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)  # the end of the document
        if not isinstance(after := next(self._events), yaml.StreamEndEvent):
            raise _refused(after, "a second document begins; leave one")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        before = self._values
        self._count(1, event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._named:
                raise _refused(event, f"*{event.anchor} names nothing that ends before it; write the value out")
            value, number = self._named[event.anchor]
            self._count(number, event)
            return copy.deepcopy(value)
        if event.tag is not None:
            raise _refused(event, f"there is the tag {shown(event.tag)}, and values are plain; leave it out")
        if depth > DEEPEST:
            raise _too_deep(event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(depth)
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._named[event.anchor] = value, self._values - before
        return value

    def _list(self, depth: int) -> list[Any]:
        values = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        merged: list[Mapping[str, Any]] | None = None
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, merges = self._value(event, depth + 1), getattr(event, "value", "") == "<<" and event.implicit[0]
            if not isinstance(key, str):
                raise _refused(event, f"a key must be text, got {shown(key)}; put it in quotes")
            if key in tree or (merges and merged is not None):
                raise _refused(event, f"the key {shown(key)} stands for the second time; leave one")
            value = self._value(next(self._events), depth + 1)
            if merges:
                merged = value if isinstance(value, list) else [value]
                if not all(isinstance(each, dict) for each in merged):
                    raise _refused(event, "<< must have a mapping, or a list of mappings; write the values out")
            else:
                tree[key] = value
        for each in merged or ():
            tree = {**each, **tree}
        return tree

    def _count(self, number: int, event: Any) -> None:
        self._values += number
        if self._values > MOST_VALUES:
            raise _refused(event, f"there are more than {MOST_VALUES:,} values; leave most of them out")


def _scalar(event: Any) -> Any:
    """Return the value of a scalar: what stands in quotes is text, and a plain one what it reads as."""
    text: str = event.value
    if NO_TEXT.search(text):
        raise _refused(event, "there is text with a character that no text may have; take it away")
    if not event.implicit[0]:
        return text
    if text in WORDS:
        return WORDS[text]
    integer = INTEGER.fullmatch(text)
    if integer is None and FLOAT.fullmatch(text) is None:
        return text
    if len(text) > LONGEST_NUMBER:
        raise _refused(event, f"there is a number of {len(text):,} characters; write a shorter one")
    plain = text.replace("_", "").lower()
    return int(plain, 0) if integer is not None else float(plain.replace(".inf", "inf").replace(".nan", "nan"))


def _refused(event: Any, problem: str) -> _RefusedYAML:
    return _RefusedYAML(event.start_mark.line + 1, event.start_mark.column + 1, problem)


def _too_deep(mark: Any) -> _RefusedYAML:
    problem = f"there are more than {DEEPEST} lists or mappings inside each other; take some away"
    return _RefusedYAML(mark.line + 1, mark.column + 1, problem)


def _place(before: str) -> str:
    """Return where a text goes on, as the middle of a sentence."""
    lines = before.split("\n")
    return f"in line {len(lines)}, column {len(lines[-1]) + 1} there"
