"""Sums over the counts of batches, which make count likelihoods cheap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import gammaln

from pyro_fcr.batch import TAIL_BOUND, CountSummary, tabulate_tails
from pyro_fcr.data.io import Matrix
from pyro_fcr.data.stored import Expression, blocks_of


class Summaries:
    """Make the :class:`pyro_fcr.batch.CountSummary` of batches.

    Parameters
    ----------
    expression
        Counts, shape (n_cells, n_genes), CSR or dense.
    rows
        Positions of the cells that batches are made of, shape (n,).
    batch_size
        Cells per batch; the tables of all batches of this size have one shape.
    tails
        Whether to tabulate counts by gene, which pays on a CPU only.
    """

    def __init__(
        self, expression: Expression, rows: npt.NDArray[np.int64], *, batch_size: int, tails: bool
    ) -> None:
        self.tails = tails
        self._log_factorial = log_factorials(expression)
        high = _sum_per_cell(expression, lambda y: y > TAIL_BOUND)[rows]
        # Room for the cells with the most high counts, so that all batches have the same shape.
        self._n_high = int(np.sort(high)[::-1][:batch_size].sum())

    def summary(self, rows: npt.NDArray[np.int64], counts: Matrix) -> CountSummary:
        """Return the summary of some cells, at positions ``rows``, whose counts are given."""
        log_factorial = torch.tensor(np.float32(self._log_factorial[rows].sum()))
        if not self.tails:
            return CountSummary(log_factorial)
        entries = sparse.csr_array(counts)
        tails = tabulate_tails(
            entries.indices, entries.data, n_genes=counts.shape[1], n_high=self._n_high
        )
        return CountSummary(log_factorial, tails)


def log_factorials(expression: Expression) -> npt.NDArray[np.float64]:
    """Return the sum of ``lgamma(y + 1)`` over the genes of each cell, shape (n_cells,)."""
    return _sum_per_cell(expression, lambda y: gammaln(y + np.float64(1.0)))


def _sum_per_cell(
    matrix: Expression, function: Callable[[npt.NDArray], npt.NDArray]
) -> npt.NDArray[np.float64]:
    """Add up a function of the entries that is 0 at 0, over the genes of each cell."""
    return np.concatenate([_sums_of_block(block, function) for _, block in blocks_of(matrix)])


def _sums_of_block(
    block: Matrix, function: Callable[[npt.NDArray], npt.NDArray]
) -> npt.NDArray[np.float64]:
    if isinstance(block, np.ndarray):
        return np.array([function(row).sum(dtype=np.float64) for row in block])
    values = function(block.data).astype(np.float64)
    mapped = sparse.csr_array((values, block.indices, block.indptr), block.shape)
    return np.asarray(mapped.sum(axis=1)).reshape(-1)
