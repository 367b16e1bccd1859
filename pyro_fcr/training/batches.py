"""Batches by index: shuffled by seed and epoch, so that any position can be returned to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import Cells
from pyro_fcr.training.resident import ResidentCells, fits
from pyro_fcr.training.summaries import Summaries


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches, each next one being prepared in a thread while the last is worked on."""
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
        The cells of it to use, ``(n,)`` positions.
    batch_size
        Cells per batch.
    device
        Where batches go.

    Notes
    -----
    What many passes over the data profit from is made by :meth:`for_training` only.
    """

    def __init__(
        self, cells: Cells, rows: np.ndarray, *, batch_size: int, device: torch.device
    ) -> None:
        self.cells, self.rows = cells, torch.as_tensor(rows, dtype=torch.long)
        self.batch_size, self.device = batch_size, device
        self._summaries: Summaries | None = None
        self._resident: ResidentCells | None = None

    @classmethod
    def for_training(
        cls, cells: Cells, rows: np.ndarray, *, batch_size: int, device: torch.device
    ) -> Batches:
        """Return batches whose counts stay on the GPU if they fit there, else are summed up."""
        self = cls(cells, rows, batch_size=batch_size, device=device)
        if not np.issubdtype(cells.expression.dtype, np.unsignedinteger):  # no counts
            return self
        if device.type == "cuda" and fits(cells, device):
            self._resident = ResidentCells(cells, device)
        else:
            tails = device.type == "cpu"
            self._summaries = Summaries(cells.expression, rows, batch_size=batch_size, tails=tails)
        return self

    def of(self, rows: np.ndarray) -> Batches:
        """Give other cells of the data set, ``(n,)`` positions; all that is prepared is shared."""
        other = copy.copy(self)
        other.rows = torch.as_tensor(rows, dtype=torch.long)
        return other

    def __len__(self) -> int:
        return max(1, len(self.rows) // self.batch_size)

    def shuffled(self, seed: int, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Yield the whole batches of an epoch, from batch ``start`` on.

        The few cells that do not fill a batch are left out; other ones in every epoch.
        """
        for rows in self.shuffled_rows(seed, epoch)[start:]:
            yield self.batch(rows)

    def shuffled_rows(self, seed: int, epoch: int) -> list[Tensor]:
        """Give the cells of every whole batch of an epoch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        return list(self.rows[order].split(self.batch_size)[: len(self)])

    @property
    def nbytes(self) -> int:
        """Memory of the cells and of one batch of them, in bytes."""
        per_cell = self.cells.n_genes + sum(each.shape[1] for each in self.cells.levels.values())
        return self.cells.nbytes + 4 * per_cell * self.batch_size

    def in_order(self) -> Iterator[Batch]:
        """Yield all cells in their own order."""
        for rows in self.rows.split(self.batch_size):
            yield self.batch(rows)

    def batch(self, rows: Tensor) -> Batch:
        """Give some cells as a batch; a pass over the data is all cells of this object."""
        if self._resident is not None:
            batch = self._resident.batch(rows.to(self.device))
        else:
            summarise = None if self._summaries is None else self._summaries.summary
            batch = self.cells.batch(rows, device=self.device, summarise=summarise)
        return replace(batch, n_total=len(self.rows))
