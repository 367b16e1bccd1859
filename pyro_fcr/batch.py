"""One minibatch of cells, as both Pyro programs and every loss term see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_fcr.counts import CountSummary


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

    def __getitem__(self, name: str) -> Tensor:
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

    def to(self, device: torch.device | str) -> Batch:
        """Copy every tensor to a device."""
        return replace(
            self,
            values={k: v.to(device) for k, v in self.values.items()},
            codes={k: v.to(device) for k, v in self.codes.items()},
            counts=None if self.counts is None else self.counts.to(device),
        )

    def take(self, rows: Tensor | slice) -> Batch:
        """Pick cells by position."""
        return replace(
            self,
            values={k: v[rows] for k, v in self.values.items()},
            codes={k: v[rows] for k, v in self.codes.items()},
            counts=None,
        )

    def tensors(self) -> dict[str, Any]:
        """Return all tensors, in nested dictionaries and tuples."""
        return {"values": dict(self.values), "codes": dict(self.codes), "counts": self.counts}

    def with_tensors(self, tensors: Mapping[str, Any]) -> Batch:
        """Return a batch with other tensors in the places of :meth:`tensors`."""
        return replace(self, **tensors)

    @classmethod
    def concatenate(cls, parts: Sequence[Batch]) -> Batch:
        """Join batches of the same data set."""
        first = parts[0]
        return replace(
            first,
            values={k: torch.cat([part.values[k] for part in parts]) for k in first.values},
            codes={k: torch.cat([part.codes[k] for part in parts]) for k in first.codes},
            counts=None,
        )

    def stratum(self, sites: tuple[str, ...]) -> tuple[Tensor, int]:
        """Enumerate the joint values of some exogenous sites.

        Returns
        -------
        The number of each cell's stratum, ``(n_cells,)``, and the number of possible strata.
        """
        code = torch.zeros(len(self), dtype=torch.long, device=self["library"].device)
        n = 1
        for site in sites:
            code = code * self.n_levels[site] + self.codes[site]
            n *= self.n_levels[site]
        return code, n
