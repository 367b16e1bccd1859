"""What a model and a guide owe one another, checked once before training."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import kl_divergence

from pyro_fcr.batch import Batch
from pyro_fcr.graph import CELLS, Graph, read_graph
from pyro_fcr.terms import Run

logger = logging.getLogger(__name__)


class ProgramError(ValueError):
    """Model and guide do not fit together; the message names the site and the mend."""


class Checked(NamedTuple):
    """Two programs that fit together.

    Parameters
    ----------
    graph, guide_graph
        The graphs of model and guide.
    run
        One run of both, without a gradient.
    """

    graph: Graph
    guide_graph: Graph
    run: Run

    def has_closed_form_kl(self, site: str) -> bool:
        """Say whether the KL of a latent may be taken in closed form; log one line where not.

        It is right if the family has one and if, in the guide, no cause that the latent has in the
        model is drawn from the latent itself (the guide's density is then no longer that of the
        latent given its causes).
        """
        reason = _closed_form_obstacle(site, *self)
        if reason:
            logger.warning("KL of %s is taken from its draw, not in closed form: %s.", site, reason)
        return reason is None


def check_programs(model: nn.Module, guide: nn.Module, batch: Batch) -> Checked:
    """Run both programs once and compare them site by site.

    Parameters
    ----------
    model, guide
        The two programs; each takes a batch.
    batch
        A few cells.

    Raises
    ------
    ProgramError
        A latent is missing in one of the two, has another shape or plate, or cannot be
        reparametrised; or an outcome is missing or stands outside the plate over cells.
    """
    graph, guide_graph = read_graph(model, batch), read_graph(guide, batch)
    _check_sites(graph, guide_graph)
    with torch.random.fork_rng(), torch.no_grad():
        # Each on its own first: a latent of the wrong size would fail inside a network.
        alone = Run(batch, *(poutine.trace(p).get_trace(batch) for p in (model, guide)))
        for site in graph.latents:
            _check_latent(site, alone)
        for site in graph.outcomes:
            _check_plate(site, alone.model_trace.nodes[site])
        return Checked(graph, guide_graph, Run.trace(model, guide, batch))


def _closed_form_obstacle(site: str, graph: Graph, guide_graph: Graph, run: Run) -> str | None:
    for cause in graph.parents[site]:
        if cause in guide_graph.parents and site in guide_graph.ancestors(cause):
            return f"the guide draws {cause}, a cause of {site} in the model, from {site}"
    posterior, prior = run.posterior(site), run.prior(site)
    try:
        kl_divergence(posterior, prior)
    except NotImplementedError:
        return f"there is none for {_family(posterior)} against {_family(prior)}"
    return None


def _check_sites(graph: Graph, guide_graph: Graph) -> None:
    latents, drawn = set(graph.latents), set(guide_graph.latents)
    if missing := latents - drawn:
        raise ProgramError(
            f"The model draws {_names(missing)}, the guide does not: add "
            f"`pyro.sample({sorted(missing)[0]!r}, ...)` to the guide. It draws {_names(drawn)}."
        )
    if unknown := drawn - latents:
        raise ProgramError(
            f"The guide draws {_names(unknown)}, which the model does not know as a latent: rename "
            f"or drop it. The model's latents are {_names(latents)}."
        )
    if not graph.outcomes:
        raise ProgramError(
            "The model observes nothing that depends on a latent: pass obs=batch.get('y')."
        )


def _check_latent(site: str, run: Run) -> None:
    prior, posterior = run.prior(site), run.posterior(site)
    for what in ("event_shape", "batch_shape"):
        shapes = tuple(getattr(prior, what)), tuple(getattr(posterior, what))
        if shapes[0] != shapes[1]:
            raise ProgramError(
                f"{site}: {what} is {shapes[0]} in the model and {shapes[1]} in the guide. Give "
                "both the same size and the same .to_event(1)."
            )
    if not posterior.has_rsample:
        raise ProgramError(
            f"{site}: the guide's {_family(posterior)} has no reparametrised draws, so that no "
            "gradient would reach its encoder. Take a family with rsample (Normal, a flow)."
        )
    frames = [
        {f.name for f in t.nodes[site]["cond_indep_stack"]}
        for t in (run.model_trace, run.guide_trace)
    ]
    if frames[0] != frames[1]:
        raise ProgramError(
            f"{site}: stands in the plates {_names(frames[0])} in the model and "
            f"{_names(frames[1])} in the guide; these must agree."
        )


def _check_plate(site: str, node: Any) -> None:
    names = {frame.name for frame in node["cond_indep_stack"]}
    if CELLS not in names:
        raise ProgramError(
            f"{site}: stands in no plate named {CELLS!r} (found {_names(names)}). Open it with "
            f"`with pyro.plate({CELLS!r}, len(batch)):` so that the loss is a mean over cells."
        )


def _family(distribution: TorchDistribution) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
