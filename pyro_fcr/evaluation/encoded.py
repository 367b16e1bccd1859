"""Cells as a fitted model sees them: latents with and without their labels, labels as codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pyro_fcr.data.design import Codes
from pyro_fcr.draws import label_blind_means, posterior_moments
from pyro_fcr.metrics.dimensions import Latents
from pyro_fcr.queries import Fitted, Source
from pyro_fcr.queries.representations import label_distribution


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
        As in :meth:`pyro_fcr.FCR.label_blind_latents`.
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
