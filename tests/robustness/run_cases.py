"""Cases of run folders in which something is damaged, and of commands in strange surroundings."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

from case import Case, checked_run
from damage import damage_file, silent
from forked import Said
from judging import faults_of_numbers, without_times
from materials import CHEAP, Materials, copied, options, pick

__all__ = ["limits", "loading", "places", "run_folder", "run_folder_twice", "surroundings"]


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("report", "run"),
    ("evaluate", "run"),
    ("evaluate", "run"),
    ("cluster", "run"),
    ("retrain", "run"),
    ("explain", "run"),
    ("train", "run"),
    ("figures", "run", "--only", "comparison"),
    ("figures", "run", "--only", "strategies"),
    ("figures", "run", "--only", "embedding"),
    ("export", "run", "--to", "parquet"),
    ("export", "run", "--to", "virelay"),
    ("check-model", "run"),
)


# Files of a run folder of which no digest is kept: what is well formed in them is believed.
UNDIGESTED = ("done.json", "identity.json", "settings.yaml", "manifest.json")


def run_folder(rng: random.Random, place: Path, made: Materials) -> Case:
    """A finished run in which a file is damaged: it is named, or made again, or not needed."""
    run = copied(made.run, place / "run")
    file = pick(rng, run)
    name = file.relative_to(run).as_posix()
    how = damage_file(file, rng)
    again = ("run", "folder", "--data-dir", made.photos, "--out", "run", *options(*CHEAP))
    words = list(again if rng.random() < 0.15 else rng.choice(COMMANDS))

    def check(said: Said) -> list[str]:
        if said.code != 0 or words[0] not in ("evaluate", "run") or (silent(how) and file.name in UNDIGESTED):
            return []
        return _faults_beside(made.run, run, f", without a word: {name} {how}")

    return Case(f"{words[0]} with {name} {how}", words, check=check)


def _faults_beside(before: Path, run: Path, why: str) -> list[str]:
    """Return what is wrong with the numbers of a run that was made again of another."""
    found = faults_of_numbers(run)
    if not found and _results(run) != _results(before):
        found.append(f"results are others than before{why}")
    return found


def _results(run: Path) -> dict[str, Any]:
    return without_times(json.loads((run / "results.json").read_text(encoding="utf-8")))


def run_folder_twice(rng: random.Random, place: Path, made: Materials) -> Case:
    """A run with several steps gone or damaged: its numbers are those of before, or it is refused."""
    run = copied(made.run, place / "run")
    steps = sorted(item for item in run.iterdir() if item.is_dir())
    done, believed = [], False
    for step in rng.sample(steps, rng.randint(1, 3)):
        kind = rng.choice(("gone", "undone", "part", "damaged"))
        done.append(f"{step.name} {kind}")
        if kind == "gone":
            shutil.rmtree(step)
        elif kind == "undone":
            (step / "done.json").unlink()
        elif kind == "part":
            step.rename(step.with_name(step.name + ".part"))
        else:
            file = pick(rng, step)
            how = damage_file(file, rng)
            done[-1] += f" {file.name} {how}"
            believed |= file.name in UNDIGESTED and silent(how)
    words = ["run", "folder", "--data-dir", made.photos, "--out", "run", *options(*CHEAP)]

    def check(said: Said) -> list[str]:
        return [] if said.code != 0 or believed else _faults_beside(made.run, run, f": {done}")

    return Case(f"run with {', '.join(done)}", words, check=check)


PLACES = (
    "", " ", ".", "..", "/", "/dev/null", "/dev/full", "/proc/1/x", "a" * 300, "/".join(["d"] * 2000), "x\ny",
    "\udcff", "-", "~", "photos", "run/settings.yaml", "out.yaml", "\x1b[31mx", "nul", "/dev/../tmp/../proc/x",
    "link",
)  # fmt: skip


def places(rng: random.Random, place: Path, made: Materials) -> Case:
    """Paths that cannot be what they are given for."""
    copied(made.run, place / "run")
    copied(made.photos, place / "photos")
    (place / "link").symlink_to("link")
    path = rng.choice(PLACES)
    form = rng.randrange(8)
    words: list[Any] = [
        ["run", "folder", "--data-dir", path, "--out", "out", *options(*CHEAP)],
        ["run", "folder", "--data-dir", "photos", "--out", path, *options(*CHEAP, "groups.sources=[classes]")],
        ["report", path],
        ["evaluate", path],
        ["export", "run", "--to", "parquet", "--out", path],
        ["figures", "run", "--only", "comparison", "--out", path],
        ["settings", path],
        ["data", "check", "folder", path],
    ][form]
    harm = path in ("/", "..", "~") and form in (1, 4, 5)
    if harm:
        words = ["report", path]
    return Case(f"{words[0]} at {path!r:.60}", words)


VARIABLES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("HOME", (None, "", "/", "/proc/nowhere", "/dev/null", "relative", "/proc")),
    ("COLUMNS", ("0", "-1", "x", "1", "100000", "")),
    ("LINES", ("0", "x")),
    ("TERM", ("dumb", "", "xterm-256color", "nothing")),
    ("NO_COLOR", ("1", "")),
    ("LANG", ("C", "POSIX", "nothing", "tr_TR.UTF-8")),
    ("LC_ALL", ("C", "nothing")),
    ("PYTHONIOENCODING", ("ascii", "latin-1", "utf-8:strict")),
    ("TMPDIR", ("/proc/nowhere", "", "/dev/null")),
    ("EXMAP_DATA_DIR", ("", "/proc/nowhere", "/dev/null", "\udcff")),
    ("XDG_CACHE_HOME", ("", "/proc/nowhere", "relative", "/dev/null")),
    ("OMP_NUM_THREADS", ("0", "x", "-1", "1")),
    ("CUDA_VISIBLE_DEVICES", ("", "x", "7")),
    ("TZ", ("nothing", "")),
    ("PYTHONWARNINGS", ("default", "nothing")),
)


LAUNCH = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "TORCHELASTIC_RUN_ID", "NODE_RANK",
)  # fmt: skip


QUICK = (
    ("settings", "digits"),
    ("report", "run"),
    ("evaluate", "run"),
    ("figures", "run", "--only", "comparison"),
    ("data", "list"),
)


def surroundings(rng: random.Random, place: Path, made: Materials) -> Case:
    """An environment as in containers, services and other programs' children."""
    copied(made.run, place / "run")
    chosen: dict[str, str | None] = {}
    if rng.random() < 0.35:
        chosen["TORCHELASTIC_RUN_ID"] = "x"
        for name in rng.sample(LAUNCH, rng.randint(0, 5)):
            chosen[name] = rng.choice(("0", "1", "2", "-1", "x", "", "99999999999", "1.5", " 1"))
        if chosen.get("WORLD_SIZE", "1") not in ("0", "1") and rng.random() < 0.5:
            chosen["RANK"] = "0"
    else:
        for name, values in rng.sample(VARIABLES, rng.randint(1, 3)):
            chosen[name] = rng.choice(values)
    long = ["run", "folder", "--data-dir", made.photos, "--out", "out", *options(*CHEAP, "images.cache=always")]
    words = long if rng.random() < 0.3 else list(rng.choice(QUICK))
    return Case(f"{words[0]} with {chosen}", words, chosen, check=lambda said: checked_run(place / "out", said))


