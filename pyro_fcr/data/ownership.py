"""What a fitted model keeps of the cells it was made with, and how other cells differ from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.cells import Cells
from pyro_fcr.data.io import Matrix, read_matrix
from pyro_fcr.data.schema import Schema


def snapshot(
    adata: AnnData, schema: Schema, *, matrix: Matrix | None = None, obsm: Iterable[str] = ()
) -> AnnData:
    """Copy what a model needs of cells, so that edits of `adata` no longer reach it.

    Parameters
    ----------
    adata
        The cells.
    schema
        Names the layer.
    matrix
        Their expression where it has been read already; None reads it.
    obsm
        Names of arrays in `adata.obsm` to keep.

    Returns
    -------
    AnnData
        With all of `.obs`, the names of the genes, and the expression as `.X` and in the layer
        that the schema names.
    """
    expression = read_matrix(adata, schema) if matrix is None else matrix
    return AnnData(
        expression,
        obs=adata.obs.copy(),
        var=pd.DataFrame(index=adata.var_names.copy()),
        layers={} if schema.layer is None else {schema.layer: expression},
        obsm={name: np.array(adata.obsm[name]) for name in obsm},
    )


def changed_labels(obs: pd.DataFrame, since: pd.DataFrame, schema: Schema) -> str:
    """Say how annotation differs from what it was; nothing if it does not.

    Parameters
    ----------
    obs, since
        `adata.obs` as it was, and as it is now; cells are matched by name.
    schema
        Names the columns to compare.
    """
    gone, new = obs.index.difference(since.index), since.index.difference(obs.index)
    said = [f"{len(names)} {word}" for names, word in ((gone, "gone"), (new, "new")) if len(names)]
    both = obs.index.intersection(since.index)
    for key in schema.columns:
        if key not in since:
            said.append(f"column {key!r} gone")
        elif n := int((obs.loc[both, key].astype(str) != since.loc[both, key].astype(str)).sum()):
            said.append(f"{n} with another {key!r}")
    return ", ".join(said)


def changed_cells(own: Cells, given: Cells) -> dict[str, npt.NDArray[np.str_]]:
    """Find cells that have the name of one of `own`, but other values.

    Returns
    -------
    dict
        Names of the cells by what differs: `"expression"`, or a site such as `"t"`.
    """
    at = pd.Index(own.obs_names).get_indexer(given.obs_names)
    rows = np.flatnonzero(at >= 0)
    at = at[rows]
    differs = {"expression": ~np.isclose(_digest(own)[at], _digest(given)[rows], rtol=1e-5)}
    for name in given.levels:
        sites = own.site(name)[at], given.site(name)[rows]
        differs[name] = (sites[0] != sites[1]).any(dim=1).numpy()
    return {name: given.obs_names[rows[cells]] for name, cells in differs.items() if cells.any()}


def _digest(cells: Cells) -> npt.NDArray[np.float64]:
    """Read every cell along one direction: equal expression gives equal numbers."""
    return cells.expression @ np.random.default_rng(0).random(cells.n_genes)
