"""Batches by index: shuffled by seed and epoch, so that any position can be returned to.

What every step would compute anew of the counts is prepared once: they stay on the GPU, where a
batch is a gather of rows, or their sums are kept for count likelihoods.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import gammaln
from torch import Tensor

from pyro_fcr.batch import TAIL_BOUND, Batch, CountSummary, tabulate_tails
from pyro_fcr.data import Cells, stored
from pyro_fcr.data.io import Matrix
from pyro_fcr.data.stored import CELLS_PER_POOL, Expression, StoredMatrix, blocks_of
from pyro_fcr.parts import Part
from pyro_fcr.ranks import n_processes

_SHARE_OF_FREE_MEMORY = 0.5
_CELLS_AT_ONCE = 4_096
_RUN = 256  # cells side by side on disk that come into one pool
_KINDS = (torch.uint8, torch.int16, torch.int32)  # of which torch can gather rows


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches; each next one is prepared in a thread while the last is worked on."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(next, batches, None)
            yield batch


class Batches:
    """The training or held-out cells, a batch at a time.

    Parameters
    ----------
    cells
        The resident data set.
    rows
        Positions of the cells to use, ``(n,)``.
    batch_size
        Cells per batch.
    device, dtype
        Device and precision of the batches.

    Notes
    -----
    Only :meth:`for_training` prepares what pays over many passes over the data, and divides every
    batch among the processes, if there are several.
    """

    def __init__(
        self,
        cells: Cells,
        rows: np.ndarray,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cells, self.rows = cells, torch.as_tensor(rows, dtype=torch.long)
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self._summaries: Summaries | None = None
        self._resident: ResidentCells | None = None
        self.shared = False

    @classmethod
    def for_training(
        cls,
        cells: Cells,
        rows: np.ndarray,
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Batches:
        """Return batches whose counts stay on the GPU if they fit there, else are summed up."""
        self = cls(cells, rows, batch_size=batch_size, device=device, dtype=dtype)
        self.shared = True
        if not np.issubdtype(cells.expression.dtype, np.unsignedinteger):  # no counts
            return self
        if device.type == "cuda" and not self.is_stored and _fits(cells, device):
            self._resident = ResidentCells(cells, device)
        else:
            tails = device.type == "cpu"
            self._summaries = Summaries(cells.expression, rows, batch_size=batch_size, tails=tails)
        return self

    def of(self, rows: np.ndarray) -> Batches:
        """Return other cells of the data set, ``(n,)`` positions; what is prepared is shared."""
        other = copy.copy(self)
        other.rows = torch.as_tensor(rows, dtype=torch.long)
        return other

    def __len__(self) -> int:
        return max(1, len(self.rows) // self.batch_size)

    def shuffled(self, seed: int, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the whole batches of an epoch, from batch ``start`` on.

        The few cells that do not fill a batch are left out; they differ from epoch to epoch.
        """
        batches = self.shuffled_rows(seed, epoch)
        for first in range(0, len(batches), self._batches_per_pool):
            rows = batches[max(first, start) : first + self._batches_per_pool]
            here = self._with_pool(rows)
            yield from (here.part(some) for some in rows)

    def shuffled_rows(self, seed: int, epoch: int) -> list[Tensor]:
        """Return the positions of the cells of every whole batch of an epoch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        if self.is_stored:
            order = _shuffled_by_pools(order, generator, self._batches_per_pool * self.batch_size)
        return list(self.rows[order].split(self.batch_size)[: len(self)])

    @property
    def is_stored(self) -> bool:
        """Whether the cells are read from disk as they are needed."""
        return isinstance(self.cells.expression, StoredMatrix)

    @property
    def _batches_per_pool(self) -> int:
        """Batches whose cells are read together from a matrix on disk; all, from memory."""
        y = self.cells.expression
        if not isinstance(y, StoredMatrix):
            return len(self)
        fitting = stored.VALUES_PER_POOL * len(self.cells) // max(1, y.n_values)
        return max(1, min(CELLS_PER_POOL, fitting) // self.batch_size)

    def _with_pool(self, batches: list[Tensor]) -> Batches:
        """Return the same with this process's cells of some batches in memory."""
        if not self.is_stored or not batches:
            return self
        mine = [
            rows if (part := self._part_of(rows)) is None else part.own(rows) for rows in batches
        ]
        here = copy.copy(self)
        pool = self.cells.expression.pool(torch.cat(mine).numpy())
        here.cells = replace(self.cells, expression=pool)
        return here

    @property
    def nbytes(self) -> int:
        """Memory of the cells and of one batch of them, in bytes."""
        per_cell = self.cells.n_genes + sum(each.shape[1] for each in self.cells.levels.values())
        return self.cells.nbytes + 4 * per_cell * self.batch_size

    def in_order(self) -> Iterator[Batch]:
        """Yield all cells in their own order."""
        for rows in self.rows.split(self.batch_size):
            yield self.part(rows)

    @property
    def is_divided(self) -> bool:
        """Whether several processes have a part of every batch each."""
        return self.shared and n_processes() > 1

    def part(self, rows: Tensor) -> Batch:
        """Return this process's part of a batch; all of it if there are no others, or few cells."""
        part = self._part_of(rows)
        if part is None:
            return self.batch(rows)
        return replace(self.batch(part.own(rows)), part=part)

    def _part_of(self, rows: Tensor) -> Part | None:
        return Part.of_this_process(len(rows)) if self.shared else None

    def batch(self, rows: Tensor) -> Batch:
        """Return some cells as a batch; a pass over the data is ``cells.n_total`` cells."""
        if self._resident is not None:
            batch = self._resident.batch(rows.to(self.device))
        else:
            summarise = None if self._summaries is None else self._summaries.summary
            batch = self.cells.batch(rows, device=self.device, summarise=summarise)
        return batch if self.dtype == torch.float32 else batch.to(dtype=self.dtype)


