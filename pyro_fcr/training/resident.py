"""Cells that stay on the GPU, where a batch is a gather of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_fcr.batch import Batch, CountSummary
from pyro_fcr.data import Cells
from pyro_fcr.parts import Part
from pyro_fcr.training.summaries import log_factorials

_SHARE_OF_FREE_MEMORY = 0.5
_CELLS_AT_ONCE = 4_096
_KINDS = (torch.uint8, torch.int16, torch.int32)  # of which torch can gather rows


class ResidentCells:
    """All cells of a data set on a device, counts in the narrowest type that can be gathered.

    Parameters
    ----------
    cells
        The data set, of counts.
    device
        The device that holds it.
    dtype
        Precision of the batches.
    """

    def __init__(
        self, cells: Cells, device: torch.device, *, dtype: torch.dtype = torch.float32
    ) -> None:
        kind = _kind(cells)
        chunks = np.split(np.arange(len(cells)), range(_CELLS_AT_ONCE, len(cells), _CELLS_AT_ONCE))
        parts = (cells.batch(rows) for rows in chunks)
        self._all = Batch.concatenate([_with_counts(each, kind) for each in parts])
        self._all = self._all.to(device, dtype)
        self._log_factorial = torch.from_numpy(log_factorials(cells.expression)).to(device, dtype)
        self.dtype = dtype

    def batch(self, rows: Tensor) -> Batch:
        """Gather cells, ``(n,)`` positions on the device; nothing waits for it."""
        batch = _with_counts(self._all.take(rows), self.dtype)
        return replace(batch, counts=CountSummary(self._log_factorial[rows].sum()))


@dataclass(frozen=True, eq=False)
class Ungathered:
    """A batch that is not gathered yet; a recorded step gathers it from the place of its rows.

    Parameters
    ----------
    cells
        The cells of the data set.
    rows
        Positions of those of the batch, ``(n,)`` on the device.
    part
        As in :class:`pyro_fcr.batch.Batch`.
    """

    cells: ResidentCells
    rows: Tensor
    part: Part | None = None

    def gathered(self) -> Batch:
        """Return the batch."""
        return replace(self.cells.batch(self.rows), part=self.part)

    def tensors(self) -> dict[str, Any]:
        """Return what differs from one batch to another."""
        return {"rows": self.rows}

    def map(self, function: Callable[[Tensor], Tensor]) -> Ungathered:
        """Return the same with a function of the rows in their place."""
        return replace(self, rows=function(self.rows))


def _with_counts(batch: Batch, kind: torch.dtype) -> Batch:
    return replace(batch, values={**batch.values, "y": batch["y"].to(kind)})


def fits(cells: Cells, device: torch.device) -> bool:
    """Return whether half of the device's free memory holds the counts densely."""
    free, _ = torch.cuda.mem_get_info(device)
    return len(cells) * cells.n_genes * _kind(cells).itemsize < _SHARE_OF_FREE_MEMORY * free


def _kind(cells: Cells) -> torch.dtype:
    values = cells.expression if isinstance(cells.expression, np.ndarray) else cells.expression.data
    largest = int(values.max(initial=0))
    return next(kind for kind in _KINDS if largest <= torch.iinfo(kind).max)
