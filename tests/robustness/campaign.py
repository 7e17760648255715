"""Campaigns: the whole program and its readers, fuzzed; runs, killed. Bounded, seeded, and continued where they ended.

    python tests/robustness/campaign.py readers whole --minutes 10
    python tests/robustness/campaign.py readers --cases 10000 --shard 1/4
    python tests/robustness/campaign.py crash --minutes 10
    python tests/robustness/campaign.py whole --only run_folder:17      # one case again, with what it said

A file in --work keeps how many cases of each kind were tried, and the faults; the same campaign goes on with the next
ones. Exit code 1 if there was any fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

from forked import load_everything, warm_up
from judging import signature
from materials import CHEAP, Materials, make_materials, options

__all__ = ["Tally", "main"]

BLOCK = 50  # inputs of one kind that are drawn together


@dataclass
class Tally:
    """How many cases were tried, and what was wrong."""

    cases: dict[str, int] = field(default_factory=dict)
    ends: dict[str, dict[str, int]] = field(default_factory=dict)  # how many ended with which exit code
    trials: dict[str, int] = field(default_factory=dict)  # commands that were killed, some of them more than once
    seconds: dict[str, float] = field(default_factory=dict)  # of the processor
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)  # by kind of fault: the first case, and how many

    def count(self, kind: str, name: str, what: str, faults: list[str], number: int = 1, seconds: float = 0) -> None:
        """Note `number` cases of a kind, and the faults of one of them."""
        self.cases[kind] = self.cases.get(kind, 0) + number
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        for fault in faults:
            first = {"case": name, "what": what, "fault": fault, "times": 0}
            kept = self.faults.setdefault(f"{kind}: {signature(fault)}", first)
            if kept["times"] == 0:
                print(f"FAULT {name} {what}\n      {fault}", flush=True)
            kept["times"] += 1

    def save(self, path: Path) -> None:
        """Keep the tally in a file, which is whole at any time."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(vars(self), indent=1))
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Return the tally of an earlier campaign, or an empty one."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def __str__(self) -> str:
        total = sum(self.cases.values())
        times = sum(fault["times"] for fault in self.faults.values())
        lines = [f"{total:,} cases, {times:,} faults of {len(self.faults)} kinds"]
        for kind, count in sorted(self.cases.items()):
            ends = ", ".join(f"{number} of code {code}" for code, number in sorted(self.ends.get(kind, {}).items()))
            lines.append(f"  {kind}: {count:,}, {self.seconds[kind] / count:.2f} s{ends and f' ({ends})'}")
        return "\n".join(lines)


def order(shares: dict[str, int], done: dict[str, int], shard: tuple[int, int]) -> Iterator[tuple[str, int]]:
    """Yield kinds and numbers for ever: always the kind that is furthest behind its share."""
    first, step = shard
    counts = {kind: done.get(kind, 0) for kind in shares}
    while True:
        kind = min(shares, key=lambda k: (counts[k] / shares[k], k))
        yield kind, first + step * counts[kind]
        counts[kind] += 1


