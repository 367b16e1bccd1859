"""Sums over the counts of a batch that make count likelihoods cheap; they are prepared once.

Most entries of a count matrix are 0, 1 or 2. With one dispersion per gene, the costly part of the
negative binomial, ``lgamma(theta + y) - lgamma(theta)``, is the sum of ``log(theta + k)`` over
``k < y``. Over the cells of a batch it only depends on how many of them exceed each k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TAIL_BOUND = 16
"""Counts up to this one are tabulated; the excess of larger counts is listed."""

_CUMULATED = np.triu(np.ones((TAIL_BOUND - 1, TAIL_BOUND - 1), np.float32))
TAIL_COUNTS = torch.arange(TAIL_BOUND - 1, 0, -1)
"""The tabulated counts in descending order: 15, 14, ... 1."""


class Tails(NamedTuple):
    """Number of entries of each gene that exceed each count.

    Parameters
    ----------
    exceeding
        Number of cells with more than k counts of a gene, for k of :data:`TAIL_COUNTS`,
        ``(n_genes, TAIL_BOUND - 1)``.
    high_gene, high_excess
        Gene and excess of each count above :data:`TAIL_BOUND`, ``(n_high,)`` each. They are padded
        with excess 0 to the same length in all batches of a training.
    """

    exceeding: Tensor
    high_gene: Tensor
    high_excess: Tensor


class CountSummary(NamedTuple):
    """The counts of a batch, summed over its cells for count likelihoods.

    Parameters
    ----------
    log_factorial
        Sum of ``lgamma(y + 1)`` over cells and genes, a scalar.
    tails
        The counts by gene, or None if likelihoods are better evaluated entry by entry (on a GPU).
    """

    log_factorial: Tensor
    tails: Tails | None = None

    def to(self, device: torch.device | str) -> CountSummary:
        """Copy every tensor to a device."""
        tails = None if self.tails is None else Tails(*(each.to(device) for each in self.tails))
        return CountSummary(self.log_factorial.to(device), tails)


def tabulate_tails(gene: npt.NDArray, count: npt.NDArray, *, n_genes: int, n_high: int) -> Tails:
    """Tabulate how many entries of each gene exceed each count.

    Parameters
    ----------
    gene, count
        Gene and value of the non-zero entries, ``(n_entries,)`` each.
    n_genes
        Number of genes.
    n_high
        Smallest number of counts above :data:`TAIL_BOUND` to leave room for.

    Examples
    --------
    >>> tails = tabulate_tails(np.array([0, 0, 1]), np.array([1, 3, 40]), n_genes=2, n_high=1)
    >>> tails.exceeding[:, -3:]  # more than 3, 2 and 1 counts
    tensor([[0., 1., 1.],
            [1., 1., 1.]])
    >>> tails.high_gene, tails.high_excess
    (tensor([1]), tensor([24.]))
    """
    n_counts = TAIL_BOUND - 1
    above_one = np.flatnonzero(count > 1)
    gene, count = gene[above_one], count[above_one].astype(np.int32)
    place = (gene + 1) * n_counts - (np.minimum(count, TAIL_BOUND) - 1)
    table = np.bincount(place, minlength=n_genes * n_counts).reshape(n_genes, n_counts)
    exceeding = table.astype(np.float32) @ _CUMULATED
    high = np.flatnonzero(count > TAIL_BOUND)
    n_high = max(n_high, len(high))
    high_gene, high_excess = np.zeros(n_high, np.int64), np.zeros(n_high, np.float32)
    high_gene[: len(high)], high_excess[: len(high)] = gene[high], count[high] - TAIL_BOUND
    return Tails(*(torch.from_numpy(each) for each in (exceeding, high_gene, high_excess)))