def loading(rng: random.Random, place: Path, made: Materials) -> Case:
    """The same in a new interpreter, where libraries read the environment."""
    case = surroundings(rng, place, made)
    case.fresh = True
    case.what = f"new process: {case.what}"
    return case


LIMITS = ((resource.RLIMIT_FSIZE, (100, 5_000, 60_000, 300_000)), (resource.RLIMIT_NOFILE, (8, 12, 20)))


def limits(rng: random.Random, place: Path, made: Materials) -> Case:
    """A disk that is full, files that may not be many: one sentence, and the same command continues."""
    copied(made.run, place / "run")
    which, values = rng.choice(LIMITS)
    value = rng.choice(values)

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(which, (value, value))

    run = ["run", "folder", "--data-dir", made.photos, "--out", "out", *options(*CHEAP)]
    words = rng.choice(
        (
            run,
            [*run, *options("images.cache=always", f"images.cache_dir={place}/cache")],
            ["report", "run"],
            ["figures", "run", "--only", "comparison"],
            ["export", "run", "--to", "parquet"],
        )
    )
    name = {resource.RLIMIT_FSIZE: "file size", resource.RLIMIT_NOFILE: "files"}[which]
    # Both streams are files, too; they may have been refused what was to be said.
    return Case(f"{words[0]} with at most {value} of {name}", words, before=before)
