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
    found = [{site: _Growing() for site in sites} for _ in names]
    with looking(model, guide):
        for batch in batches:
            nodes = drawn_by(guide, batch)
            for block in sites:
                both = moments(nodes[block]["fn"], n_draws=_DRAWS)
                known = dict(zip(("mean", "variance"), both, strict=True))
                for name, parts in zip(names, found, strict=True):
                    parts[block].add(known[name].cpu().numpy())
    return tuple({block: rows.array() for block, rows in each.items()} for each in found)


class _Growing:
    """Rows put below one another in one piece of memory.

    Small pieces that are kept would lie between large ones that are not, whose place could then not
    be used again: memory would grow by many times what is kept.
    """

    def __init__(self) -> None:
        self._rows, self._n = np.empty((0, 0), np.float32), 0

    def add(self, rows: np.ndarray) -> None:
        until = self._n + len(rows)
        if until > len(self._rows):
            grown = np.empty((2 * until, *rows.shape[1:]), rows.dtype)
            if self._n:
                grown[: self._n] = self._rows[: self._n]
            self._rows = grown
        self._rows[self._n : until] = rows
        self._n = until

    def array(self) -> np.ndarray:
        return self._rows[: self._n].copy()


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
    found = {block: _Growing() for block in names}
    for batch in batches:
        means = [
            posterior_means(model, guide, [cells], blocks=names)
            for cells in labels.relabelled(batch)
        ]
        for block, rows in found.items():
            rows.add(np.tensordot(labels.shares, [each[block] for each in means], axes=1))
    return {block: rows.array() for block, rows in found.items()}
