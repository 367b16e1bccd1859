"""Leaks between the cells that train and those that test: wrong pairs, and the same cell twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from anndata import AnnData
from scipy import sparse

from pyro_fcr.data.errors import listed
from pyro_fcr.data.pairs import Layout, Mask, Pair

_TELLING: Final = 10  # genes that a cell must express before an equal row says that it is the same


def check_pairs(
    layout: Layout, pairs: Sequence[Pair], *, train: Mask, test: Mask, name: str
) -> None:
    """Check that tested are the named pairs, each with control cells in training.

    Raises
    ------
    ValueError
        A named pair has no test cells or no control cells in training, or test cells are of
        another pair (controls of a named pair's context may be among them).
    """
    found = {layout.pairs[i] for i in np.flatnonzero(layout.n_cells(test))}
    contexts = {pair.context for pair in pairs}
    controls = {layout.pairs[i] for i in np.flatnonzero(layout.is_control)}
    allowed = {*pairs, *(pair for pair in controls if pair.context in contexts)}
    if extra := sorted(found - allowed):
        raise ValueError(
            f"{name}: there are test cells of {listed(extra, 3, quoted=False)}, which is not held "
            "out"
        )
    if missing := sorted(set(pairs) - found):
        raise ValueError(f"{name}: there are no test cells of {listed(missing, 3, quoted=False)}")
    trained = {
        layout.pairs[i].context for i in np.flatnonzero(layout.n_cells(train) * layout.is_control)
    }
    if lacking := sorted(contexts - trained):
        raise ValueError(
            f"{name}: no control cells of {' / '.join(lacking[0])} are in training; a context is "
            "known by its controls"
        )


def check_duplicates(
    adata: AnnData, layer: str | None, *, train: Mask, test: Mask, name: str
) -> None:
    """Check that no test cell is in training too, under its own name or another.

    Raises
    ------
    ValueError
        Names cells that share a name, or all of their expression.
    """
    names = adata.obs_names.to_numpy()
    if shared := sorted(set(names[train]) & set(names[test])):
        raise ValueError(
            f"{name}: {len(shared)} cell names are in training and in test, such as "
            f"{shared[0]!r}; if they are the same cells, drop one of each, else call "
            "adata.obs_names_make_unique()"
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    seen = {row: names[i] for i, row in _rows(matrix, np.flatnonzero(train))}
    twice = [(names[i], seen[row]) for i, row in _rows(matrix, np.flatnonzero(test)) if row in seen]
    if twice:
        pairs = ", ".join(f"{cell!r} = {other!r}" for cell, other in twice[:3])
        raise ValueError(
            f"{name}: {len(twice)} test cells have the expression of a training cell gene by gene "
            f"({pairs}): duplicates leak; keep one of each"
        )


def _rows(matrix: Any, positions: npt.NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """Yield cells with what identifies their expression; cells of few genes are left out."""
    rows = sparse.csr_matrix(matrix[positions], dtype=np.float64, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    for i, start, end in zip(positions, rows.indptr[:-1], rows.indptr[1:], strict=True):
        if end - start >= _TELLING:
            yield i, rows.indices[start:end].tobytes() + rows.data[start:end].tobytes()
