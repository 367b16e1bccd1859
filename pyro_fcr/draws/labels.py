"""What the guide says of cells whose labels are hidden, and the priors under given labels.

Encoders are given x and t. What of a latent comes from expression alone is seen only if every cell
is encoded under the same labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.responder import posterior_means
from pyro_fcr.modes import looking


@dataclass(frozen=True, eq=False)
class LabelDistribution:
    """Values of the exogenous sites together, and how often they occur.

    Parameters
    ----------
    values
        By site, ``(n_values, n_features)``.
    shares
        Adding up to 1, ``(n_values,)``.
    """

    values: Mapping[str, Tensor]
    shares: np.ndarray

    def __len__(self) -> int:
        """Return the number of distinct values."""
        return len(self.shares)

    def relabelled(self, batch: Batch) -> Iterator[Batch]:
        """Give the cells under each value in turn, all of them alike; their own are not there."""
        seen = {name: batch[name] for name in ("y", "library")}
        for number in range(len(self)):
            given = {
                site: rows[number].to(batch["library"].device).expand(len(batch), -1)
                for site, rows in self.values.items()
            }
            yield replace(batch, values={**seen, **given}, codes={}, n_levels={})


def label_blind_means(
    model: nn.Module,
    guide: nn.Module,
    batches: Iterable[Batch],
    *,
    blocks: Iterable[str],
    labels: LabelDistribution,
) -> dict[str, np.ndarray]:
    """Give the guide's mean of some blocks for cells whose labels are not looked at.

    The exogenous sites are marginalised: the mean over values of the labels, the same ones for all
    cells, of the posterior mean under them. Two cells of equal expression and library size have
    equal means, whatever was done to them.

    Parameters
    ----------
    model, guide
        The two programs.
    batches
        The cells, in order.
    blocks
        Latents.
    labels
        What labels may be.

    Returns
    -------
    ``{block: (n_cells, n_latent)}``.
    """
    names = tuple(blocks)
    found: dict[str, list[np.ndarray]] = {block: [] for block in names}
    for batch in batches:
        means = [
            posterior_means(model, guide, [cells], blocks=names)
            for cells in labels.relabelled(batch)
        ]
        for block, parts in found.items():
            parts.append(np.tensordot(labels.shares, [each[block] for each in means], axes=1))
    return {block: np.concatenate(parts) for block, parts in found.items()}


def prior_moments(
    model: nn.Module, cells: Batch, *, blocks: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give mean and standard deviation of the priors of some blocks, given their parents.

    Parameters
    ----------
    model
        The program.
    cells
        A cell for each condition; its expression is not read.
    blocks
        Latents whose parents are all exogenous (of others it is the prior given drawn parents).

    Returns
    -------
    ``{block: (mean, standard deviation)}``, ``(n_cells, n_latent)`` each.
    """
    with looking(model):
        nodes: dict[str, Any] = poutine.trace(model).get_trace(cells.without("y")).nodes
        priors = {block: nodes[block]["fn"] for block in blocks}
        return {
            block: (prior.mean.cpu().numpy(), prior.stddev.cpu().numpy())
            for block, prior in priors.items()
        }
