"""The largest eigenpairs of a large sparse matrix whose eigenvalues lie in [-1, 1].

Small matrices are left to ARPACK. Large ones are first made easy by a Chebyshev polynomial, which lifts the wanted
eigenvalues away from all others (Saad, 2011, "Numerical methods for large eigenvalue problems", section 7.4; Zhou and
Saad, 2007, "A Chebyshev-Davidson algorithm"). Nearly all work is then products of the matrix with a vector, which
threads share, and few vectors have to be kept orthogonal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from exmap.errors import NumericalError
from exmap.runtime import worker_threads

__all__ = ["largest_pairs"]

SINGLE_FROM = 15_000  # samples; the iteration then runs in single precision, which halves what memory has to move
ROWS = 2**15  # of the matrix, in one product
KEPT = 20  # vectors that the iteration keeps, at least
ROUGH, TOLERANCE = 0.1, 1e-4  # of the bound on the wanted eigenvalues, and of the filtered iteration; relative
LIFT, HIGHEST = 1000.0, 32  # how far the filter lifts the largest eigenvalue, and its highest degree
MARGIN = 0.05  # between the wanted eigenvalues and those that the filter damps
MOST_RESTARTS = 10_000

Product = Callable[[NDArray[Any]], NDArray[Any]]


def largest_pairs(
    matrix: sparse.csr_array, known: sparse.csc_array, count: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenpairs of a symmetric matrix beside those that are known, in falling order.

    Parameters
    ----------
    matrix : csr_array of float64, shape (N, N)
        With eigenvalues in [-1, 1].
    known : csc_array of float64, shape (N, c)
        Orthonormal eigenvectors of eigenvalue 1.
    count : int
        How many others are wanted.
    seed : int
        Of the starting vector. The number of threads changes nothing.

    Returns
    -------
    values : ndarray of float64, shape (count,)
    vectors : ndarray of float64, shape (N, count)

    Raises
    ------
    NumericalError
        If the iteration does not converge.
    """
    n = matrix.shape[0]
    start = np.random.default_rng(seed).standard_normal(n)
    with worker_threads() as pool:
        try:
            if n < SINGLE_FROM:
                values, vectors = _iterate(_shifted(matrix, known, pool), start, count, max(4 * count, 40), 0)
                falling = np.argsort(-values)
                return values[falling] - 1, vectors[:, falling]
            found = _filtered(matrix, known, start, count, pool)
        except ArpackNoConvergence as error:
            raise NumericalError(
                f"the eigenvalues of the neighbour graph of {n} samples did not converge ({error}); raise "
                "cluster.n_neighbors"
            ) from error
        # Eigenvalues are as exact as the square of the vectors' error, computed in double precision.
        vectors = linalg.qr(found.astype(np.float64), mode="economic", overwrite_a=True)[0]
        multiply = _product(matrix, pool)
        products = np.column_stack([multiply(column) for column in vectors.T])
        values, turned = linalg.eigh(vectors.T @ products)
        return values[::-1], vectors @ turned[:, ::-1]


def _iterate(operator: Product, start: NDArray[Any], count: int, kept: int, tolerance: float) -> Any:
    shape = (len(start), len(start))
    return eigsh(
        LinearOperator(shape, matvec=operator, dtype=start.dtype),
        k=count,
        which="LA",
        v0=start,
        ncv=kept,
        maxiter=MOST_RESTARTS,
        tol=tolerance,
    )


def _filtered(
    matrix: sparse.csr_array, known: sparse.csc_array, start: NDArray[np.float64], count: int, pool: ThreadPoolExecutor
) -> NDArray[np.float32]:
    """Return the wanted eigenvectors of a large matrix, in no order."""
    single = sparse.csr_array((matrix.data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
    known, first = known.astype(np.float32), start.astype(np.float32)
    kept = max(2 * count + 2, KEPT)
    # What an iteration has found lies below the eigenvalues themselves, so all that are wanted are above this bound.
    rough = _iterate(_shifted(single, known, pool), first, count, kept, ROUGH)[0].min() - 1
    bound = float(rough - MARGIN * (1 - rough))
    vectors: NDArray[np.float32] = _iterate(_filter(single, known, bound, pool), first, count, kept, TOLERANCE)[1]
    return vectors


def _parts(matrix: sparse.csr_array) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Yield a matrix in blocks of rows, which share its memory."""
    n, ends = matrix.shape[0], matrix.indptr
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        inside = slice(ends[start], ends[stop])
        parts = (matrix.data[inside], matrix.indices[inside], ends[start : stop + 1] - ends[start])
        yield slice(start, stop), sparse.csr_array(parts, shape=(stop - start, n))


def _product(matrix: sparse.csr_array, pool: ThreadPoolExecutor) -> Product:
    """Return the product of a matrix and a vector, whose rows are shared out to threads."""
    parts = list(_parts(matrix))
    return lambda vector: np.concatenate(list(pool.map(lambda part: part[1] @ vector, parts)))


def _shifted(matrix: sparse.csr_array, known: sparse.csc_array, pool: ThreadPoolExecutor) -> Product:
    """Return the product with a matrix whose eigenvalues are shifted into [0, 2], the known ones moved to 0."""
    multiply = _product(matrix, pool)
    return lambda x: multiply(x) + x - 2 * (known @ (known.T @ x))


def _filter(matrix: sparse.csr_array, known: sparse.csc_array, bound: float, pool: ThreadPoolExecutor) -> Product:
    """Return the product with a Chebyshev polynomial of a matrix, the known eigenvectors moved to 0.

    Eigenvalues in [-1, bound] are mapped into [-1, 1]; those above grow with their distance to it, and keep their
    order. The degree is such that 1 becomes about `LIFT`.
    """
    bound = max(bound, -0.9)
    middle, radius = np.float32((bound - 1) / 2), np.float32((bound + 1) / 2)
    degree = int(np.clip(np.arccosh(LIFT) / np.arccosh((1 - middle) / radius), 1, HIGHEST))
    parts = list(_parts(matrix))

    def apart(x: NDArray[np.float32]) -> NDArray[np.float32]:
        different: NDArray[np.float32] = x - known @ (known.T @ x)
        return different

    def apply(x: NDArray[np.float32]) -> NDArray[np.float32]:
        before, now = np.zeros_like(x), apart(x)

        def step(part: tuple[slice, sparse.csr_array]) -> None:
            rows, block = part
            product = block @ now
            product -= middle * now[rows]
            product *= factor
            np.subtract(product, before[rows], out=before[rows])

        for number in range(degree):
            factor = (1 if number == 0 else 2) / radius
            for _ in pool.map(step, parts):
                pass
            before, now = now, before
        return apart(now)

    return apply
