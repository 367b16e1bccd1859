"""What is added up once over the counts of a data set, so that no training step has to."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import gammaln

from pyro_fcr.counts import TAIL_BOUND, CountSummary, tabulate_tails
from pyro_fcr.data.io import Matrix


class Summaries:
    """Makes the :class:`pyro_fcr.counts.CountSummary` of batches.

    Parameters
    ----------
    expression
        Counts, shape (n_cells, n_genes), CSR or dense.
    rows
        Cells that batches are made of, shape (n,).
    batch_size
        Cells of the batches whose tables are to have one shape.
    tails
        Whether to tabulate counts by gene, which takes a CPU to profit from.
    """

    def __init__(
        self, expression: Matrix, rows: npt.NDArray[np.int64], *, batch_size: int, tails: bool
    ) -> None:
        self.tails = tails
        self._log_factorial = log_factorials(expression)
        high = _sum_per_cell(expression, lambda y: y > TAIL_BOUND)[rows]
        # Batches of the same shape all the time: room for the cells with the most high counts.
        self._n_high = int(np.sort(high)[::-1][:batch_size].sum())

    def summary(self, rows: npt.NDArray[np.int64], counts: Matrix) -> CountSummary:
        """Return the summary of some cells, `rows`, whose counts are given."""
        total = np.float32(self._log_factorial[rows].sum())
        log_factorial = torch.tensor(total)
        if not self.tails:
            return CountSummary(log_factorial)
        gene, count = _entries(counts)
        tails = tabulate_tails(gene, count, n_genes=counts.shape[1], n_high=self._n_high)
        return CountSummary(log_factorial, tails)


def log_factorials(expression: Matrix) -> npt.NDArray[np.float64]:
    """Return the sum of `lgamma(y + 1)` over the genes of each cell, shape (n_cells,)."""
    return _sum_per_cell(expression, lambda y: gammaln(y + np.float64(1.0)))


def _sum_per_cell(
    matrix: Matrix, function: Callable[[npt.NDArray], npt.NDArray]
) -> npt.NDArray[np.float64]:
    """Add up a function of the entries that is 0 at 0, over the genes of each cell."""
    if isinstance(matrix, np.ndarray):
        return np.array([function(row).sum(dtype=np.float64) for row in matrix])
    values = function(matrix.data).astype(np.float64)
    mapped = sparse.csr_array((values, matrix.indices, matrix.indptr), matrix.shape)
    return np.asarray(mapped.sum(axis=1)).reshape(-1)


def _entries(matrix: Matrix) -> tuple[npt.NDArray, npt.NDArray]:
    """Return gene and value of the entries that are not zero."""
    if isinstance(matrix, np.ndarray):
        cell, gene = matrix.nonzero()
        return gene, matrix[cell, gene]
    return matrix.indices, matrix.data
