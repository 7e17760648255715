"""The search of neighbours by libraries that exmap does without: faiss and cuVS, on a GPU where there is one.

Each has an inverted file of the vectors' principal coordinates, as our own search has, with about as many candidates.
They are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.cluster.neighbors import CANDIDATES, principal_coordinates, search_cells
from exmap.cluster.rows import Rows
from exmap.errors import SettingsError, unknown_name
from exmap.records import IntArray

__all__ = ["SEARCHES", "search_by"]

LIST = 256  # vectors in a list of the inverted file, on average
PROBED = CANDIDATES // LIST + 1  # lists that a vector is compared with

Search = Callable[[Rows, int, int], tuple[NDArray[np.int32], IntArray | None]]


def search_by(name: str) -> Search:
    """Return a search by its name.

    Returns
    -------
    callable
        Takes vectors, the number of neighbours and a seed, and returns what
        :func:`~exmap.cluster.neighbors.search_cells` does; the order may be None.

    Raises
    ------
    SettingsError
        For an unknown name.
    """
    if name not in SEARCHES:
        raise SettingsError(unknown_name("search", str(name), tuple(SEARCHES)))
    return SEARCHES[name]


def _faiss(vectors: Rows, n_neighbors: int, seed: int) -> tuple[NDArray[np.int32], IntArray]:
    faiss = _library("faiss", "faiss-cpu or faiss-gpu")
    points = principal_coordinates(vectors, np.random.default_rng(seed))
    lists = max(1, len(points) // LIST)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
    index.cp.seed = seed % 2**31
    index.nprobe = min(PROBED, lists)
    if hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(points)
    index.add(points)
    found = index.search(points, n_neighbors)[1]
    nearest = index.quantizer.search(points, 1)[1][:, 0] if hasattr(index, "quantizer") else np.zeros(len(points))
    return _found(found), np.argsort(nearest, kind="stable")


def _cuvs(vectors: Rows, n_neighbors: int, seed: int) -> tuple[NDArray[np.int32], None]:
    ivf_flat = _library("cuvs.neighbors.ivf_flat", "cuvs-cu12")
    cupy = _library("cupy", "cupy-cuda12x")
    points = cupy.asarray(principal_coordinates(vectors, np.random.default_rng(seed)))
    lists = max(1, len(points) // LIST)
    index = ivf_flat.build(ivf_flat.IndexParams(n_lists=lists), points)
    found = ivf_flat.search(ivf_flat.SearchParams(n_probes=min(PROBED, lists)), index, points, n_neighbors)[1]
    return _found(cupy.asnumpy(cupy.asarray(found))), None


def _found(rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return neighbours as 32-bit numbers; a place that a library leaves empty names the vector itself."""
    itself = np.arange(len(rows))[:, None]
    return np.where((rows < 0) | (rows >= len(rows)), itself, rows).astype(np.int32)


def _library(module: str, package: str) -> Any:
    try:
        return __import__(module, fromlist=["*"])
    except ImportError as error:
        raise SettingsError(
            f"the search {module.partition('.')[0]} needs the package {package}, which cannot be imported "
            f"({error}); install it, or leave the search at cells"
        ) from error


SEARCHES: dict[str, Search] = {"cells": search_cells, "faiss": _faiss, "cuvs": _cuvs}
