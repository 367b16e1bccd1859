"""Building and fitting comparison models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anndata import AnnData
from torch import nn

from pyro_fcr.api import FCR
from pyro_fcr.comparison.catalogue import COMPARISONS, Comparison
from pyro_fcr.data import Registry, Schema, register
from pyro_fcr.modes import seeded
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.programs import build_programs
from pyro_fcr.values import unknown


def build_comparison(
    name: str, registry: Registry, *, architecture: Architecture | None = None, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build the programs of a comparison for a data set, for instance to load a saved one.

    Parameters
    ----------
    name
        Name of one of :data:`COMPARISONS`.
    registry
        Encoding of the data.
    architecture
        Sizes and likelihood; None takes those of FCR's default for the data.
    seed
        Seed of the initial parameters.

    Raises
    ------
    ValueError
        If there is no such comparison, or the architecture does not fit the data.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> registry, cells = pyro_fcr.data.register(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> model, guide = build_comparison("ivae", registry)
    >>> type(model).__name__
    'IdentifiableVAE'
    """
    comparison = _named(name)
    architecture = (architecture or Architecture()).resolve(registry)
    build_programs(registry, architecture, seed=seed)  # refuses what does not fit the data
    with seeded(seed):
        return comparison.build(
            architecture,
            registry.widths,
            target_sum=registry.target_sum,
            mean_context=torch.from_numpy(registry.mean_context("x")),
        )


def fit_comparison(
    name: str,
    adata: AnnData | str | Path,
    schema: Schema,
    *,
    architecture: Architecture | None = None,
    seed: int = 0,
    **fit: Any,
) -> FCR:
    """Fit a comparison to cells.

    What its :meth:`~pyro_fcr.FCR.counterfactual` of another treatment means depends on the graph.
    The conditional VAEs keep a cell's z and change the labels that the decoder reads. In ``ivae``
    the treatment is a cause of z: nothing of the cell is kept but its library size and context,
    and the answer is a draw of new cells from the prior of the target. The FCR graphs keep z_x.

    Parameters
    ----------
    name
        Name of one of :data:`COMPARISONS`.
    adata, schema
        As in :class:`pyro_fcr.FCR`.
    architecture
        Sizes and likelihood; None takes those of FCR's default for the data.
    seed
        Seed of initial parameters, held-out cells, batches and draws.
    **fit
        As in :meth:`pyro_fcr.FCR.fit`, but for ``weights`` and ``extra``: fields of the plan,
        e.g. ``max_epochs=50``, ``split`` and the like.

    Returns
    -------
    The fitted model. Where the graph is not FCR's own, it is loaded with the programs of
    :func:`build_comparison`.

    Raises
    ------
    ValueError
        If there is no such comparison, or the architecture does not fit the data.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> cvae = fit_comparison("cvae", adata, schema, max_epochs=1, progress=False)
    >>> COMPARISONS["cvae"].latents(cvae)["z_x"].shape
    (5000, 18)
    """
    comparison, registry = _named(name), register(adata, schema)[0]
    architecture = (architecture or Architecture()).resolve(registry)
    with seeded(seed):
        extra = comparison.extra(architecture)
    if comparison.build is Architecture.build:
        fcr = FCR(adata, schema, architecture=architecture, seed=seed)
    else:
        model, guide = build_comparison(name, registry, architecture=architecture, seed=seed)
        fcr = FCR(adata, schema, model=model, guide=guide)
    fcr.fit(weights=comparison.weights, extra=extra, seed=seed, **{**comparison.plan, **fit})
    return fcr


def _named(name: str) -> Comparison:
    if name not in COMPARISONS:
        raise ValueError(unknown("comparison", name, COMPARISONS))
    return COMPARISONS[name]