def _shuffled_by_pools(order: Tensor, generator: torch.Generator, n: int) -> Tensor:
    """Return an order in which runs of cells that lie together are read together.

    Parameters
    ----------
    order
        Any order of the cells, ``(n_cells,)``: it shuffles the runs.
    generator
        Shuffles the cells of each pool of ``n``.
    """
    n_runs = -(-len(order) // _RUN)
    runs = order[order < n_runs]
    cells = (runs[:, None] * _RUN + torch.arange(_RUN)).flatten()
    pools = cells[cells < len(order)].split(n)
    return torch.cat([each[torch.randperm(len(each), generator=generator)] for each in pools])


class ResidentCells:
    """All cells of a data set on a device, counts in the narrowest type that can be gathered.

    Parameters
    ----------
    cells
        The data set, of counts.
    device
        The device that holds it.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        kind = _kind(cells)
        chunks = np.split(np.arange(len(cells)), range(_CELLS_AT_ONCE, len(cells), _CELLS_AT_ONCE))
        parts = (cells.batch(rows) for rows in chunks)
        self._all = Batch.concatenate([_with_counts(each, kind) for each in parts]).to(device)
        per_cell = torch.from_numpy(log_factorials(cells.expression))
        self._log_factorial = per_cell.float().to(device)

    def batch(self, rows: Tensor) -> Batch:
        """Gather cells, ``(n,)`` positions on the device; nothing waits for it."""
        batch = _with_counts(self._all.take(rows), torch.float32)
        return replace(batch, counts=CountSummary(self._log_factorial[rows].sum()))


def _with_counts(batch: Batch, kind: torch.dtype) -> Batch:
    return replace(batch, values={**batch.values, "y": batch["y"].to(kind)})


def _fits(cells: Cells, device: torch.device) -> bool:
    """Return whether half of the device's free memory holds the counts densely."""
    free, _ = torch.cuda.mem_get_info(device)
    return len(cells) * cells.n_genes * _kind(cells).itemsize < _SHARE_OF_FREE_MEMORY * free


def _kind(cells: Cells) -> torch.dtype:
    values = cells.expression if isinstance(cells.expression, np.ndarray) else cells.expression.data
    largest = int(values.max(initial=0))
    return next(kind for kind in _KINDS if largest <= torch.iinfo(kind).max)


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
