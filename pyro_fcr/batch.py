"""One minibatch of cells, as both Pyro programs and every loss term see it, and sums of its counts.

The sums make count likelihoods cheap. Most entries of a count matrix are 0, 1 or 2. With one
dispersion per gene, the costly part of the negative binomial, ``lgamma(theta + y) -
lgamma(theta)``, is the sum of ``log(theta + k)`` over ``k < y``. Over the cells of a batch it only
depends on how many of them exceed each k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_fcr._torch import tree_map_only
from pyro_fcr.parts import Part, WholeNoise

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
        return tree_map_only(Tensor, lambda each: each.to(device), self)


class MissingValueError(KeyError):
    """A program asks a batch for what it does not hold.

    Attributes
    ----------
    name
        What was asked for.
    """

    def __init__(self, name: str, held: Iterable[str]) -> None:
        super().__init__(name)
        self.name, self._held = name, sorted(held)

    def __str__(self) -> str:
        """Say what is missing, and what to do."""
        return (
            f"The batch holds no {self.name!r}; it holds {', '.join(self._held)}. A guide "
            "reads the expression y: draw latents with all of the batch first, "
            "Predictive(guide, num_samples=n)(batch), and then expression without it, "
            "Predictive(model, posterior_samples=latents)(batch.without('y'))."
        )


@dataclass(frozen=True)
class Batch:
    """Cells that are processed together.

    Parameters
    ----------
    values
        A tensor per site, ``(n_cells, n_features)`` each: the expression ``y``, the exogenous sites
        (``x``, ``t``), and the ``library`` size ``(n_cells, 1)``.
    codes
        For each exogenous site, the stratum of each cell's value, ``(n_cells,)`` integers. The
        penalties treat cells of a stratum as alike. There is one stratum per distinct value, except
        that many doses of an agent are binned.
    n_levels
        For each exogenous site, the number of strata in the whole data set.
    n_total
        Number of cells in one pass over the data. A latent shared by all cells is spread over them.
    counts
        Sums over the counts ``y`` of these cells for count likelihoods, if prepared.
    part
        Which cells of a batch that several processes share these are; None if they are all of it.

    Examples
    --------
    >>> batch = Batch(values={"y": torch.ones(3, 5), "library": torch.full((3, 1), 5.0)},
    ...               codes={}, n_levels={}, n_total=3)
    >>> len(batch), batch["y"].shape
    (3, torch.Size([3, 5]))
    """

    values: Mapping[str, Tensor]
    codes: Mapping[str, Tensor]
    n_levels: Mapping[str, int]
    n_total: int
    counts: CountSummary | None = None
    part: Part | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise MissingValueError(name, self.values)
        return self.values[name]

    def __len__(self) -> int:
        return len(self.values["library"])

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of a site, or None if the batch does not hold it."""
        return self.values.get(name)

    def without(self, *names: str) -> Batch:
        """Return the batch without some sites, for instance without the expression."""
        kept = {k: v for k, v in self.values.items() if k not in names}
        return replace(self, values=kept, counts=self.counts if "y" in kept else None)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Copy every tensor to a device, numbers that are not whole to a precision as well."""

        def moved(each: Tensor) -> Tensor:
            return each.to(device=device, dtype=dtype if each.is_floating_point() else None)

        return self.map(moved)

    def take(self, rows: Tensor | slice) -> Batch:
        """Pick cells by position."""
        return replace(self, counts=None, part=None).map(lambda each: each[rows])

    def noise(self) -> AbstractContextManager:
        """Draw what these cells have in a batch of all processes; nothing new for a whole batch."""
        return nullcontext() if self.part is None else WholeNoise(self.part)

    def shared(self, mean: Tensor) -> Tensor:
        """Return what a mean over these cells adds to that over the batch of all processes."""
        return mean if self.part is None else mean * self.part.share

    def gathered(self) -> Batch:
        """Return the batch itself; see :class:`pyro_fcr.training.resident.Ungathered`."""
        return self

    def tensors(self) -> dict[str, Any]:
        """Return all tensors, in nested dictionaries and tuples."""
        return {"values": dict(self.values), "codes": dict(self.codes), "counts": self.counts}

    def with_tensors(self, tensors: Mapping[str, Any]) -> Batch:
        """Return a batch with other tensors in the places of :meth:`tensors`."""
        return replace(self, **tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with a function of each tensor in its place."""
        return self.with_tensors(tree_map_only(Tensor, function, self.tensors()))

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        """Join batches of the same data set."""
        first = parts[0]
        return replace(
            first,
            values={k: torch.cat([part.values[k] for part in parts]) for k in first.values},
            codes={k: torch.cat([part.codes[k] for part in parts]) for k in first.codes},
            counts=None,
            part=None,
        )

    def stratum(self, sites: tuple[str, ...]) -> tuple[Tensor, int]:
        """Enumerate the joint values of some exogenous sites.

        Returns
        -------
        The number of each cell's stratum, ``(n_cells,)``, and the number of possible strata.
        """
        if not sites:
            return torch.zeros(len(self), dtype=torch.long, device=self["library"].device), 1
        code, n = self.codes[sites[0]], self.n_levels[sites[0]]
        for site in sites[1:]:
            code = code * self.n_levels[site] + self.codes[site]
            n *= self.n_levels[site]
        return code, n


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
