"""Cells as a fitted model sees them: latents with and without their labels, labels as codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry
from pyro_fcr.data.design import Codes
from pyro_fcr.draws import (
    LabelDistribution,
    label_blind_means,
    new_cells,
    posterior_moments,
)
from pyro_fcr.metrics.dimensions import Latents
from pyro_fcr.queries import Fitted


@dataclass(frozen=True, eq=False)
class Encoded:
    """Latents and labels of cells.

    Parameters
    ----------
    labelled, blind
        Posterior means by block, ``(n_cells, n_latent)``: with the cells' labels, and with labels
        marginalised, see :func:`label_blind_latents`.
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


def encode(
    fcr: Fitted, adata: AnnData | str | Path | None = None, *, n_labels: int = 32, seed: int = 0
) -> Encoded:
    """Encode cells both ways, a few thousand at a time.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes those of training.
    n_labels, seed
        As in :func:`label_blind_latents`.
    """
    labels = label_distribution(fcr.registry, n_labels=n_labels, seed=seed)
    programs, blocks = (fcr.model, fcr.guide), fcr.graph.blocks
    parts = []
    for batch, _ in fcr.chunks(adata):
        labelled, variances = posterior_moments(*programs, [batch], blocks=blocks)
        blind = label_blind_means(*programs, [batch], blocks=blocks, labels=labels)
        codes = {site: batch.codes[site].cpu().numpy() for site in fcr.graph.exogenous}
        parts.append((labelled, blind, variances, codes))
    return Encoded(*(_joined(part) for part in zip(*parts, strict=True)))


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def label_blind_latents(
    fcr: Fitted,
    adata: AnnData | str | Path | None = None,
    *,
    n_labels: int = 32,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the posterior mean of every block for cells whose labels are not looked at.

    Encoders are given the labels, so that what a latent shows of a cell's treatment may be a copy
    of the label. Here each cell is encoded under labels of the training conditions, the same ones
    for all cells, and the posterior means are averaged: two cells of equal expression and library
    size have equal latents. What these still show of a label was read from expression.

    Parameters
    ----------
    fcr
        A fitted model. Any exogenous sites are marginalised, not only x and t.
    adata
        The cells; None takes those of training. Their labels must be known ones, but do not count.
    n_labels
        The average is over all training conditions by their numbers of cells, where there are so
        many at most, and over as many draws of them otherwise.
    seed
        Seed of the draws.

    Returns
    -------
    ``{block: (n_cells, n_latent)}``.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(pyro_fcr.datasets.gbm_panobinostat()[::10].copy(), schema)
    >>> label_blind_latents(fcr)["z_x"].shape
    (500, 8)
    """
    labels = label_distribution(fcr.registry, n_labels=n_labels, seed=seed)
    batches = (batch for batch, _ in fcr.chunks(adata))
    return label_blind_means(fcr.model, fcr.guide, batches, blocks=fcr.graph.blocks, labels=labels)


def label_distribution(registry: Registry, *, n_labels: int, seed: int) -> LabelDistribution:
    """Return the training conditions by their numbers of cells, or as many draws of them.

    Raises
    ------
    ValueError
        ``n_labels`` is less than 1.
    """
    if n_labels < 1:
        raise ValueError(f"n_labels is {n_labels}, wanted 1 or more")
    shares = np.array([each.n_cells for each in registry.conditions], dtype=np.float64)
    shares /= shares.sum()
    if len(shares) > n_labels:
        shares = np.random.default_rng(seed).multinomial(n_labels, shares) / n_labels
    kept = np.flatnonzero(shares)
    cells = condition_cells(registry)
    names = [name for name in registry.widths if name != "y"]
    return LabelDistribution({name: cells[name][kept] for name in names}, shares[kept])


def condition_cells(registry: Registry) -> Batch:
    """Make a cell of each training condition, of median library size and without expression."""
    rows: dict[str, list[np.ndarray]] = {}
    for each in registry.conditions:
        sites = registry.encode_covariates(each.covariates)
        sites["t"] = registry.encode_treatment(each.treatment, each.dose or None)
        for name, row in sites.items():
            rows.setdefault(name, []).append(row)
    values = {name: torch.from_numpy(np.stack(each)) for name, each in rows.items()}
    library = torch.full((len(registry.conditions), 1), registry.target_sum or 1.0)
    return new_cells(values, library, n_genes=len(registry.genes))
