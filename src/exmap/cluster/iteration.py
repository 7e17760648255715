"""The largest eigenpairs of a large sparse matrix whose eigenvalues lie in [-1, 1].

Small matrices are left to ARPACK. For large ones a subspace is multiplied by a Chebyshev polynomial of the matrix, over
and over, which lifts the wanted eigenvalues away from all others (Zhou, Saad, Tiago and Chelikowsky, 2006,
"Self-consistent-field calculations using Chebyshev-filtered subspace iteration"; Saad, 2011, "Numerical methods for
large eigenvalue problems", section 7.4). Nearly all work is then products of the matrix with a block of vectors, which
read each entry once for all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from exmap.cluster.sharing import sharing
from exmap.errors import NumericalError
from exmap.records import Progress
from exmap.runtime import worker_threads

if TYPE_CHECKING:
    import torch  # imported where it is used: names of clusterers are known without it

    Parts = list[tuple[slice, torch.Tensor]]

__all__ = ["largest_pairs"]

SINGLE_FROM = 15_000  # samples; the iteration then runs in single precision, which halves what memory has to move
ROWS, TOGETHER = 2**15, 2**22  # of the matrix or of vectors, in one product; the latter of a block of vectors
GUARD = 6  # vectors beside the wanted ones, at least, which keep unwanted eigenvalues away from them
TOLERANCE, ROUNDING = 2e-3, 2e-6  # residual, as a share of the distance of unwanted eigenvalues from 1, and at best
LIFT, HIGHEST = 30.0, 64  # how far the filter lifts the largest eigenvalue, and its highest degree
FIRST_BOUND = 0.5  # of the filter, before any eigenvalue is known
MARGIN = 0.05  # between the wanted eigenvalues and those that the filter damps
FLAT = 1e-10  # of the largest squared length of a combination of vectors: shorter ones are none
MOST_RESTARTS, MOST_ROUNDS = 10_000, 1_000

Product = Callable[[NDArray[Any]], NDArray[Any]]
Block = NDArray[np.float32]  # of vectors, shape (N, width)


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
            found = _filtered(matrix, known, count, seed, pool)
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
    matrix: sparse.csr_array, known: sparse.csc_array, count: int, seed: int, pool: ThreadPoolExecutor
) -> NDArray[np.float32]:
    """Return the wanted eigenvectors of a large matrix, the largest first, by filtered iteration of a subspace."""
    n = matrix.shape[0]
    known = known.astype(np.float32)
    single = sparse.csr_array((matrix.data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
    parts = [(rows, _compressed(part)) for rows, part in _parts(single, TOGETHER)]
    listen, width = sharing().listen, min(count + max(GUARD, count // 2), n - known.shape[1])

    def apart(block: Block) -> Block:
        block -= known @ (known.T @ block)
        return block

    block = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    bound, before = FIRST_BOUND, np.inf
    for number in range(1, MOST_ROUNDS + 1):
        block = _orthonormal(apart(_lifted(parts, _orthonormal(apart(block), pool), bound)), pool)
        products = _multiplied(parts, block)
        values, turn = linalg.eigh(_gram(block, products, pool))
        values, turn = values[::-1], turn[:, ::-1]
        block, products = _turned(block, turn, pool), _turned(products, turn, pool)
        products -= block * values.astype(np.float32)
        residual = float(np.sqrt(np.diag(_gram(products, products, pool))[:count].max()))
        tolerance = max(TOLERANCE * (1 - values[-1]), ROUNDING)
        if residual <= tolerance:
            return block[:, :count]
        left = np.log(residual / tolerance) / np.log(before / residual) if residual < before < np.inf else 1
        note = f"residual {residual:.0e}, until it is {tolerance:.0e}"
        listen(Progress("eigenvectors", number, number + int(np.clip(left, 1, MOST_ROUNDS)), "rounds", note))
        # A little below what has been found: the filter damps an eigenvalue at its bound no more than one at -1.
        bound, before = float(values[-1] - MARGIN * (1 - values[-1])), residual
    raise NumericalError(
        f"the eigenvalues of the neighbour graph of {n} samples did not converge in {MOST_ROUNDS} rounds (residual "
        f"{residual:.0e}, wanted {tolerance:.0e}); raise cluster.n_neighbors"
    )


def _compressed(part: sparse.csr_array) -> torch.Tensor:
    """Return a matrix as torch multiplies it, which shares its memory."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that sparse matrices are new
        return torch.sparse_csr_tensor(
            torch.from_numpy(part.indptr), torch.from_numpy(part.indices), torch.from_numpy(part.data), part.shape
        )


