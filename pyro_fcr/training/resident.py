"""Counts that stay on the GPU, where a batch is a gather of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.counts import CountSummary
from pyro_fcr.data import Cells
from pyro_fcr.training.summaries import log_factorials

_SHARE_OF_FREE_MEMORY = 0.5
_CELLS_AT_ONCE = 4_096


class ResidentCells:
    """All cells of a data set on a device, counts in the narrowest type that can be gathered.

    Parameters
    ----------
    cells
        The data set, of counts.
    device
        Where it goes.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        self._kind = _kind(cells)
        parts = [
            self._narrow(cells.batch(np.arange(start, min(start + _CELLS_AT_ONCE, len(cells)))))
            for start in range(0, len(cells), _CELLS_AT_ONCE)
        ]
        self._all = Batch.concatenate(parts).to(device)
        per_cell = torch.from_numpy(log_factorials(cells.expression))
        self._log_factorial = per_cell.float().to(device)

    def batch(self, rows: Tensor) -> Batch:
        """Gather cells, ``(n,)`` positions on the device; nothing waits for it."""
        batch = self._all.take(rows)
        return replace(
            batch,
            values={**batch.values, "y": batch["y"].float()},
            counts=CountSummary(self._log_factorial[rows].sum()),
        )

    def _narrow(self, batch: Batch) -> Batch:
        return replace(batch, values={**batch.values, "y": batch["y"].to(self._kind)})


def fits(cells: Cells, device: torch.device) -> bool:
    """Tell whether half of the device's free memory holds the counts densely."""
    free, _ = torch.cuda.mem_get_info(device)
    return len(cells) * cells.n_genes * _kind(cells).itemsize < _SHARE_OF_FREE_MEMORY * free


def _kind(cells: Cells) -> torch.dtype:
    values = cells.expression if isinstance(cells.expression, np.ndarray) else cells.expression.data
    largest = int(values.max(initial=0))
    return next(kind for kind in _KINDS if largest <= torch.iinfo(kind).max)


_KINDS = (torch.uint8, torch.int16, torch.int32)