def chosen(given: argparse.Namespace, shares: dict[str, int], done: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the kinds and numbers that are tried: those that are next, or the one that is asked for again."""
    if given.again:
        kind, number = given.only.split(":")
        return iter([(kind, int(number))])
    wanted = {kind: share for kind, share in shares.items() if given.only in (None, kind)}
    return order(wanted, done, given.shard)


@contextmanager
def own_folder(given: argparse.Namespace) -> Iterator[Path]:
    """Give a case an empty folder, and take it away again."""
    place = Path(tempfile.mkdtemp(prefix="case-", dir=given.work))
    try:
        yield place
    finally:
        if not given.keep:
            shutil.rmtree(place, ignore_errors=True)


def warm(made: Materials, work: Path) -> None:
    """Let this process do once what all its forks then need not do."""
    place = Path(tempfile.mkdtemp(prefix="warm-", dir=work))
    words = ["run", "folder", "--data-dir", str(made.photos), "--out", "out", *options(*CHEAP)]
    for command in (words, ["figures", "out"], ["export", "out", "--to", "parquet"], ["check-model", "out"]):
        warm_up(command, place)
    shutil.rmtree(place)


def whole(given: argparse.Namespace, tally: Tally, until: float) -> None:
    """Try cases of the whole program."""
    from case import try_case
    from whole_cases import KINDS, make_case

    made = make_materials(given.work)
    warm(made, given.work)
    names = chosen(given, {kind: share for kind, (_, share) in KINDS.items()}, tally.cases)
    for tried, (kind, number) in enumerate(names):
        if tried >= given.cases or time.monotonic() > until:
            break
        with own_folder(given) as place:
            case = make_case(kind, given.seed, number, place, made)
            said, faults = try_case(case, place)
        if given.again:
            print(case.what, case.words, dict(case.environment), sep="\n")
            streams = [stream.decode(errors="replace") for stream in (said.out, said.err)]
            print(said.code, f"{said.seconds:.2f} s", *streams, faults, sep="\n")
        tally.count(kind, f"{kind}:{number}", case.what, faults, seconds=said.seconds)
        ends = tally.ends.setdefault(kind, {})
        ends[str(said.code)] = ends.get(str(said.code), 0) + 1
        tally.save(given.state)


def readers(given: argparse.Namespace, tally: Tally, until: float) -> None:
    """Try inputs of the readers, some of a kind at a time."""
    from reader import try_readers
    from reader_cases import readers as known_readers

    kinds = known_readers(make_materials(given.work))
    shares = {kind: reader.share for kind, reader in kinds.items()}
    names = chosen(given, shares, {kind: cases // BLOCK for kind, cases in tally.cases.items()})
    target = sum(tally.cases.values()) + given.cases
    for kind, block in names:
        if sum(tally.cases.values()) >= target or time.monotonic() > until:
            break
        start = time.process_time()
        number = zlib.crc32(f"{given.seed} {kind} {block}".encode())
        tried, found = try_readers(kinds[kind], number, BLOCK)
        for value, faults in found:
            tally.count(kind, f"{kind} block {block}", value, faults, 0)
        tally.count(kind, kind, "", [], tried, seconds=time.process_time() - start)
        tally.save(given.state)


def crash(given: argparse.Namespace, tally: Tally, until: float) -> None:
    """Kill commands, and let them go on."""
    from kills import SCENARIOS, reference_of, scenarios, try_kills

    made = make_materials(given.work)
    warm(made, given.work)
    known = scenarios(made)
    references = {}
    target = sum(tally.cases.values()) + given.cases
    for kind, number in chosen(given, SCENARIOS, tally.trials):
        if sum(tally.cases.values()) >= target or time.monotonic() > until:
            break
        with own_folder(given) as place:
            if kind not in references:
                (place / "undisturbed").mkdir()
                references[kind] = reference_of(known[kind], place / "undisturbed")
            (place / "killed").mkdir()
            rng = random.Random(f"{given.seed} {kind} {number}")
            kills, how, faults = try_kills(known[kind], references[kind], place / "killed", rng)
        tally.trials[kind] = tally.trials.get(kind, 0) + 1
        tally.count(kind, f"{kind}:{number}", ", ".join(how), faults, kills)
        tally.save(given.state)


CAMPAIGNS = {"readers": readers, "whole": whole, "crash": crash}


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", choices=list(CAMPAIGNS), nargs="+", help="one after the other, in equal times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="when no further case is begun")
    parser.add_argument("--cases", type=int, default=10**9, help="how many cases are tried")
    parser.add_argument(
        "--shard", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1), help="I/N, from 0"
    )
    parser.add_argument("--only", help="KIND, or KIND:NUMBER for one case again")
    parser.add_argument(
        "--work",
        type=Path,
        help="keeps what was made and tried",
        default=Path(tempfile.gettempdir()) / f"exmap-campaigns-{os.getuid()}",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders of cases")
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    given.again = given.only is not None and ":" in given.only
    start = time.monotonic()
    load_everything()
    sound = True
    for number, name in enumerate(given.campaigns, start=1):
        given.state = given.work / (
            "again.json" if given.again else f"{name}-{given.seed}-{given.shard[0]}of{given.shard[1]}.json"
        )
        tally = Tally() if given.again else Tally.load(given.state)
        CAMPAIGNS[name](given, tally, start + 60 * given.minutes * number / len(given.campaigns))
        print(f"{name}: {tally}", flush=True)
        sound &= not tally.faults
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
