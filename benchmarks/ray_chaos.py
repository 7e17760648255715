"""Explain many small images on a Ray cluster of this machine while workers, and the driver, are killed.

    python benchmarks/ray_chaos.py --images 100000 --workers 2 4

One process comes first, then a cluster of each size: with ``--calm`` undisturbed, and always with a worker killed every
``--every`` seconds and the driver killed once and started again. The results must be those of the one process: heatmaps
within 1e-6, and the same clusters. Seconds are printed as a table, and written as JSON with ``--out``. Only processes
that this script has started are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE, CLASSES, MOST_CLUSTERED = 28, 2, 20_000
AGREE = 1e-6


def setting(images: int) -> tuple[Any, Any, Any]:
    """Return the split, the network and the settings: the same in each process."""
    from exmap.data.dataset import array_split
    from exmap.model import build_model
    from exmap.settings import ExplainSettings, ModelSettings

    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=images)
    pixels = rng.integers(0, 60, size=(images, 3, SIDE, SIDE), dtype=np.uint8)
    pixels[np.arange(images), labels, 4:12, 4:12] += 150
    pixels[rng.random(images) < 0.5, :, 18:24, 18:24] += 120
    split = array_split(pixels, labels)
    model = build_model(ModelSettings(name="tiny"), CLASSES, seed=0).eval()
    return split, model, ExplainSettings(size=7, layer="none")


def work(arguments: argparse.Namespace) -> None:
    """Explain all images in this process, and keep what came out and how long that took."""
    from exmap.engine import Job, engine_of
    from exmap.explain import explain_split
    from exmap.pipeline.extraction import compute_split
    from exmap.settings import RuntimeSettings

    torch.set_num_threads(1)
    split, model, settings = setting(arguments.images)
    began = time.monotonic()
    if arguments.actors == 0:
        maps, measured = explain_split(model, split, settings)[0], {}
        first = began
    else:
        engine = engine_of(RuntimeSettings(engine="ray", actors=arguments.actors), move=False)
        heard: list[float] = []

        def listen(_: Any) -> None:
            heard.append(time.monotonic())
            print(_.done, flush=True)

        found = compute_split(
            engine,
            Job.of(model, split, settings),
            split,
            size=arguments.shard,
            folder=arguments.folder / "shards",
            listen=listen,
        )
        maps, measured, first = found.maps(), engine.measured, heard[0]
    np.save(arguments.folder / "heatmaps.npy", maps.values)
    ended = time.monotonic()
    record = {"seconds": ended - began, "after_first_shard": ended - first, **measured}
    (arguments.folder / "record.json").write_text(json.dumps(record))


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and they in turn."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for number in found:
        found += [child for child, parent in parents.items() if parent == number]
    return found[1:]


def workers(pid: int) -> list[int]:
    """Return the workers of the cluster that a process has started."""
    found = []
    for number in descendants(pid):
        try:
            if (Path("/proc") / str(number) / "cmdline").read_text().startswith("ray::_Worker"):
                found.append(number)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def run(arguments: argparse.Namespace, folder: Path, actors: int, *, every: float | None = None) -> dict[str, Any]:
    """Run :func:`work` in a process of its own, undisturbed or with a worker killed at times and the driver once."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--images", str(arguments.images), "--shard", str(arguments.shard)]
    command += ["--folder", str(folder), "--actors", str(actors)]
    rng, began, killed, driver_killed = np.random.default_rng(1), time.monotonic(), 0, every is None

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def shards() -> int:
        return len(list((folder / "shards").glob("*.parquet")))

    process, last = start(), time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            if every is None:
                continue
            if not driver_killed and shards() * arguments.shard >= arguments.images / 2:
                left = descendants(process.pid)
                process.kill()
                process.wait()
                for pid in left:  # its cluster ends by itself, but need not at once
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                driver_killed, process = True, start()
            elif time.monotonic() - last > every and (found := workers(process.pid)):
                os.kill(int(rng.choice(found)), signal.SIGKILL)
                killed, last = killed + 1, time.monotonic()
    finally:
        if process.poll() is None:
            process.kill()
    if process.returncode:
        raise SystemExit(f"the work on {actors} workers ended with code {process.returncode}")
    record = json.loads((folder / "record.json").read_text())
    whole = time.monotonic() - began
    return {"actors": actors, "killed": killed, "driver_killed": every is not None, "wall": whole, **record}


def clusters(maps: Any) -> Any:
    """Return the spectral clusters of the first heatmaps."""
    from exmap.cluster import SpectralEigengap

    flat = np.asarray(maps[:MOST_CLUSTERED]).reshape(min(len(maps), MOST_CLUSTERED), -1)
    return SpectralEigengap(n_clusters=4, random_state=0).fit(flat).labels_


def main() -> None:
    """Run all, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--shard", type=int, default=1000, help="images in a shard")
    parser.add_argument("--every", type=float, default=20.0, help="seconds after which a worker is killed")
    parser.add_argument("--calm", action="store_true", help="also run each cluster undisturbed")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--actors", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file for the measurements")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        work(arguments)
        return
    from sklearn.metrics import adjusted_rand_score

    place = Path(tempfile.mkdtemp(prefix="exmap-chaos-"))
    rows = [run(arguments, place / "one", 0)]
    wanted = np.load(place / "one" / "heatmaps.npy", mmap_mode="r")
    labels = clusters(wanted)
    for number in arguments.workers:
        for every in (None, arguments.every) if arguments.calm else (arguments.every,):
            folder = place / f"{number}-{'calm' if every is None else 'chaos'}"
            row = run(arguments, folder, number, every=every)
            found = np.load(folder / "heatmaps.npy", mmap_mode="r")
            row["largest_difference"] = float(np.abs(np.asarray(found) - np.asarray(wanted)).max())
            row["ari"] = float(adjusted_rand_score(labels, clusters(found)))
            rows.append(row)
    print("| workers | killed | driver killed | s | of them after the first shard | lost | difference | ARI |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['actors'] or 'one process'} | {row['killed']} | {'yes' if row['driver_killed'] else 'no'} | "
            f"{row['wall']:.1f} | {row['after_first_shard']:.1f} | {row.get('workers_lost', 0):.0f} | "
            f"{row.get('largest_difference', 0.0):.1e} | {row.get('ari', 1.0):.3f} |"
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"images": arguments.images, "rows": rows}, indent=2) + "\n")
    shutil.rmtree(place)
    bad = [row for row in rows[1:] if row["largest_difference"] > AGREE or row["ari"] < 1]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
