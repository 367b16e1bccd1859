"""How often a fitted model's intervals hold what cells express that it has not seen."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.draws import QueryError
from pyro_fcr.draws.sinks import Sink
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.intervals import central_shares, pit_of_draws
from pyro_fcr.queries.fitted import Fitted, Source, drawn_blocks, make_responder
from pyro_fcr.queries.marks import condition_marks
from pyro_fcr.values import checked

SEEN, UNSEEN = "observation", "observation, unseen condition"


@checked(error=QueryError)
def interval_coverage(
    fcr: Fitted,
    adata: Source = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    n_draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare single cells with the predictive distribution of new cells of their condition.

    Each value (a gene in a cell) is set against what the model expects of a new cell of the
    same condition and library size: latents from their conditional priors, as the guide would
    have read the cell, then expression with its noise. It is a check of *observation*
    intervals. Of intervals of expected expression given the latents, or of parameters, it says
    nothing: these have no observed counterpart in single cells.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes those held out in the last fit.
    levels
        Probabilities of the central intervals.
    n_draws
        Draws per cell; they are counted and not kept.
    seed
        Seed of the draws, and of the places of observed counts among equal ones.

    Returns
    -------
    A row per kind and level, for :func:`pyro_fcr.plots.coverage`. ``kind`` is ``"observation"``
    or, for cells of a condition that training lacked, ``"observation, unseen condition"``;
    ``nominal`` is the level, ``observed`` the share of values inside the interval, ``n`` the
    number of values. The values of a cell depend on one another: ``observed`` is less certain
    than n suggests.

    Raises
    ------
    pyro_fcr.QueryError
        There are no cells, a level is not between 0 and 1, or there are no draws.
    pyro_fcr.SchemaError
        The cells have a level that was never seen; lists the known ones.

    Notes
    -----
    Intervals of counts hold more than their nominal share because counts are discrete; here
    ties between observed and drawn counts are broken at random instead, which is exact
    (:mod:`pyro_fcr.metrics.intervals`).

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::10].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> fcr.interval_coverage(n_draws=20)[["kind", "nominal", "n"]]
              kind  nominal      n
    0  observation      0.5  15000
    1  observation      0.9  15000
    """
    cells = _heldout_cells(fcr) if adata is None else fcr.source(adata)
    if cells.n_obs == 0:
        raise QueryError("interval_coverage: there are no cells.")
    unseen = condition_marks(cells.obs, fcr.registry)["extrapolated"]
    inside = _inside(fcr, cells, levels, n_draws=n_draws, seed=seed)
    n_genes = len(fcr.registry.genes)
    rows = [
        {"kind": kind, "nominal": level, "observed": share, "n": int(chosen.sum()) * n_genes}
        for kind, chosen in ((SEEN, ~unseen), (UNSEEN, unseen))
        if chosen.any()
        for level, share in zip(levels, inside[chosen].mean(axis=0), strict=True)
    ]
    return pd.DataFrame(rows, columns=["kind", "nominal", "observed", "n"])


def _heldout_cells(fcr: Fitted) -> AnnData:
    split = fcr.split
    if split is None:
        raise QueryError(
            "interval_coverage: the model has no held-out cells, it was loaded or not fitted: pass "
            "cells that training has not seen as adata=."
        )
    if not len(split.heldout):
        raise QueryError(
            "interval_coverage: the last fit held out no cells: fit with heldout_fraction= above "
            "0, or pass cells that training has not seen as adata=."
        )
    return fcr.source(None)[split.heldout]


def _inside(
    fcr: Fitted, cells: AnnData, levels: Sequence[float], *, n_draws: int, seed: int
) -> FloatArray:
    """Return the share of each cell's values inside the intervals, ``(n_cells, n_levels)``."""
    # What all cells have in common was learnt in training and is not a latent of a cell.
    responder, shares = make_responder(fcr), []
    for block, _, own in drawn_blocks(fcr, fcr.chunks(cells), seed=seed):
        sink = _Ranks(block["y"])
        responder.feed(block, drawn=[sink], n_draws=n_draws, seed=own)
        below, equal = (counts.cpu().numpy() for counts in sink.result().values())
        pit = pit_of_draws(below, equal, n_draws, rng=np.random.default_rng(own))
        shares.append(central_shares(pit, levels))
    return np.concatenate(shares)


class _Ranks(Sink):
    """Counts draws below the observed values and equal to them."""

    def __init__(self, observed: Tensor) -> None:
        self.observed = observed
        self._below = torch.zeros_like(observed, dtype=torch.int32)
        self._equal = torch.zeros_like(self._below)

    def update(self, values: Tensor) -> None:
        """Take one draw, ``(n_cells, n_genes)``."""
        self._below += values < self.observed
        self._equal += values == self.observed

    def result(self) -> dict[str, Tensor]:
        """Return ``below`` and ``equal``, ``(n_cells, n_genes)`` each."""
        return {"below": self._below, "equal": self._equal}

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the memory that a cell and gene takes."""
        return 2 * 4
