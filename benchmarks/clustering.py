"""Measure spectral clustering as the number of samples grows, beside scikit-learn's, and print Markdown tables.

The samples are a planted mixture of four Gaussians, one of them with 1 % of the samples, in a memory-mapped file. Peak
memory is that of a process of its own, pages of the file among it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from exmap.cluster import SpectralEigengap
from exmap.cluster.graph import default_neighbors

SIZES = (5_000, 10_000, 20_000, 50_000, 100_000)
MILLION = 1_000_000
COMPARED = 20_000  # scikit-learn's and the exact search are quadratic
SHARES = (0.01, 0.33, 0.33, 0.33)
BLOCK = 8_192


def write_mixture(path: Path, number: int, width: int = 588, seed: int = 0) -> np.ndarray:
    """Write a mixture to a memory-mapped float32 file, a block at a time, and return which part each sample is of."""
    rng = np.random.default_rng(seed)
    centers = (0.3 * rng.standard_normal((len(SHARES), width))).astype(np.float32)
    truth = rng.choice(len(SHARES), number, p=SHARES)
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (number, width))
    for start in range(0, number, BLOCK):
        part = truth[start : start + BLOCK]
        stored[start : start + BLOCK] = centers[part] + rng.standard_normal((len(part), width), dtype=np.float32)
    stored.flush()
    return truth


def timed(estimator: Any, vectors: np.ndarray) -> tuple[Any, dict[str, float]]:
    """Return the fitted estimator, and seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    estimator.fit(vectors)
    return estimator, {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}


def peak_gib(path: Path) -> float:
    """Cluster a file, and return the peak of this process's resident memory; run in a fresh process."""
    SpectralEigengap(len(SHARES), exact_below=0, random_state=0).fit(np.load(path, mmap_mode="r"))
    status = Path("/proc/self/status")  # ru_maxrss would count what the parent held when it started this process
    if status.is_file():
        return int(next(row.split()[1] for row in status.read_text().splitlines() if row.startswith("VmHWM"))) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(sizes: list[int], width: int = 588) -> list[dict[str, Any]]:
    """Return a row of figures per size; the near-linear search at every size, the quadratic ways up to COMPARED."""
    rows: list[dict[str, Any]] = []
    for number in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            truth = write_mixture(path, number, width)
            vectors = np.load(path, mmap_mode="r")
            ours, row = timed(SpectralEigengap(len(SHARES), exact_below=0, random_state=0), vectors)
            row |= {"samples": number, "ari_truth": adjusted_rand_score(truth, ours.labels_)}
            row |= {"eigenvalues": ours.eigenvalues_.tolist(), "residual": ours.residual_}
            if number <= COMPARED:
                exact, took = timed(SpectralEigengap(len(SHARES), exact_below=number + 1, random_state=0), vectors)
                row |= {f"exact_{key}": value for key, value in took.items()}
                row["ari_exact"] = adjusted_rand_score(exact.labels_, ours.labels_)
                theirs, took = timed(
                    SpectralClustering(
                        len(SHARES),
                        affinity="nearest_neighbors",
                        n_neighbors=default_neighbors(number),
                        assign_labels="cluster_qr",
                        random_state=0,
                    ),
                    vectors,
                )
                row |= {f"sklearn_{key}": value for key, value in took.items()}
                row["ari_sklearn"] = adjusted_rand_score(theirs.labels_, ours.labels_)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row["peak_gib"] = pool.apply(peak_gib, (path,))
        if rows:
            doublings = np.log2(number / rows[-1]["samples"])
            row["growth_per_doubling"] = float((row["seconds"] / rows[-1]["seconds"]) ** (1 / doublings))
        rows.append(row)
        print(line(row), flush=True)
    return rows


HEADER = (
    "| samples | s | CPU s | growth per doubling | peak GiB | exact, s | scikit-learn, s | scikit-learn / ours | "
    "ARI truth | ARI exact | ARI scikit-learn |\n|" + "---|" * 11
)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""

    def cell(key: str, digits: int) -> str:
        return f"{row[key]:.{digits}f}" if key in row else "-"

    ratio = f"{row['sklearn_seconds'] / row['seconds']:.1f}" if "sklearn_seconds" in row else "-"
    cells = [f"{row['samples']:,}", cell("seconds", 1), cell("cpu_seconds", 1), cell("growth_per_doubling", 2)]
    cells += [cell("peak_gib", 2), cell("exact_seconds", 1), cell("sklearn_seconds", 1), ratio]
    return "| " + " | ".join([*cells, *(cell(f"ari_{what}", 3) for what in ("truth", "exact", "sklearn"))]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--million", action="store_true", help="1,000,000 samples too: 2.4 GB of temporary disk")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    print(HEADER)
    rows = measure([*args.sizes, *[MILLION] * args.million])
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