def _lifted(parts: Parts, block: Block, bound: float) -> Block:
    """Return a Chebyshev polynomial of a matrix times a block of vectors.

    Eigenvalues in [-1, bound] are mapped into [-1, 1]; those above grow with their distance to it, and keep their
    order. The degree is such that 1 becomes about `LIFT`.
    """
    import torch

    bound = max(bound, -0.9)
    middle, radius = (bound - 1) / 2, (bound + 1) / 2
    degree = int(np.clip(np.arccosh(LIFT) / np.arccosh((1 - middle) / radius), 1, HIGHEST))
    before, now = torch.zeros(block.shape), torch.from_numpy(block)
    for number in range(degree):
        factor = (1 if number == 0 else 2) / radius
        for rows, part in parts:
            torch.addmm(before[rows], part, now, beta=-1, alpha=factor, out=before[rows])
        before.sub_(now, alpha=factor * middle)
        before, now = now, before
    return np.asarray(now.numpy())


def _multiplied(parts: Parts, block: Block) -> Block:
    """Return the product of a matrix and a block of vectors."""
    import torch

    now, result = torch.from_numpy(block), torch.empty(block.shape)
    for rows, part in parts:
        torch.addmm(result[rows], part, now, beta=0, out=result[rows])
    return np.asarray(result.numpy())


def _gram(left: Block, right: Block, pool: ThreadPoolExecutor) -> NDArray[np.float64]:
    """Return the products of all columns with all others, added up in the same order by any number of threads."""
    found = pool.map(lambda rows: (left[rows].T @ right[rows]).astype(np.float64), _rows(len(left)))
    total: NDArray[np.float64] = sum(found, np.zeros((left.shape[1], right.shape[1])))
    return (total + total.T) / 2


def _turned(block: Block, turn: NDArray[np.float64], pool: ThreadPoolExecutor) -> Block:
    """Return other combinations of a block's columns, in its place."""
    single = turn.astype(np.float32)

    def combine(rows: slice) -> None:
        block[rows] = block[rows] @ single

    for _ in pool.map(combine, _rows(len(block))):
        pass
    return block


def _orthonormal(block: Block, pool: ThreadPoolExecutor) -> Block:
    """Return an orthonormal basis of a block's columns, in its place; once more against rounding."""
    for _ in range(2):
        values, vectors = linalg.eigh(_gram(block, block, pool))
        block = _turned(block, vectors / np.sqrt(np.maximum(values, FLAT * values[-1])), pool)
    return block


def _rows(number: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, number, ROWS))


def _parts(matrix: sparse.csr_array, rows: int) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Yield a matrix in blocks of rows, which share its memory."""
    n, ends = matrix.shape[0], matrix.indptr
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        inside = slice(ends[start], ends[stop])
        parts = (matrix.data[inside], matrix.indices[inside], ends[start : stop + 1] - ends[start])
        yield slice(start, stop), sparse.csr_array(parts, shape=(stop - start, n))


def _product(matrix: sparse.csr_array, pool: ThreadPoolExecutor) -> Product:
    """Return the product of a matrix and a vector, whose rows are shared out to threads."""
    parts = list(_parts(matrix, ROWS))
    return lambda vector: np.concatenate(list(pool.map(lambda part: part[1] @ vector, parts)))


def _shifted(matrix: sparse.csr_array, known: sparse.csc_array, pool: ThreadPoolExecutor) -> Product:
    """Return the product with a matrix whose eigenvalues are shifted into [0, 2], the known ones moved to 0."""
    multiply = _product(matrix, pool)
    return lambda x: multiply(x) + x - 2 * (known @ (known.T @ x))
