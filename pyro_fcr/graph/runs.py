"""One run of model and guide on a batch, and what its traces hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.graph.dag import CELLS
from pyro_fcr.modes import outside_param_store


def scored_sites(trace: Trace) -> dict[str, Any]:
    """Return what a program scores, by name: draws, observations and factors, auxiliary or not."""
    nodes: dict[str, Any] = trace.nodes
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample"
        and not node["infer"].get("_deterministic")
        and not site_is_subsample(node)
    }


def drawn_sites(trace: Trace) -> dict[str, Any]:
    """Return the latents that a program drew, by name, without auxiliary sites of autoguides."""
    return {
        name: node
        for name, node in scored_sites(trace).items()
        if not node["is_observed"] and not node["infer"].get("is_auxiliary")
    }


def plates(node: Any) -> set[str]:
    """Return the names of the plates around a site."""
    return {frame.name for frame in node["cond_indep_stack"]}


def _both(mask: Any, other: Any) -> Any:
    """Return where both masks let a density count; None lets all."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other


def is_scaled(node: Any) -> bool:
    """Return whether a scale is on a site."""
    return isinstance(node["scale"], Tensor) or node["scale"] != 1.0


@dataclass(frozen=True)
class Run:
    """One run of the guide on a batch, and the model replayed against it.

    Parameters
    ----------
    batch
        The cells.
    model_trace, guide_trace
        Traces of the two programs; the model's holds the guide's latents.
    """

    batch: Batch
    model_trace: Trace
    guide_trace: Trace

    @classmethod
    def trace(cls, model: Callable, guide: Callable, batch: Batch) -> Run:
        """Run the guide, then the model with the guide's latents."""
        with outside_param_store():
            guide_trace = poutine.trace(guide).get_trace(batch)
            replayed = poutine.replay(model, trace=guide_trace)
            return cls(batch, poutine.trace(replayed).get_trace(batch), guide_trace)

    @classmethod
    def apart(cls, model: Callable, guide: Callable, batch: Batch) -> Run:
        """Run both programs without handing the guide's latents to the model."""
        with outside_param_store():
            traces = [poutine.trace(program).get_trace(batch) for program in (model, guide)]
        return cls(batch, *traces)

    def of_model(self, site: str) -> Any:
        """Return a site of the model as Pyro traced it."""
        return self.model_trace.nodes[site]

    def of_guide(self, site: str) -> Any:
        """Return a site of the guide as Pyro traced it."""
        return self.guide_trace.nodes[site]

    def value(self, site: str) -> Tensor:
        """Return the drawn or observed value of a site, ``(n_cells, *)``."""
        return self.of_model(site)["value"]

    def features(self, site: str) -> Tensor:
        """Return the value of a site of cells as a row per cell, ``(n_cells, n_features)``."""
        value = self.value(site)
        return value if value.dim() == 2 else value.reshape(len(self.batch), -1)

    def prior(self, site: str) -> TorchDistribution:
        """Return the model's distribution of a site."""
        return self.of_model(site)["fn"]

    def posterior(self, site: str) -> TorchDistribution:
        """Return the guide's distribution of a latent."""
        return self.of_guide(site)["fn"]

    def per_cell(self, node: Any, log_density: Tensor) -> Tensor:
        """Return a density at a site as Pyro counts it, nats per cell.

        The scale is that of the program that the site is of; a mask in either program is one of
        both. The sum over the cells of the batch is divided by their number; a site that all cells
        share is spread over the data set.
        """
        total = self._weighed(node, log_density).sum()
        return total / (len(self.batch) if CELLS in plates(node) else self.batch.n_total)

    def _weighed(self, node: Any, log_density: Tensor) -> Tensor:
        traces: tuple[Any, Any] = self.model_trace, self.guide_trace
        masks = [n["mask"] for t in traces if (n := t.nodes.get(node["name"])) is not None]
        return scale_and_mask(log_density, node["scale"], reduce(_both, masks, None))

    def log_density(self, node: Any) -> Tensor:
        """Return the log-density of the value that a site has, nats per cell."""
        return self.per_cell(node, node["fn"].log_prob(node["value"]))

    def log_weights(self) -> tuple[Tensor, Tensor]:
        """Return log p - log q of each cell, ``(n_cells,)``, and of what all cells share."""
        cells = self.batch["library"].new_zeros(len(self.batch))
        shared = cells.new_zeros(())
        theirs = scored_sites(self.guide_trace)
        drawn = (*drawn_sites(self.model_trace), *self.guide_only_sites())
        signed = [(1, node) for node in scored_sites(self.model_trace).values()]
        for sign, node in (*signed, *((-1, theirs[site]) for site in drawn)):
            density = sign * self._weighed(node, node["fn"].log_prob(node["value"]))
            dims = [frame.dim for frame in node["cond_indep_stack"] if frame.name == CELLS]
            if dims:
                cells = cells + density.movedim(dims[0], 0).reshape(len(cells), -1).sum(1)
            else:
                shared = shared + density.sum()
        return cells, shared

    def guide_only_sites(self) -> list[str]:
        """Return what the guide scores beside the model's latents: auxiliary sites and factors."""
        latents, observed = drawn_sites(self.model_trace), scored_sites(self.model_trace)
        return [
            site
            for site, node in scored_sites(self.guide_trace).items()
            if site not in latents and (site not in observed or node["is_observed"])
        ]

    def log_prob_sum(self, site: str) -> Tensor | None:
        """Return the log-probability of all cells together, or None if there is no short cut.

        There is one if the batch holds sums over its counts, the site's value is these counts,
        nothing scales or masks cells, and the family offers ``log_prob_sum(value, counts)``.
        """
        node, counts = self.of_model(site), self.batch.counts
        if counts is None or node["value"] is not self.batch.get("y"):
            return None
        if is_scaled(node) or node["mask"] is not None or CELLS not in plates(node):
            return None
        family = getattr(node["fn"], "base_dist", node["fn"])
        offered = getattr(family, "log_prob_sum", None)
        return None if offered is None else offered(node["value"], counts)

    def joined(self, sites: tuple[str, ...]) -> Tensor:
        """Concatenate the values of sites; without any, the shape is ``(n_cells, 0)``."""
        if len(sites) == 1:
            return self.features(sites[0])
        empty = self.batch["library"].new_zeros(len(self.batch), 0)
        return torch.cat([empty, *(self.features(site) for site in sites)], dim=-1)
