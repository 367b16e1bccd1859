"""What the latent blocks hold: clusters, independences, the prior's rank, and truth where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Split
from pyro_fcr.data.design import Codes
from pyro_fcr.draws import label_blind_means, posterior_moments, prior_moments
from pyro_fcr.metrics.arrays import draw_rows, joint_codes
from pyro_fcr.metrics.clustering import cluster_agreement
from pyro_fcr.metrics.dimensions import Latents, dimension_use, only_in_use, prior_rank
from pyro_fcr.metrics.identifiability import identifiability_table
from pyro_fcr.metrics.independence import independence_table
from pyro_fcr.metrics.profiles import log_values
from pyro_fcr.metrics.supervised import supervised_latents
from pyro_fcr.queries import Fitted, Source
from pyro_fcr.queries.representations import condition_cells, label_distribution

_FEWEST = 50  # cells whose clusters or strata say anything
_RANK = (
    "n_needed", "rank", "rank_needed", "smallest", "condition_number", "sufficient", "sentence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Encoded:
    """Latents and labels of cells.

    Parameters
    ----------
    labelled, blind
        Posterior means by block, ``(n_cells, n_latent)``: with the cells' labels, and with labels
        marginalised, see :meth:`pyro_fcr.FCR.label_blind_latents`.
    variances
        Variances of the labelled posteriors.
    codes
        By exogenous site the stratum of each cell, ``(n_cells,)``; many doses of an agent are
        binned.
    """

    labelled: Latents
    blind: Latents
    variances: Latents
    codes: Mapping[str, Codes]

    def take(self, rows: np.ndarray) -> Encoded:
        """Pick cells by position."""
        parts = (self.labelled, self.blind, self.variances, self.codes)
        return Encoded(*({name: values[rows] for name, values in part.items()} for part in parts))


def encode(fcr: Fitted, adata: Source = None, *, n_labels: int = 32, seed: int = 0) -> Encoded:
    """Encode cells both ways, a few thousand at a time.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes the model's own.
    n_labels, seed
        See :meth:`pyro_fcr.FCR.label_blind_latents`.
    """
    labels = label_distribution(fcr.registry, n_labels=n_labels, seed=seed)
    programs, blocks, parts = (fcr.model, fcr.guide), fcr.graph.blocks, []
    for batch, _ in fcr.chunks(adata):
        labelled, variances = posterior_moments(*programs, [batch], blocks=blocks)
        blind = label_blind_means(*programs, [batch], blocks=blocks, labels=labels)
        codes = {site: batch.codes[site].cpu().numpy() for site in fcr.graph.known}
        parts.append((labelled, blind, variances, codes))
    kinds = zip(*parts, strict=True)
    return Encoded(*({k: np.concatenate([p[k] for p in each]) for k in each[0]} for each in kinds))


@dataclass(frozen=True, eq=False)
class SplitCells:
    """Encoded cells, and which of them trained and which were held out.

    Parameters
    ----------
    encoded
        Latents and labels.
    split
        Positions of training and held-out cells.
    left_out
        Reasons for what cannot be judged; the parts of an evaluation add theirs.
    """

    encoded: Encoded
    split: Split
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def dimensions(self) -> pd.DataFrame:
        """Which dimensions of each block are in use, see :func:`dimension_use`."""
        return dimension_use(self.encoded.labelled, self.encoded.variances)

    def parts(self) -> dict[str, np.ndarray]:
        """Return the positions of training and of held-out cells, where there are enough."""
        found = {"training": self.split.train, "held out": self.split.heldout}
        for name, rows in found.items():
            if len(rows) < _FEWEST:
                self.left_out[f"{name} cells"] = (
                    f"{len(rows)} cells, fewer than {_FEWEST}, say nothing of clusters and strata"
                )
        return {name: rows for name, rows in found.items() if len(rows) >= _FEWEST}


_CLUSTERING = ["cells", "encoding", "n_cells", "block", "label", "metric", "value"]


def clustering(cells: SplitCells, *, max_cells: int, seed: int) -> pd.DataFrame:
    """Compare Leiden clusters of each block with every exogenous site, and with all of them.

    Clusters are made of the dimensions in use; without igraph, an extra, there are none.

    Returns
    -------
    Columns ``cells, encoding, n_cells`` and those of
    :func:`pyro_fcr.metrics.cluster_agreement`; training and held-out cells are
    equally many.
    """
    parts = cells.parts()
    n_cells = min([max_cells, *(len(rows) for rows in parts.values())])
    tables = []
    for name, rows in parts.items():
        some = cells.encoded.take(np.sort(rows)[draw_rows(len(rows), n_cells, seed)])
        joined = ("" if all(len(site) == 1 for site in some.codes) else " & ").join(some.codes)
        labels = {**some.codes, joined: joint_codes(*some.codes.values())}
        for encoding, latents in (("labelled", some.labelled), ("label-blind", some.blind)):
            used = only_in_use(latents, cells.dimensions)
            try:
                table = cluster_agreement(used, labels, seed=seed)
            except ImportError as error:
                cells.left_out["clusters"] = str(error)
                return pd.DataFrame(columns=_CLUSTERING)
            tables.append(_of(table, cells=name, encoding=encoding, n_cells=n_cells))
    return stacked(tables)


def _of(table: pd.DataFrame, **place: Any) -> pd.DataFrame:
    """Put columns of one value before those of a table."""
    return pd.DataFrame(place, index=table.index).join(table)


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables; the table of none is empty."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def independence(
    fcr: Fitted, cells: SplitCells, *, replicate: np.ndarray | None, n_permutations: int, seed: int
) -> pd.DataFrame:
    """Test every independence that the graph claims, by permutation within strata.

    Returns
    -------
    Columns ``cells`` and those of
    :func:`pyro_fcr.metrics.independence_table`, of labelled latents, dimensions in
    use only: tests take each dimension for as much as any other.
    """
    tables = []
    sizes: dict[str, Any] = {"n_permutations": n_permutations, "seed": seed}
    for name, rows in cells.parts().items():
        some = cells.encoded.take(rows)
        given = only_in_use(some.labelled, cells.dimensions), some.codes
        own = None if replicate is None else replicate[rows]
        for claim in fcr.claims():
            try:
                table = independence_table(*given, claims=[claim], replicate=own, **sizes)
            except ValueError as error:  # these data cannot tell; they may tell of other claims
                cells.left_out[f"{claim}, {name} cells"] = str(error)
            else:
                tables.append(_of(table, cells=name))
    return stacked(tables)


def identifiability(
    fcr: Fitted, adata: AnnData, cells: SplitCells, *, max_cells: int, seed: int
) -> pd.DataFrame:
    """Hold the latents against the true ones in ``adata.obsm``, where these are known.

    Returns
    -------
    See :func:`pyro_fcr.metrics.identifiability_table`, of the dimensions in use, with the scores of
    a supervised regression from expression; empty without truth.
    """
    blocks = tuple(cells.encoded.labelled)
    if not set(blocks) <= set(adata.obsm):
        return pd.DataFrame()
    rows = np.concatenate([cells.split.train, cells.split.heldout])
    rows = np.sort(rows[draw_rows(len(rows), max_cells, seed)])
    some = cells.encoded.take(rows)
    truth = {block: np.asarray(adata.obsm[block])[rows] for block in blocks}
    condition = joint_codes(*some.codes.values())
    counts = np.concatenate([batch["y"].cpu().numpy() for batch, _ in fcr.chunks(adata[rows])])
    expression = log_values(counts, expression=fcr.registry.schema.expression)
    return identifiability_table(
        truth,
        only_in_use(some.labelled, cells.dimensions),
        x=condition,
        t=np.zeros(len(rows), dtype=int),
        supervised=supervised_latents(truth, expression, condition, seed=seed),
        seed=seed,
    )


def rank(fcr: Fitted) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the rank of each interaction block's prior over the training conditions.

    A block counts if it has two known causes or more, no other parents, and a Normal prior.

    Returns
    -------
    One row per block: ``block, n_latent, n_conditions, n_distinct, n_needed, rank, rank_needed,
    smallest, condition_number, sufficient, sentence``; and the singular values, ``block, number,
    value``. See :func:`pyro_fcr.metrics.prior_rank`.
    """
    graph = fcr.graph
    blocks = [
        block
        for block in graph.blocks
        if graph.distributions[block] == "Normal"
        and len(graph.parents[block]) > 1
        and set(graph.parents[block]) <= set(graph.known)
    ]
    cells = condition_cells(fcr.registry).to(fcr.device, fcr.dtype)
    rows, values = [], []
    for block, moments in prior_moments(fcr.model, cells, blocks=blocks).items():
        each = prior_rank(*moments)
        about = {name: getattr(each, name) for name in _RANK}
        rows.append({"block": block, **asdict(each), **about})
        values += [(block, i, float(v)) for i, v in enumerate(each.singular_values, start=1)]
    table = pd.DataFrame(rows).drop(columns="singular_values", errors="ignore")
    return table, pd.DataFrame(values, columns=["block", "number", "value"])
