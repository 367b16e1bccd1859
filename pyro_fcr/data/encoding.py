"""Treatments, contexts and genes -> rows and columns of numbers."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.data.design import Codes
from pyro_fcr.data.errors import SchemaError, did_you_mean, listed
from pyro_fcr.data.io import Matrix
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import Treatment

Rows = npt.NDArray[np.float32]


def treatment_row(
    treatment: Treatment, agents: Sequence[str], *, doses: Mapping[str, tuple[float, float]]
) -> Rows:
    """Return the row of t, shape (n_agents,); every agent must be known."""
    row = np.zeros(len(agents), dtype=np.float32)
    position = {agent: column for column, agent in enumerate(agents)}
    amounts = treatment.doses or (None,) * len(treatment.agents)
    for agent, dose in zip(treatment.agents, amounts, strict=True):
        row[position[agent]] = 1.0 if dose is None else scaled_dose(dose, *doses[agent])
    return row


def scaled_dose(dose: float, smallest: float, largest: float) -> float:
    """Put a dose on the log1p scale of an agent: 0 at 0, 1 at its largest training dose."""
    return math.log1p(dose / smallest) / math.log1p(largest / smallest)


def context_row(context: Sequence[str], covariates: Mapping[str, Sequence[str]]) -> Rows:
    """Return the row of x, shape (n_levels,): one one-hot block per covariate key."""
    blocks = [
        np.asarray(levels, dtype=str) == level
        for level, levels in zip(context, covariates.values(), strict=True)
    ]
    return np.concatenate(blocks).astype(np.float32)


def check_agents(treatment: Treatment, known: Sequence[str], *, key: str, where: str) -> None:
    """Raise if an agent was never seen in training; `known` may name the control too."""
    for agent in treatment.agents:
        if agent not in known:
            raise SchemaError(_unseen(agent, known, f"{key!r} of {where}"))


def check_context(
    context: Sequence[str], covariates: Mapping[str, Sequence[str]], *, where: str
) -> None:
    """Raise if a covariate level was never seen in training."""
    for (key, known), level in zip(covariates.items(), context, strict=True):
        if level not in known:
            raise SchemaError(_unseen(level, known, f"{key!r} of {where}"))


def distinct_rows(rows: list[Rows], codes: Codes) -> tuple[Tensor, Tensor]:
    """Return the sorted distinct rows, and the row of each cell.

    Parameters
    ----------
    rows
        A row for each code; some may be equal.
    codes
        Shape (n_cells,).
    """
    levels, merged = np.unique(np.stack(rows), axis=0, return_inverse=True)
    return torch.from_numpy(levels), torch.from_numpy(merged.reshape(-1)[codes].astype(np.int64))


def gene_order(genes: Sequence[str], adata: AnnData) -> Codes:
    """Return the column of `adata` that holds each registered gene, shape (n_genes,).

    Raises
    ------
    SchemaError
        If genes are missing.
    """
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
            stacklevel=3,
        )
    return order


def select_genes(matrix: Matrix, order: Codes) -> Matrix:
    """Put the columns in `order`, without a copy where they are so already."""
    if np.array_equal(order, np.arange(matrix.shape[1])):
        return matrix
    selected = matrix[:, order]
    if isinstance(selected, np.ndarray):
        return np.ascontiguousarray(selected)
    selected.sort_indices()
    return selected


def library_sizes(matrix: Matrix) -> npt.NDArray[np.float64]:
    """Return the total count of each cell, shape (n_cells,), added up in float64."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).reshape(-1)


def library_column(matrix: Matrix, schema: Schema) -> Tensor:
    """Return what the likelihood is scaled by, shape (n_cells, 1): total counts, 1 for log1p."""
    counts = schema.expression == "counts"
    sizes = library_sizes(matrix) if counts else np.ones(matrix.shape[0])
    return torch.from_numpy(sizes.astype(np.float32)).unsqueeze(1)


def _unseen(name: str, known: Sequence[str], place: str) -> str:
    return (
        f"{place}: {name!r} was not in the training cells; known: {listed(known, 20)}."
        f"{did_you_mean(name, known)} Rename it, drop its cells, or train with it"
    )
