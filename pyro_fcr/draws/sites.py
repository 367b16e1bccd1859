"""Draws of all sites of cells, from the posterior, the prior, and under an intervention.

Nothing here knows AnnData or training; batches go in, tensors come out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    """Repeated draws of the sites of some cells.

    Parameters
    ----------
    latents
        Latents by name, ``(n_draws, n_cells, *)``; those that all cells share, ``(n_draws, *)``.
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
        """Stack single draws of the same cells."""
        return cls._merged(draws, torch.stack)

    @classmethod
    def join(cls, chunks: Sequence[Draws], shared: Collection[str]) -> Draws:
        """Concatenate draws of different cells; shared latents are those of the first."""
        return cls._merged(chunks, partial(torch.cat, dim=1), shared)

    @classmethod
    def _merged(
        cls, parts: Sequence[Draws], merge: Callable[..., Tensor], shared: Collection[str] = ()
    ) -> Draws:
        latents = {
            site: value if site in shared else merge([part.latents[site] for part in parts])
            for site, value in parts[0].latents.items()
        }
        scores = [part.log_likelihood for part in parts if part.log_likelihood is not None]
        return cls(latents, merge([part.y for part in parts]), merge(scores) if scores else None)

    def to(self, device: torch.device | str) -> Draws:
        """Copy all draws to a device, each site at once."""
        score = self.log_likelihood
        latents = {site: value.to(device) for site, value in self.latents.items()}
        return Draws(latents, self.y.to(device), None if score is None else score.to(device))

    def only(self, sites: Iterable[str]) -> dict[str, Tensor]:
        """Return the draws of some latents."""
        return {site: self.latents[site] for site in sites}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draw all sites of cells again and again.

    Parameters
    ----------
    model, guide
        The two programs.
    graph
        The graph of the model.
    genes
        Positions of the genes whose expression is kept, ``(n_kept,)``; all genes are drawn, one
        draw at a time.
    n_draws
        Number of draws of each group.
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
        released: Iterable[str] = (),
        first: Mapping[str, Draws] | None = None,
        seed: int = 0,
    ) -> dict[str, Draws]:
        """Draw the sites of some cells from the posterior, the prior and the predictions.

        Parameters
        ----------
        batch
            The cells with their expression.
        do, hold, released
            As in :func:`pyro_fcr.draws.respond`. A draw under ``do`` keeps what the posterior
            draw of the same number has in the latents that are held or shared.
        first
            The groups of the first cells, if these are further ones: shared latents are taken from
            them.
        seed
            Seed of the draws; the global random state is left alone.

        Returns
        -------
        ``"posterior"``: latents from the guide; ``"prior"``: latents from their priors under the
        cells' own exogenous sites; with ``do`` also ``"predictions"``. Each has y given latents,
        and lies where the cells do.
        """
        shared, device = self.graph.shared, batch["library"].device
        known = {
            name: {site: value.to(device) for site, value in draws.only(shared).items()}
            for name, draws in (first or {}).items()
        }
        given = known.get("posterior", {})
        unseen = batch.without("y")
        with looking(self.model, self.guide, seed=seed, device=device):
            latents = [site for site in self.graph.latents if site not in given]
            drawn = {"posterior": self._draw(batch, do={}, hold=latents, given=given)}
            drawn["prior"] = self._draw(unseen, do={}, given=known.get("prior", {}))
            if do:
                given = drawn["posterior"].only((*hold, *shared))
                drawn["predictions"] = self._draw(unseen, do=do, given=given, released=released)
        return drawn

    def _draw(
        self,
        batch: Batch,
        *,
        do: Mapping[str, Tensor],
        given: Mapping[str, Tensor],
        **how: Iterable[str],
    ) -> Draws:
        draws = []
        for number in range(self.n_draws):
            known = {site: values[number] for site, values in given.items()}
            draws.append(self._draw_once(batch, do=do, known=known, **how))
        return Draws.stack(draws)

    def _draw_once(
        self,
        batch: Batch,
        *,
        do: Mapping[str, Tensor],
        known: dict[str, Tensor],
        **how: Iterable[str],
    ) -> Draws:
        model: Any = poutine.trace(poutine.condition(self.model, known))
        guide: Any = poutine.condition(self.guide, known)
        _, y = respond(model, guide, batch, do=do, **how)
        nodes = model.trace.nodes
        latents = {site: nodes[site]["value"] for site in self.graph.latents}
        kept = y.index_select(-1, self.genes)
        if (observed := batch.get("y")) is None:
            return Draws(latents, kept)
        density = scale_and_mask(nodes["y"]["fn"].log_prob(observed), mask=nodes["y"]["mask"])
        return Draws(latents, kept, density.reshape(len(batch), -1).sum(-1))
