"""Labels and values of cells -> tensors: the rows of each site, expression and library sizes."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.data import checks
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Codes, Design
from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.io import Matrix, as_dense, check_by_rows, find_matrix, read_matrix
from pyro_fcr.data.labels import label_text
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.data.stored import (
    CELLS_PER_POOL,
    Expression,
    StoredMatrix,
    blocks_of,
    free_memory,
    stored_matrix,
)
from pyro_fcr.data.treatments import TreatmentEncoding, dose_strata

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.float32]


class Site(NamedTuple):
    """An exogenous site of all cells.

    Attributes
    ----------
    levels
        Its distinct rows, sorted, shape (n_levels, width), float32.
    codes
        The row of each cell, shape (n_cells,), int64.
    strata
        The stratum of each row, shape (n_levels,), int64: rows that penalties take as alike.
    """

    levels: Tensor
    codes: Tensor
    strata: Tensor

    def of(self, rows: slice) -> Tensor:
        """Return the rows of some cells, shape (n, width)."""
        return self.levels.index_select(0, self.codes[rows])


Sites = Mapping[str, Site]
Levels = Mapping[str, Sequence[str]]


def encode_sites(
    design: Design,
    schema: Schema,
    *,
    covariates: Levels,
    treatments: TreatmentEncoding,
    names: pd.Index,
) -> Sites:
    """Return the distinct rows of each covariate site and of t, and the row of each cell.

    Raises
    ------
    SchemaError
        If a label is unknown; names the cell.
    """
    _check_known(design, names, covariates, treatments)
    return site_rows(design, schema, covariates=covariates, treatments=treatments)


def site_rows(
    design: Design, schema: Schema, *, covariates: Levels, treatments: TreatmentEncoding
) -> Sites:
    """Return the sites of a design whose levels are all known, see :func:`encode_sites`."""
    sites = schema.sites
    rows = [context_rows(context, covariates, sites) for context in design.contexts]
    t = [treatments.row(treatment) for treatment in design.treatments]
    return {
        **{site: distinct_rows([row[site] for row in rows], design.x) for site in sites},
        "t": distinct_rows(t, design.t, strata=dose_strata(design.treatments)),
    }


def read_expression(
    adata: AnnData,
    genes: Sequence[str],
    schema: Schema,
    *,
    memory: int | None = None,
    rows: slice = slice(None),
) -> Expression:
    """Return the values of the registered genes, shape (n_cells, n_genes).

    What is on disk and takes more than ``memory`` bytes stays there; None stands for half of what
    is free. Only ``rows`` are read, which lie side by side.

    Raises
    ------
    SchemaError
        If genes are missing, or the values are not as promised.

    Warns
    -----
    UserWarning
        If there are other genes, in the name of the caller's caller's caller.
    """
    order, given = _gene_order(genes, adata), find_matrix(adata, schema)
    stored, half = stored_matrix(given), free_memory() // 2
    check_by_rows(given, schema, memory=memory or half)
    adata = adata if rows == slice(None) else adata[rows]
    look = partial(checks.check_values, schema=schema, adata=adata, genes=np.asarray(genes))
    if stored is None:
        matrix = _select(read_matrix(adata, schema), order)
        look(matrix)
    else:
        bound = half if memory is None else memory
        matrix = _read_stored(stored.window(rows).select(order), schema, look, bound)
    checks.check_cells_expressed(matrix, schema, adata=adata)
    return matrix


def read_outcomes(
    adata: AnnData, schema: Schema, *, columns: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, tuple[str, ...]], dict[str, Rows]]:
    """Return names of columns and values of each outcome in obsm, shape (n_cells, width).

    Parameters
    ----------
    adata
        The cells.
    schema
        Says which arrays they are.
    columns
        The registered columns, by which those of a table are chosen; None takes all.

    Raises
    ------
    SchemaError
        An array is missing, has other columns than those registered, or holds anything else than
        finite numbers.
    """
    found, values = {}, {}
    for site, key in schema.outcomes.items():
        where = f"adata.obsm[{key!r}], the outcome {site!r},"
        if key not in adata.obsm:
            raise SchemaError(
                f"{where} is missing; found {listed(adata.obsm)}. Put it there, or change "
                "outcome_keys"
            )
        table = pd.DataFrame(as_dense(adata.obsm[key]))
        names = tuple(map(str, table.columns))
        known = names if columns is None else tuple(columns[site])
        table = table.set_axis([*names], axis=1)
        if len(set(names)) < len(names) or set(known) - set(names):
            raise SchemaError(
                f"{where} has the columns {listed(names)}; expected {listed(known)}, each once"
            )
        found[site] = known
        try:
            values[site] = table[[*known]].to_numpy(dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SchemaError(f"{where} does not hold numbers ({error})") from error
        if len(bad := np.argwhere(~np.isfinite(values[site]))):
            cell, column = bad[0]
            raise SchemaError(
                f"{where} has no finite value for cell {str(adata.obs_names[cell])!r}, column "
                f"{known[column]!r}; drop such cells, or fill it in"
            )
    return found, values


def _read_stored(
    stored: StoredMatrix, schema: Schema, look: Callable[..., None], bound: int
) -> Expression:
    def check(block: Matrix, first: int) -> None:
        look(block, first=first)

    if stored.nbytes_in_memory <= bound:
        return stored.to_memory(check, counts=schema.expression == "counts")
    stored.look_through(check)
    logger.log(
        logging.INFO if bound else logging.DEBUG,
        "%d x %d values take %.1f GB, more than %.1f GB of memory: they stay on disk, and pools of "
        "%d cells are read at a time.",
        *(*stored.shape, stored.nbytes_in_memory / 1e9, bound / 1e9, CELLS_PER_POOL),
    )
    return stored


def library_sizes(matrix: Expression) -> npt.NDArray[np.float64]:
    """Return the total count of each cell, shape (n_cells,), added up in float64."""
    if isinstance(matrix, StoredMatrix):
        return matrix.survey.totals
    sums = (block.sum(axis=1, dtype=np.float64) for _, block in blocks_of(matrix))
    return np.concatenate([np.asarray(each).reshape(-1) for each in sums])


def make_cells(
    matrix: Expression,
    sites: Sites,
    *,
    schema: Schema,
    genes: tuple[str, ...],
    obs_names: pd.Index,
    outcomes: Mapping[str, Rows],
) -> Cells:
    """Put checked expression and encoded sites together.

    Counts are held in the narrowest unsigned type that takes the largest; their totals scale the
    likelihood. The scale of log1p values is 1.
    """
    sizes = np.ones(matrix.shape[0])
    if schema.expression == "counts":
        sizes = library_sizes(matrix)
        matrix = matrix.astype(np.min_scalar_type(_largest(matrix)), copy=False)
    return Cells(
        expression=matrix,
        library=torch.from_numpy(sizes.astype(np.float32)).unsqueeze(1),
        levels={name: site.levels for name, site in sites.items()},
        codes={name: site.codes for name, site in sites.items()},
        strata={name: site.strata for name, site in sites.items()},
        obs_names=obs_names,
        genes=genes,
        outcomes=outcomes,
    )


def _largest(counts: Expression) -> int:
    if isinstance(counts, StoredMatrix):
        return int(counts.survey.largest)
    values = counts if isinstance(counts, np.ndarray) else counts.data
    return int(values.max(initial=0))


def context_rows(context: Sequence[str], covariates: Levels, sites: Levels) -> dict[str, Rows]:
    """Return the row of each covariate site: one one-hot block per covariate key of the site."""
    blocks = {
        key: np.asarray(levels, dtype=str) == level
        for level, (key, levels) in zip(context, covariates.items(), strict=True)
    }
    return {
        site: np.concatenate([blocks[key] for key in keys]).astype(np.float32)
        for site, keys in sites.items()
    }


def read_context(levels: Mapping[str, str], covariates: Levels) -> tuple[str, ...]:
    """Return the levels of a query in the order of `covariates`.

    Raises
    ------
    SchemaError
        If a key is missing or unknown, or a level was never seen.
    """
    if not isinstance(levels, Mapping):
        raise SchemaError(
            f"covariates is {levels!r}; expected a level of each of {listed(covariates)}, as in "
            f"{{{next(iter(covariates))!r}: ...}}"
        )
    missing = [key for key in covariates if key not in levels]
    if missing:
        raise SchemaError(
            f"covariates: {listed(missing)} not given; expected a level of each of "
            f"{listed(covariates)}"
        )
    for key in levels:
        if key not in covariates:
            raise SchemaError(
                f"covariates: {key!r} is not a covariate key; keys: {listed(covariates)}."
                f"{did_you_mean(key, covariates)} Leave it out"
            )
    context = tuple(label_text(levels[key], where=f"{key!r} of the query") for key in covariates)
    check_context(context, covariates, where="the query")
    return context


def check_context(context: Sequence[str], covariates: Levels, *, where: str) -> None:
    """Raise if a covariate level was never seen in training."""
    for (key, known), level in zip(covariates.items(), context, strict=True):
        if level not in known:
            raise SchemaError(
                f"{key!r} of {where}: {level!r} was not in the training cells; known: "
                f"{listed(known, 20)}.{did_you_mean(level, known)} Rename it, drop its cells, or "
                "train with it"
            )


def distinct_rows(rows: list[Rows], codes: Codes, *, strata: Codes | None = None) -> Site:
    """Return the sorted distinct rows, the row of each cell, and the stratum of each row.

    Parameters
    ----------
    rows
        A row for each code; some may be equal.
    codes
        Shape (n_cells,).
    strata
        Stratum for each code; None takes each distinct row as one.
    """
    levels, merged = np.unique(np.stack(rows), axis=0, return_inverse=True)
    merged = merged.reshape(-1)
    of_level = np.arange(len(levels), dtype=np.int64)
    if strata is not None and strata.max() + 1 < len(strata):
        of_level[merged] = strata
        of_level = np.unique(of_level, return_inverse=True)[1].reshape(-1).astype(np.int64)
    cells = torch.from_numpy(merged[codes].astype(np.int64))
    return Site(torch.from_numpy(levels), cells, torch.from_numpy(of_level))


def _check_known(
    design: Design, names: pd.Index, covariates: Levels, treatments: TreatmentEncoding
) -> None:
    for t, cell in enumerate(np.unique(design.t, return_index=True)[1]):
        treatments.check(design.treatments[t], where=f"cell {names[cell]!r}")
    for x, cell in enumerate(np.unique(design.x, return_index=True)[1]):
        check_context(design.contexts[x], covariates, where=f"cell {names[cell]!r}")


def _gene_order(genes: Sequence[str], adata: AnnData) -> Codes:
    """Return the column of `adata` that holds each registered gene, shape (n_genes,)."""
    order = adata.var_names.map(str).get_indexer(list(genes)).astype(np.int64)
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
