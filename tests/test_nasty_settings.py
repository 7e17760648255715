"""Whatever stands after ``--set``: one sentence, or settings that are read back as they were written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exmap.errors import SettingsError
from exmap.plain_yaml import dump_yaml, parse_yaml
from exmap.registry import CLUSTERERS, EXPLAINERS, LEARNERS
from exmap.settings import Settings, change_settings, describe_settings, dump_settings, parse_settings

LONG = "9" * 5000
VALUES = (
    *("", " ", "~", "null", "yes", "off", "True", "nan", "0", "-0", "-1", "1", "2", "3.5", "1e-3", "1e5", "1e400"),
    *(".inf", "-.inf", ".nan", "1e999", "-1e308", "4294967296", "1000000000000", "-9223372036854775809", LONG),
    *("0x10", "010", "1_000", "1:30", "2026-13-45", "2020-01-01", "!!int x", "!!python/object:os.system x", "&a [*a]"),
    *("*a", "[" * 1500, "{" * 1500, "[]", "{}", "[1, 2]", "[.inf]", "[[]]", "{a: 1}", "{a: 1, a: 2}", "{1: 2}", "x"),
    *("#", "#1", "- a", "a: b", "'", '"\\ud800"', '"\\0"', '"\\udcff"', "\x00", "\x1b[31m", "\ud800", "é", "💥" * 3),
    *("os:system", "builtins:int", "math:pi", ":", "a:", ":a", "a.b:c", "..:x", "exmap.settings:Settings", "x" * 5000),
)
PARTS, AT_ONCE = 4, 3  # values of each setting that are tried where there is no time for all
CHOICES = {"retrain.learner": LEARNERS, "cluster.method": CLUSTERERS, "explain.explainer": EXPLAINERS}


def names() -> Iterator[tuple[str, ...]]:
    """Yield what is chosen first, and the name of a setting, for all settings and all options there are."""
    yield from ((row.name,) for row in describe_settings() if not row.owner)
    for setting, registry in CHOICES.items():
        section = setting.partition(".")[0]
        for thing in registry.names():
            yield from ((f"{setting}={thing}", f"{section}.{option}") for option in registry.options(thing))
    yield from (("preset",), ("edits",), ("data",), ("groups.george",), ("groups.george.method",), ("a..b",), ("",))


def outcome(overrides: list[str]) -> Settings | str:
    """Return the settings, or the sentence."""
    try:
        return change_settings(Settings(), overrides)
    except SettingsError as error:
        return str(error)


def check(words: tuple[str, ...], value: str) -> None:
    found = outcome([*words[:-1], f"{words[-1]}={value}"])
    if isinstance(found, Settings):
        assert parse_settings(parse_yaml(dump_yaml(dump_settings(found)), "here")) == found, (words, value)
    else:
        assert len(found) < 3000, found[:200]
        assert "\n" not in found.strip()
        assert "Traceback" not in found


@pytest.mark.parametrize("part", range(PARTS))
def test_any_value_of_any_setting_is_one_sentence_or_survives(part: int) -> None:
    for number, words in list(enumerate(names()))[part::PARTS]:
        for turn in range(AT_ONCE):
            check(words, VALUES[(number + turn * len(VALUES) // AT_ONCE) % len(VALUES)])


@pytest.mark.slow  # the same for all values
@pytest.mark.parametrize("part", range(PARTS))
def test_every_value_of_every_setting_is_one_sentence_or_survives(part: int) -> None:
    for words in list(names())[part::PARTS]:
        for value in VALUES:
            check(words, value)
