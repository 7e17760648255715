"""Readers of settings, of edits, of how methods are written, and of names."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

from damage import damage_bytes
from hypothesis import strategies as st
from judging import OBEYED
from materials import EDITS
from nasty import nasty_text
from reader import SEEDS, written

from exmap.methods import parse_method
from exmap.pipeline.disk import slug
from exmap.plain_text import printable
from exmap.plain_yaml import dump_yaml, parse_yaml
from exmap.settings import Settings, change_settings, dump_settings, load_edits, load_settings, parse_settings

__all__ = [
    "YAML_TEXTS",
    "judge_edits",
    "judge_method",
    "judge_name",
    "judge_setting",
    "judge_settings_file",
    "judge_yaml",
]


def _damaged_settings(number: int) -> bytes:
    """Return a file of settings, some of which are left out, that is damaged."""
    rng = random.Random(number)
    every = dump_settings(Settings())
    tree = {key: value for key, value in every.items() if rng.random() < 0.5 or key == "seed"}
    return damage_bytes(dump_yaml(tree).encode(), ".yaml", rng)[0]


YAML_TEXTS = st.one_of(
    st.text(max_size=60),
    SEEDS.map(lambda number: nasty_text(random.Random(number))),
    SEEDS.map(lambda number: _damaged_settings(number).decode("utf-8", "surrogateescape")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ).map(lambda tree: dump_yaml(tree)),
)


def same(one: Any, other: Any) -> bool:
    """Say whether two plain values are the same, NaN included."""
    return repr(one) == repr(other)


def judge_yaml(text: str) -> list[str]:
    tree = parse_yaml(text, "the text")
    if not _plain(tree):
        return [f"not plain: {tree!r:.200}"]
    again = parse_yaml(dump_yaml(tree), "the text")
    return [] if same(tree, again) else [f"written and read it is {again!r:.100}, not {tree!r:.100}"]


def _plain(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(isinstance(key, str) and _plain(value) for key, value in tree.items())
    if isinstance(tree, list):
        return all(map(_plain, tree))
    return tree is None or isinstance(tree, bool | int | float | str)


def judge_setting(given: tuple[str, int]) -> list[str]:
    name, number = given
    rng = random.Random(number)
    base = rng.choice(("digits", "waterbirds", "audit", "folder"))
    return round_trip(load_settings(base, [f"{name}={nasty_text(rng)}"]))


def round_trip(chosen: Settings) -> list[str]:
    """Return what of accepted settings does not survive a run folder."""
    tree = dump_settings(chosen)
    text = json.dumps(tree)
    if not _finite(tree):
        return [f"accepted, but not finite: {text[:200]}"]
    if not same(dump_settings(parse_settings(json.loads(text))), tree):
        return ["accepted, but otherwise after JSON"]
    if not same(dump_settings(parse_settings(parse_yaml(dump_yaml(tree), "it"))), tree):
        return ["accepted, but otherwise after YAML"]
    unchanged = same(dump_settings(change_settings(chosen)), tree)
    return [] if unchanged else ["accepted, but otherwise when nothing is changed"]


def _finite(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(map(_finite, tree.values()))
    if isinstance(tree, list):
        return all(map(_finite, tree))
    return not isinstance(tree, float) or math.isfinite(tree)


def judge_settings_file(number: int) -> list[str]:
    return round_trip(load_settings(written(_damaged_settings(number), "mine.yaml")))


def judge_edits(number: int) -> list[str]:
    rng = random.Random(number)
    found = load_edits(written(damage_bytes(EDITS.encode(), ".yaml", rng)[0], "edits.yaml"))
    return round_trip(change_settings(Settings(), edits=found.model_dump(mode="json")))


METHODS = (
    "erm",
    "exmap+dfr",
    "jtt@exmap",
    "exmap[size=7,scope=local]+dfr[repeats=2]",
    "oracle+group_dro",
    "exmap[method=kmeans]+dfr",
)


def judge_method(number: int) -> list[str]:
    rng = random.Random(number)
    text = nasty_text(rng)
    if rng.random() < 0.8:
        text = damage_bytes(rng.choice(METHODS).encode(), "", rng)[0].decode("utf-8", "replace")
    method = parse_method(text)
    again = parse_method(str(method))
    return [] if str(again) == str(method) else [f"{text!r:.80} is {method}, and that {again}"]


def judge_name(text: str) -> list[str]:

    said = printable(text)
    said.encode("utf-8")
    faults = [f"obeyed: {said!r}"] if OBEYED.search(said) else []
    safe = slug(text)
    if not re.fullmatch(r"[A-Za-z0-9+@=.,_-]+", safe) or safe.strip(".") == "" or len(safe) > 120:
        faults.append(f"file name {safe!r}")
    return faults
