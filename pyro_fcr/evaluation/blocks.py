"""What the latent blocks hold: clusters, independences, the prior's rank, and truth where known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Split
from pyro_fcr.draws import prior_moments
from pyro_fcr.evaluation.encoded import Encoded
from pyro_fcr.metrics.arrays import draw_rows, joint_codes
from pyro_fcr.metrics.clustering import cluster_agreement
from pyro_fcr.metrics.dimensions import dimension_use, only_in_use, prior_rank
from pyro_fcr.metrics.identifiability import identifiability_table
from pyro_fcr.metrics.independence import independence_table
from pyro_fcr.queries import Fitted
from pyro_fcr.queries.representations import condition_cells

TRAINING, HELDOUT = "training", "held out"
LABELLED, BLIND = "labelled", "label-blind"
_FEWEST = 50  # cells whose clusters or strata say anything
_RANK = (
    "n_needed", "rank", "rank_needed", "smallest", "condition_number", "sufficient", "sentence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SplitCells:
    """Encoded cells, and which of them trained and which were held out.

    Parameters
    ----------
    encoded
        Latents and labels.
    split
        Positions.
    left_out
        Reasons for what cannot be judged, added to as one goes along.
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
        found = {TRAINING: self.split.train, HELDOUT: self.split.heldout}
        for name, rows in found.items():
            if len(rows) < _FEWEST:
                self.left_out[f"{name} cells"] = (
                    f"{len(rows)} cells, fewer than {_FEWEST}, say nothing of clusters and strata"
                )
        return {name: rows for name, rows in found.items() if len(rows) >= _FEWEST}


def clustering(cells: SplitCells, *, max_cells: int, seed: int) -> pd.DataFrame:
    """Compare Leiden clusters of each block with every exogenous site, and with all of them.

    Returns
    -------
    Columns ``cells, encoding, n_cells`` and those of
    :func:`pyro_fcr.metrics.clustering.cluster_agreement`; training and held-out cells are
    equally many.
    """
    parts = cells.parts()
    n_cells = min([max_cells, *(len(rows) for rows in parts.values())])
    tables = []
    for name, rows in parts.items():
        some = cells.encoded.take(np.sort(rows)[draw_rows(len(rows), n_cells, seed)])
        for encoding, latents in ((LABELLED, some.labelled), (BLIND, some.blind)):
            table = cluster_agreement(latents, _labels(some.codes), seed=seed)
            place: dict[str, Any] = {"cells": name, "encoding": encoding, "n_cells": n_cells}
            tables.append(pd.DataFrame(place, index=table.index).join(table))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _labels(codes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels by site, and their combination: ``xt`` of ``x`` and ``t``."""
    joined = ("" if all(len(site) == 1 for site in codes) else " & ").join(codes)
    return {**codes, joined: joint_codes(*codes.values())}


def independence(
    fcr: Fitted, cells: SplitCells, *, replicate: np.ndarray | None, n_permutations: int, seed: int
) -> pd.DataFrame:
    """Test every independence that the graph claims, by permutation within strata.

    Returns
    -------
    Columns ``cells`` and those of
    :func:`pyro_fcr.metrics.independence.independence_table`, of labelled latents, dimensions in
    use only: tests take each dimension for as much as any other.
    """
    tables = []
    for name, rows in cells.parts().items():
        some = cells.encoded.take(rows)
        in_use = only_in_use(some.labelled, cells.dimensions)
        for claim in fcr.claims():
            try:
                table = independence_table(
                    in_use,
                    some.codes,
                    claims=[claim],
                    replicate=None if replicate is None else replicate[rows],
                    n_permutations=n_permutations,
                    seed=seed,
                )
            except ValueError as error:  # this data set cannot say; others it may tell
                cells.left_out[f"{claim}, {name} cells"] = str(error)
                continue
            tables.append(pd.DataFrame({"cells": name}, index=table.index).join(table))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def identifiability(
    adata: AnnData, cells: SplitCells, *, max_cells: int, seed: int
) -> pd.DataFrame:
    """Hold the latents against the true ones in ``adata.obsm``, where these are known.

    Returns
    -------
    See :func:`pyro_fcr.metrics.identifiability.identifiability_table`, of the dimensions in use;
    empty without truth.
    """
    blocks = tuple(cells.encoded.labelled)
    if not set(blocks) <= set(adata.obsm):
        return pd.DataFrame()
    rows = np.concatenate([cells.split.train, cells.split.heldout])
    rows = np.sort(rows[draw_rows(len(rows), max_cells, seed)])
    some = cells.encoded.take(rows)
    return identifiability_table(
        {block: np.asarray(adata.obsm[block])[rows] for block in blocks},
        only_in_use(some.labelled, cells.dimensions),
        x=joint_codes(*some.codes.values()),
        t=np.zeros(len(rows), dtype=int),
        seed=seed,
    )


def rank(fcr: Fitted) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the rank of each interaction block's prior over the training conditions.

    A block counts that has two exogenous causes or more, all of its parents exogenous, and a Normal
    prior.

    Returns
    -------
    One row per block: ``block, n_latent, n_conditions, n_distinct, n_needed, rank, rank_needed,
    smallest, condition_number, sufficient, sentence``; and the singular values, ``block, number,
    value``. See :func:`pyro_fcr.metrics.prior_rank.prior_rank`.
    """
    graph = fcr.graph
    blocks = [
        block
        for block in graph.blocks
        if graph.distributions[block] == "Normal"
        and len(graph.parents[block]) > 1
        and set(graph.parents[block]) <= set(graph.exogenous)
    ]
    cells = condition_cells(fcr.registry).to(fcr.device)
    found = {
        block: prior_rank(*moments)
        for block, moments in prior_moments(fcr.model, cells, blocks=blocks).items()
    }
    rows, values = [], []
    for block, each in found.items():
        sizes = asdict(each)
        singular = sizes.pop("singular_values")
        about = {name: getattr(each, name) for name in _RANK}
        rows.append({"block": block, **sizes, **about})
        values += [(block, number + 1, float(value)) for number, value in enumerate(singular)]
    return pd.DataFrame(rows), pd.DataFrame(values, columns=["block", "number", "value"])
