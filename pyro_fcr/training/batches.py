"""Batches by index: shuffled by seed and epoch, so that any position can be returned to.

What every step would compute anew of the counts is prepared once: they stay on the GPU, see
:mod:`pyro_fcr.training.resident`, or their sums are kept for count likelihoods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import Cells, stored
from pyro_fcr.data.stored import CELLS_PER_POOL, StoredMatrix
from pyro_fcr.parts import Part
from pyro_fcr.ranks import n_processes
from pyro_fcr.training.resident import ResidentCells, Ungathered, fits
from pyro_fcr.training.summaries import Summaries

_RUN = 256  # cells side by side on disk that come into one pool


def prefetched(batches: Iterator[Batch | Ungathered]) -> Iterator[Batch | Ungathered]:
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
        if device.type == "cuda" and not self.is_stored and fits(cells, device):
            self._resident = ResidentCells(cells, device, dtype=dtype)
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

    def shuffled(self, seed: int, epoch: int, *, start: int = 0) -> Iterator[Batch | Ungathered]:
        """Yield the whole batches of an epoch, from batch ``start`` on.

        The few cells that do not fill a batch are left out; they differ from epoch to epoch. Of
        cells that lie on the device their rows are yielded, which are sent there once an epoch.
        """
        batches = self.shuffled_rows(seed, epoch)
        if self.is_resident:
            sent = torch.cat(batches).to(self.device).split(self.batch_size)
            yield from (self._ungathered(rows) for rows in sent[start:])
            return
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
    def is_resident(self) -> bool:
        """Whether the cells lie on the device, where a batch is a gather of rows."""
        return self._resident is not None

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

    def _ungathered(self, rows: Tensor) -> Ungathered:
        """Return this process's part of a batch, not gathered yet."""
        assert self._resident is not None
        part = self._part_of(rows)
        return Ungathered(self._resident, rows if part is None else part.own(rows), part)

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
