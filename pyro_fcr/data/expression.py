"""The expression of registered genes, checked, and the library sizes of its cells."""

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.data import checks
from pyro_fcr.data.design import Codes
from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.io import Matrix, read_matrix
from pyro_fcr.data.schema import Schema


def read_expression(adata: AnnData, genes: Sequence[str], schema: Schema) -> Matrix:
    """Return the values of the registered genes, shape (n_cells, n_genes).

    Raises
    ------
    SchemaError
        If genes are missing, or the values are not as promised.

    Warns
    -----
    UserWarning
        If there are other genes, in the name of the caller's caller's caller.
    """
    order = _gene_order(genes, adata)
    matrix = _select(read_matrix(adata, schema), order)
    checks.check_values(matrix, schema, adata=adata, genes=np.asarray(genes))
    checks.check_cells_expressed(matrix, schema, adata=adata)
    return matrix


def narrowed(matrix: Matrix) -> Matrix:
    """Return counts in the narrowest unsigned type that holds the largest, zeros not touched."""
    values = matrix if isinstance(matrix, np.ndarray) else matrix.data
    kind = np.min_scalar_type(int(values.max(initial=0)))
    return matrix.astype(kind)


def library_sizes(matrix: Matrix) -> npt.NDArray[np.float64]:
    """Return the total count of each cell, shape (n_cells,), added up in float64."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).reshape(-1)


def library_column(matrix: Matrix, schema: Schema) -> Tensor:
    """Return what the likelihood is scaled by, shape (n_cells, 1): total counts, 1 for log1p."""
    counts = schema.expression == "counts"
    sizes = library_sizes(matrix) if counts else np.ones(matrix.shape[0])
    return torch.from_numpy(sizes.astype(np.float32)).unsqueeze(1)


def _gene_order(genes: Sequence[str], adata: AnnData) -> Codes:
    """Return the column of `adata` that holds each registered gene, shape (n_genes,)."""
    order = adata.var_names.get_indexer(list(genes)).astype(np.int64)
    missing = np.flatnonzero(order < 0)
    if len(missing):
        raise SchemaError(
            f"adata.var_names lacks {len(missing)} of the {len(genes)} registered genes, first "
            f"{listed(genes[gene] for gene in missing[:5])}; it has {listed(adata.var_names[:3])} "
            "... : use the same kind of gene names, and the genes from before any filtering"
        )
    extra = adata.n_vars - len(genes)
    if extra:
        warnings.warn(
            f"adata has {extra} genes that were not registered; they are dropped",
            UserWarning,
            stacklevel=5,
        )
    return order


def _select(matrix: Matrix, order: Codes) -> Matrix:
    """Put the columns in `order`, without a copy where they are so already."""
    if np.array_equal(order, np.arange(matrix.shape[1])):
        return matrix
    selected = matrix[:, order]
    if isinstance(selected, np.ndarray):
        return np.ascontiguousarray(selected)
    selected.sort_indices()
    return selected
