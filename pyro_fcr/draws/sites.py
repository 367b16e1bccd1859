"""Draws of all sites of cells, from the posterior, the prior, and under an intervention.

Nothing here knows AnnData or training; batches go in, tensors come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.responder import respond
from pyro_fcr.graph import Graph
from pyro_fcr.modes import looking


@dataclass(frozen=True)
class Draws:
    """Repeated draws of the sites of some cells, on the CPU.

    Parameters
    ----------
    latents
        By name, ``(n_draws, n_cells, *)``; what all cells share ``(n_draws, *)``.
    y
        Drawn expression of the kept genes, ``(n_draws, n_cells, n_kept)``.
    log_likelihood
        Log density of each cell's observed expression given its latents, summed over all genes,
        ``(n_draws, n_cells)``; None where no expression was observed.
    """

    latents: Mapping[str, Tensor]
    y: Tensor
    log_likelihood: Tensor | None = None

    @classmethod
    def stack(cls, draws: Sequence[Draws]) -> Draws:
        """Put single draws of the same cells one upon the other."""
        scores = [d.log_likelihood for d in draws if d.log_likelihood is not None]
        return cls(
            {site: torch.stack([d.latents[site] for d in draws]) for site in draws[0].latents},
            torch.stack([d.y for d in draws]),
            torch.stack(scores) if scores else None,
        )

    @classmethod
    def join(cls, chunks: Sequence[Draws], shared: Iterable[str]) -> Draws:
        """Put draws of different cells side by side; shared latents are those of the first."""
        first, scores = (
            chunks[0],
            [c.log_likelihood for c in chunks if c.log_likelihood is not None],
        )
        latents = {
            site: value if site in shared else torch.cat([c.latents[site] for c in chunks], dim=1)
            for site, value in first.latents.items()
        }
        y = torch.cat([c.y for c in chunks], dim=1)
        return cls(latents, y, torch.cat(scores, dim=1) if scores else None)

    def only(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Give the draws of some latents."""
        return {site: self.latents[site] for site in sites}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draw all sites of cells again and again.

    Parameters
    ----------
    model, guide
        The two programs.
    graph
        That of the model.
    genes
        Positions of the genes whose expression is kept, ``(n_kept,)``; all genes are drawn, one
        draw at a time.
    n_draws
        Draws of each group.
    """

    model: nn.Module
    guide: nn.Module
    graph: Graph
    genes: Tensor
    n_draws: int

    def groups(
        self,
        batch: Batch,
        *,
        do: Mapping[str, Tensor],
        hold: Iterable[str] = (),
        first: Mapping[str, Draws] | None = None,
        seed: int = 0,
    ) -> dict[str, Draws]:
        """Draw the sites of some cells in every way.

        Parameters
        ----------
        batch
            The cells with their expression.
        do, hold
            As in :func:`pyro_fcr.draws.respond`. A draw under ``do`` keeps what the posterior
            draw of the same number has in the latents that are held or shared.
        first
            The groups of the first cells, if these are further ones: shared latents are theirs.
        seed
            Of the draws; the global random state is left alone.

        Returns
        -------
        ``"posterior"``: latents from the guide; ``"prior"``: latents from their priors under the
        cells' own exogenous sites; with ``do`` also ``"predictions"``. Each with y given them.
        """
        shared = self.graph.shared
        known = {name: draws.only(shared) for name, draws in (first or {}).items()}
        given = known.get("posterior", {})
        unseen = batch.without("y")
        with looking(self.model, self.guide, seed=seed, device=batch["library"].device):
            latents = [site for site in self.graph.latents if site not in given]
            drawn = {"posterior": self._draw(batch, do={}, hold=latents, given=given)}
            drawn["prior"] = self._draw(unseen, do={}, given=known.get("prior", {}))
            if do:
                given = drawn["posterior"].only((*hold, *shared))
                drawn["predictions"] = self._draw(unseen, do=do, given=given)
        return drawn

    def _draw(
        self,
        batch: Batch,
        *,
        do: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
        hold: Iterable[str] = (),
    ) -> Draws:
        device = batch["library"].device
        draws = []
        for number in range(self.n_draws):
            known = {site: values[number].to(device) for site, values in given.items()}
            draws.append(self._draw_once(batch, do=do, known=known, hold=hold))
        return Draws.stack(draws)

    def _draw_once(
        self,
        batch: Batch,
        *,
        do: Mapping[str, Tensor],
        known: dict[str, Tensor],
        hold: Iterable[str],
    ) -> Draws:
        model: Any = poutine.trace(poutine.condition(self.model, known))
        guide: Any = poutine.condition(self.guide, known)
        _, y = respond(model, guide, batch, do=do, hold=hold)
        nodes = model.trace.nodes
        latents = {site: nodes[site]["value"].cpu() for site in self.graph.latents}
        kept = y.index_select(-1, self.genes.to(y.device)).cpu()
        if (observed := batch.get("y")) is None:
            return Draws(latents, kept)
        density = scale_and_mask(nodes["y"]["fn"].log_prob(observed), mask=nodes["y"]["mask"])
        return Draws(latents, kept, density.reshape(len(batch), -1).sum(-1).cpu())
