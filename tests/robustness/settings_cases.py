"""Cases of settings, of files that hold them, and of words on the command line."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from case import Case, checked_run
from damage import damage_bytes
from forked import Said
from materials import CHEAP, Materials, copied, options
from nasty import NASTY_NAMES, nasty_text

from exmap.settings import Settings, dump_settings, preset_names

__all__ = ["NAMES", "benches", "command_line", "edits", "settings_file", "settings_run", "settings_words"]


def _leaves(tree: Mapping[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += _leaves(value, f"{above}{key}.") if isinstance(value, dict) else [above + key]
    return found


OTHERS = ["retrain.strengths", "cluster.n_clusters", "cluster.n_neighbors", "nothing", "a.b.c", "", "seed.x"]
NAMES = [*_leaves(dump_settings(Settings())), *OTHERS]


def _setting(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    value = nasty_text(rng).replace("\x00", "\\0")
    return f"{name}={value}"[:100_000]


def settings_words(rng: random.Random, place: Path, made: Materials) -> Case:
    """``exmap settings`` with values that nobody would give."""
    given = [_setting(rng) for _ in range(rng.choice((1, 1, 2)))]
    return Case(f"settings {given!r:.200}", ["settings", rng.choice(preset_names()), *options(*given)])


def settings_run(rng: random.Random, place: Path, made: Materials) -> Case:
    """A run with a value that nobody would give: refused, or its numbers are right."""
    given = _setting(rng)
    words = ["run", "folder", "--data-dir", made.photos, "--out", "out", *options(*CHEAP, given)]

    def check(said: Said) -> list[str]:
        late = b"classifier: started" in said.out and said.code == 2
        return checked_run(place / "out", said) + ([f"refused after training began: {given[:60]!r}"] if late else [])

    return Case(f"run with {given!r:.200}", words, check=check)


def settings_file(rng: random.Random, place: Path, made: Materials) -> Case:
    """A file of settings that is damaged."""
    text = (made.run / "settings.yaml").read_bytes()
    data, how = damage_bytes(text.replace(b"format: 2\n", b""), ".yaml", rng)
    (place / "mine.yaml").write_bytes(data)
    words = rng.choice((["settings", "mine.yaml"], ["run", "mine.yaml", "--out", "out"]))
    return Case(f"settings file {how}", words, check=lambda said: checked_run(place / "out", said))


def edits(rng: random.Random, place: Path, made: Materials) -> Case:
    """Edits of groups that are damaged."""
    copied(made.run, place / "run")
    data, how = damage_bytes(made.edits(), ".yaml", rng)
    (place / "edits.yaml").write_bytes(data)
    return Case(f"edits {how}", ["retrain", "run", "--edits", "edits.yaml"])


def benches(rng: random.Random, place: Path, made: Materials) -> Case:
    """A grid of a bench that is damaged."""
    text = b"reference: exmap+dfr\nblocks:\n  - datasets: [digits]\n    methods: [erm, exmap+dfr]\n    seeds: 1\n"
    data, how = damage_bytes(text, ".yaml", rng)
    (place / "grid.yaml").write_bytes(data)
    # A data folder that is not there: what is sound so far is refused before it costs anything.
    given = options("data.name=folder", "data.dir=/proc/nowhere", *CHEAP)
    words = ["bench", "grid.yaml", "--out", "out", "--jobs", "1", *given]
    return Case(f"bench {how}", words)


COMMANDS = (
    "run", "train", "explain", "cluster", "retrain", "evaluate", "auto", "report", "figures", "export", "settings",
    "check-model", "audit", "bench", "data", "data check", "data prepare", "data compose", "data list", "",
)  # fmt: skip
WORDS = (
    "--help", "--version", "--set", "--set=", "--out", "--sed", "--seed", "-1", "--seed=x", "--devices=0",
    "--devices=-1",
    "--num-nodes=3", "--to", "--only", "x", "digits", "--", "--jobs=0", "--seeds=0", "--methods=,", "--datasets=,,",
    "--data-dir", "=", "--json", "--classes=,",
)  # fmt: skip


def command_line(rng: random.Random, place: Path, made: Materials) -> Case:
    """Words that no command knows."""
    words = rng.choice(COMMANDS).split()
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        words.append(rng.choice((*WORDS, *NASTY_NAMES)))
    words = [word.replace("\x00", "") for word in words]
    return Case(f"words {words!r:.150}", words)
