"""Latents of cells, as a fitted model encodes them."""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from pyro_fcr.batch import Batch, MissingValueError
from pyro_fcr.data import Registry
from pyro_fcr.draws import (
    LabelDistribution,
    label_blind_means,
    new_cells,
    posterior_means,
    posterior_moments,
)
from pyro_fcr.metrics import dimensions
from pyro_fcr.queries.fitted import Fitted, Source
from pyro_fcr.values import check_choice, checked

Encoding: TypeAlias = Literal["label-blind", "labelled"]
"""Whether latents are encoded without a cell's labels, or with them."""


@checked()
def get_latent_representation(
    fcr: Fitted,
    block: str,
    adata: Source = None,
    *,
    encoding: Encoding = "labelled",
    only_in_use: bool = False,
    labelled: bool = True,
) -> np.ndarray:
    """Return the posterior mean of a block for cells.

    Parameters
    ----------
    fcr
        A fitted model.
    block
        ``"z_x"``, ``"z_t"``, ``"z_tx"``, or another latent of the model.
    adata
        The cells; None takes the model's own.
    encoding
        ``"labelled"``: the posterior given a cell's expression, treatment and covariates, which is
        what the model means by the block, and may show what the label says rather than what the
        cell does. ``"label-blind"``: see :func:`label_blind_latents`.
    only_in_use
        Whether to leave out the dimensions that stay at their prior, see :func:`dimension_use`.
    labelled
        Whether treatment and covariates of the cells are known; if not, the guide must be one
        that reads expression only.

    Returns
    -------
    ``(n_cells, n_latent)``, fewer columns with ``only_in_use``.
    """
    check_choice("encoding", encoding, get_args(Encoding))
    if encoding == "label-blind" and labelled:
        _check_blocks(fcr, (block,))
        values = label_blind_latents(fcr, adata)[block]
    else:
        values = _latents(fcr, adata, (block,), labelled=labelled)[block]
    if not only_in_use:
        return values
    return dimensions.only_in_use({block: values}, _use_of(fcr, adata, [block]))[block]


def _use_of(fcr: Fitted, adata: Source, blocks: Iterable[str]) -> pd.DataFrame:
    """Return which dimensions are in use, by the model's own cells if it has them."""
    try:
        own = dimension_use(fcr)
    except ValueError:  # loaded without data
        own = dimension_use(fcr, adata)
    return own[own["block"].isin(list(blocks))]


@checked()
def add_latents_to(
    fcr: Fitted, adata: AnnData, *, encoding: Encoding = "label-blind", only_in_use: bool = False
) -> None:
    """Write every block's posterior mean into ``adata.obsm["X_fcr_<block>"]``.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells.
    encoding
        ``"label-blind"``, or ``"labelled"``. Encoders are given the labels: on data without any
        effect, labelled latents still tell the treatments apart. In a figure or a neighbourhood
        graph, take label-blind ones; ``"labelled"`` are those that the model's statements are
        about.
    only_in_use
        Whether to leave out the dimensions that stay at their prior.

    Notes
    -----
    ``adata.uns["fcr"]`` says which ``encoding`` it was, and which dimensions of each block are
    ``in_use``, counted from 0.
    """
    check_choice("encoding", encoding, get_args(Encoding))
    blocks, use = fcr.graph.blocks, _use_of(fcr, adata, fcr.graph.blocks)
    if encoding == "label-blind":
        found = label_blind_latents(fcr, adata)
    else:
        found = _latents(fcr, adata, blocks)
    kept = dimensions.only_in_use(found, use) if only_in_use else found
    for block, values in kept.items():
        adata.obsm[f"X_fcr_{block}"] = values
    in_use = use[use["in_use"]].groupby("block")["dimension"]
    adata.uns["fcr"] = {
        "encoding": encoding,
        "in_use": {block: in_use.get_group(block).to_numpy() for block in in_use.groups},
    }


def dimension_use(fcr: Fitted, adata: Source = None) -> pd.DataFrame:
    """Return which dimensions of each block tell cells apart, and which stay at their prior.

    Blocks may be larger than what there is to say: training leaves the rest unused.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes the model's own.

    Returns
    -------
    Columns ``block, dimension, share, in_use``; see
    :func:`pyro_fcr.metrics.dimension_use`.
    """
    batches = (batch for batch, _ in fcr.chunks(adata))
    moments = posterior_moments(fcr.model, fcr.guide, batches, blocks=fcr.graph.blocks)
    return dimensions.dimension_use(*moments)


@checked()
def label_blind_latents(
    fcr: Fitted, adata: Source = None, *, n_labels: int = 32, seed: int = 0
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
        The cells; None takes the model's own. Their labels must be known ones, but do not count.
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
    >>> fcr.label_blind_latents()["z_x"].shape
    (500, 8)
    """
    labels = label_distribution(fcr.registry, n_labels=n_labels, seed=seed)
    batches = (batch for batch, _ in fcr.chunks(adata))
    return label_blind_means(fcr.model, fcr.guide, batches, blocks=fcr.graph.blocks, labels=labels)


def label_distribution(registry: Registry, *, n_labels: int, seed: int) -> LabelDistribution:
    """Return the training conditions by their numbers of cells, or as many draws of them."""
    shares = np.array([each.n_cells for each in registry.conditions], dtype=np.float64)
    shares /= shares.sum()
    if len(shares) > n_labels:
        shares = np.random.default_rng(seed).multinomial(n_labels, shares) / n_labels
    kept = np.flatnonzero(shares)
    cells = condition_cells(registry)
    names = [name for name in registry.widths if name != "y"]
    return LabelDistribution({name: cells[name][kept] for name in names}, shares[kept])


def condition_cells(registry: Registry) -> Batch:
    """Return a cell of each training condition, of median library size and without expression."""
    rows = [
        {
            **registry.encode_covariates(each.covariates),
            "t": registry.encode_treatment(each.treatment, each.dose or None),
        }
        for each in registry.conditions
    ]
    values = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    library = torch.full((len(registry.conditions), 1), registry.target_sum or 1.0)
    return new_cells(values, library, n_genes=len(registry.genes))


def _latents(
    fcr: Fitted, adata: Source, blocks: tuple[str, ...], *, labelled: bool = True
) -> dict[str, np.ndarray]:
    _check_blocks(fcr, blocks)
    batches = (batch for batch, _ in fcr.chunks(adata, labelled=labelled))
    try:
        return posterior_means(fcr.model, fcr.guide, batches, blocks=blocks)
    except MissingValueError as error:
        if labelled:
            raise
        raise ValueError(
            f"labelled is False, but the guide reads {error.name!r}; leave it out and give the "
            "cells their labels, or use a guide that reads expression only."
        ) from error


def _check_blocks(fcr: Fitted, blocks: tuple[str, ...]) -> None:
    if wrong := set(blocks) - set(fcr.graph.blocks):
        raise ValueError(
            f"Unknown block {sorted(wrong)[0]!r}. The model's latents are "
            f"{', '.join(fcr.graph.blocks)}."
        )
