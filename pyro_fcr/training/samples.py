"""Latents of cells as a sample, and the priors that a model gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.runtime import NonlocalExit
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.modes import outside_param_store

_SHARE_KEPT, _MOST_KEPT = 0.1, 5_000

Sizes = Mapping[str, int]
"""Dimensions of each latent site, in the order of the columns of a sample."""


class Sample(NamedTuple):
    """Cells without their expression, and latents of theirs, ``(n_draws, n_cells, n_latents)``."""

    cells: Batch
    drawn: Tensor

    def pick(self, n: int) -> Sample:
        """Return ``n`` cells at random, one draw of each, ``(n, n_latents)``."""
        n_draws, n_cells, _ = self.drawn.shape
        cells, draws = (
            torch.randint(m, (n,), device=self.drawn.device) for m in (n_cells, n_draws)
        )
        return Sample(self.cells.take(cells), self.drawn[draws, cells])

    def divide(self) -> tuple[Sample, Sample]:
        """Return a tenth of the cells, at most 5,000, and the others."""
        n = self.drawn.shape[1]
        n_kept = min(_MOST_KEPT, max(1, round(_SHARE_KEPT * n)))
        order = torch.randperm(n).to(self.drawn.device)
        parts = order[:n_kept], order[n_kept:]
        kept, others = (Sample(self.cells.take(rows), self.drawn[:, rows]) for rows in parts)
        return kept, others


def draw_latents(
    guide: nn.Module, batches: Iterable[Batch], sizes: Sizes, *, n_draws: int
) -> Sample:
    """Draw latents of cells from a guide, ``n_draws`` times each."""
    cells, drawn = [], []
    for batch in batches:
        drawn.append(torch.stack([draw(guide, batch, sizes) for _ in range(n_draws)]))
        cells.append(batch.without("y"))
    return Sample(Batch.concatenate(cells), torch.cat(drawn, dim=1))


def draw(guide: nn.Module, batch: Batch, sizes: Sizes) -> Tensor:
    """Draw the latents of a batch once, ``(n_cells, n_latents)``."""
    with outside_param_store():
        nodes: Any = poutine.trace(guide).get_trace(batch).nodes
    return torch.cat([nodes[site]["value"] for site in sizes], dim=-1)


def split(latents: Tensor, sizes: Sizes) -> dict[str, Tensor]:
    """Return the columns of each site, ``(*, n_cells, n_latent)``."""
    return dict(zip(sizes, latents.split(list(sizes.values()), dim=-1), strict=True))


def priors_of(model: nn.Module, cells: Batch, latents: dict[str, Tensor]) -> dict[str, Any]:
    """Run the model, with its latents given, up to the last of them."""
    last, traced = list(latents)[-1], poutine.trace(poutine.condition(model, data=latents))
    with outside_param_store(), suppress(NonlocalExit):
        poutine.escape(traced, lambda site: site["name"] == last)(cells)
    nodes: Any = traced.trace.nodes
    return {site: nodes[site]["fn"] for site in latents}
