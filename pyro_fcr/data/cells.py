"""The data set in memory, and minibatches of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from pyro_fcr.batch import Batch, CountSummary
from pyro_fcr.data.io import Matrix
from pyro_fcr.data.stored import Expression

Summarise = Callable[[npt.NDArray[np.int64], Matrix], CountSummary]


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells ready for the model, without their AnnData.

    Parameters
    ----------
    expression
        Counts or log1p values, shape (n_cells, n_genes), CSR or dense, in memory or on disk
        (:class:`pyro_fcr.data.stored.StoredMatrix`). Any number type:
        `batch` widens to float32; counts are held in the narrowest unsigned type that fits.
    library
        Size factor of the likelihood, shape (n_cells, 1), float32: total count over
        `genes`, or 1 for log1p.
    levels
        Distinct rows of each covariate site and of `"t"`, sorted, shape (n_levels, width),
        float32; empty for cells of which only the expression is known.
    codes
        Row of `levels` that each cell has, shape (n_cells,), int64.
    strata
        Stratum of each row of `levels`, shape (n_levels,), int64: what a batch's codes are. Rows
        differ from strata only where an agent has more than eight doses, which are binned.
    obs_names
        Names of the cells, shape (n_cells,).
    genes
        Names of the columns of `expression`.
    outcomes
        Values of each outcome beside the expression, shape (n_cells, width), float32.
    n_total
        Cells in one pass over the training data, by which a batch is scaled; 0 stands for all.
        `dataclasses.replace(cells, n_total=len(split.train))` sets it.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from pyro_fcr.data import Schema, register
    >>> obs = pd.DataFrame({"drug": ["control", "A"], "line": ["u", "u"]}, index=["c0", "c1"])
    >>> adata = ad.AnnData(np.array([[1.0, 2.0], [0.0, 4.0]]), obs=obs)
    >>> schema = Schema(
    ...     treatment_key="drug", control="control", covariate_keys="line", min_cells=1
    ... )
    >>> registry, cells = register(adata, schema)
    >>> cells.batch(np.array([1, 0])).values["y"]
    tensor([[0., 4.],
            [1., 2.]])
    """

    expression: Expression
    library: Tensor
    levels: Mapping[str, Tensor]
    codes: Mapping[str, Tensor]
    strata: Mapping[str, Tensor]
    obs_names: pd.Index
    genes: tuple[str, ...]
    outcomes: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    n_total: int = 0

    def __post_init__(self) -> None:
        if self.n_total == 0:
            object.__setattr__(self, "n_total", len(self))

    def __len__(self) -> int:
        """Return the number of cells."""
        return int(self.expression.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self.expression.shape[1])

    @cached_property
    def n_levels(self) -> dict[str, int]:
        """Number of strata of each site."""
        return {name: int(strata.max()) + 1 for name, strata in self.strata.items()}

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        y = self.expression
        arrays = [y.data, y.indices, y.indptr] if sparse.issparse(y) else [y]
        tensors = [self.library, *self.levels.values(), *self.codes.values()]
        own = (*arrays, *tensors, *self.outcomes.values(), self.obs_names)
        return sum(each.nbytes for each in own)

    def site(self, name: str) -> Tensor:
        """Return the matrix of a site over all cells, shape (n_cells, width), float32."""
        return self.levels[name].index_select(0, self.codes[name])

    def batch(
        self,
        index: npt.ArrayLike | Tensor,
        *,
        device: torch.device | str | None = None,
        summarise: Summarise | None = None,
    ) -> Batch:
        """Gather cells as dense tensors.

        Parameters
        ----------
        index
            Positions of the cells, one-dimensional whole numbers.
        device
            Where the tensors go; None leaves them on the CPU.
        summarise
            Function of positions and counts that sums up what count likelihoods need of a batch.

        Returns
        -------
        Batch
            `values`: `"y"` (n, n_genes), `"library"` (n, 1), each site of `levels`, by default
            `"x"` (n, p) and `"t"` (n, k), and of `outcomes`, float32; `codes`: each site of
            `levels` (n,), int64.

        Raises
        ------
        TypeError
            If `index` is a mask, or not of whole numbers.
        IndexError
            If a position is out of range.
        """
        rows = _positions(index)
        codes = {name: _take(code, rows) for name, code in self.codes.items()}
        values = {name: _take(self.levels[name], code.numpy()) for name, code in codes.items()}
        values["library"] = _take(self.library, rows)
        values |= {name: torch.from_numpy(each[rows]) for name, each in self.outcomes.items()}
        picked = self.expression[rows]
        y = picked if isinstance(picked, np.ndarray) else picked.toarray()
        on_cpu = device is None or torch.device(device).type == "cpu"
        values["y"] = torch.from_numpy(y.astype(np.float32) if on_cpu else y)
        counts = None if summarise is None else summarise(rows, picked)
        return Batch(
            # Counts travel in their own, narrower type and are widened where they are used.
            values={name: each.to(device).to(torch.float32) for name, each in values.items()},
            codes={
                name: _take(self.strata[name], code.numpy()).to(device)
                for name, code in codes.items()
            },
            n_levels=self.n_levels,
            n_total=self.n_total,
            counts=None if counts is None else counts.to(device or "cpu"),
        )


def _positions(index: npt.ArrayLike | Tensor) -> npt.NDArray[np.int64]:
    rows = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    if rows.ndim != 1 or not (np.issubdtype(rows.dtype, np.integer) or rows.size == 0):
        raise TypeError(
            f"index has shape {rows.shape} and type {rows.dtype}; expected one-dimensional "
            "whole numbers; turn a mask into positions with np.flatnonzero(mask)"
        )
    # A copy, because torch does not take read-only or reversed memory.
    return np.array(rows, dtype=np.int64)


def _take(table: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    # Gathering in torch wakes its thread pool, which costs more than these few rows.
    return torch.from_numpy(table.numpy().take(rows, axis=0))
