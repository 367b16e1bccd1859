"""What guide and priors say of the latents of cells: their moments, and without their labels.

Encoders are given x and t. What of a latent comes from expression alone is seen only if every cell
is encoded under the same labels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.distributions import moments
from pyro_fcr.draws.responder import drawn_by
from pyro_fcr.modes import looking

_DRAWS = 256


def posterior_moments(
    model: nn.Module,
    guide: nn.Module,
    batches: Iterable[Batch],
    *,
    blocks: Iterable[str],
    names: Sequence[Literal["mean", "variance"]] = ("mean", "variance"),
) -> tuple[dict[str, np.ndarray], ...]:
    """Return moments of the guide's distributions of some blocks, from one pass over the cells.

    Parameters
    ----------
    model, guide
        The two programs.
    batches
        The cells, in order.
    blocks
        Names of latents.
    names
        The moments; those of families without a formula are taken from draws.

    Returns
    -------
    For each moment ``{block: (n_cells, n_latent)}``.
    """
    sites = tuple(blocks)
    found: list[dict[str, list[np.ndarray]]] = [{site: [] for site in sites} for _ in names]
    with looking(model, guide):
        for batch in batches:
            nodes = drawn_by(guide, batch)
            for block in sites:
                both = moments(nodes[block]["fn"], n_draws=_DRAWS)
                known = dict(zip(("mean", "variance"), both, strict=True))
                for name, parts in zip(names, found, strict=True):
                    parts[block].append(known[name].cpu().numpy())
    return tuple({name: np.concatenate(arrays) for name, arrays in each.items()} for each in found)


def posterior_means(
    model: nn.Module, guide: nn.Module, batches: Iterable[Batch], *, blocks: Iterable[str]
) -> dict[str, np.ndarray]:
    """Return the guide's mean of some blocks; see :func:`posterior_moments`."""
    return posterior_moments(model, guide, batches, blocks=blocks, names=("mean",))[0]


def prior_moments(
    model: nn.Module, cells: Batch, *, blocks: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return mean and standard deviation of the priors of some blocks, given their parents.

    Parameters
    ----------
    model
        The program.
    cells
        A cell for each condition; its expression is not read.
    blocks
        Latents whose parents are all exogenous. For others it is the prior given drawn parents.

    Returns
    -------
    ``{block: (mean, standard deviation)}``, ``(n_cells, n_latent)`` each.
    """
    with looking(model):
        nodes: dict[str, Any] = poutine.trace(model).get_trace(cells.without("y")).nodes
        found = {block: moments(nodes[block]["fn"], n_draws=_DRAWS) for block in blocks}
    return {
        block: (mean.cpu().numpy(), variance.sqrt().cpu().numpy())
        for block, (mean, variance) in found.items()
    }


@dataclass(frozen=True, eq=False)
class LabelDistribution:
    """Joint values of the exogenous sites, and how often they occur.

    Parameters
    ----------
    values
        The values of each site, ``(n_values, n_features)``.
    shares
        The share of each value, ``(n_values,)``; they add up to 1.
    """

    values: Mapping[str, Tensor]
    shares: np.ndarray

    def __len__(self) -> int:
        """Return the number of distinct values."""
        return len(self.shares)

    def relabelled(self, batch: Batch) -> Iterator[Batch]:
        """Yield all cells under each value in turn, without their own labels."""
        seen = {name: batch[name] for name in ("y", "library")}
        for number in range(len(self)):
            given = {
                site: rows[number].to(batch["library"]).expand(len(batch), -1)
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
    """Return the guide's mean of some blocks for cells whose labels are not looked at.

    The exogenous sites are marginalised: the posterior mean is averaged over values of the labels,
    which are the same for all cells. Two cells of equal expression and library size have equal
    means, whatever was done to them.

    Parameters
    ----------
    model, guide
        The two programs.
    batches
        The cells, in order.
    blocks
        Names of latents.
    labels
        The labels to average over.

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
