"""How an intervention gets through a model to the outcome: along all paths, and along some."""

from collections.abc import Mapping
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.responder import abduct
from pyro_fcr.draws.worlds import Expect, Overruled, Released, reach, world
from pyro_fcr.graph import Graph
from pyro_fcr.graph.runs import drawn_sites
from pyro_fcr.modes import looking

REFERENCE, TOTAL, DIRECT = "reference", "total", "direct"


def path_responses(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    graph: Graph,
    *,
    reference: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Predict the same cells in two worlds, and with one site at a time from the other world.

    Both worlds are drawn from the same noise, so that what the intervention does not reach is equal
    in both: the difference is the response, not sampling noise.

    Parameters
    ----------
    model, guide
        The two programs. Latents of cells are drawn from the model; only latents that all cells
        share are taken from the guide.
    batch
        The cells; library sizes and exogenous sites are read.
    graph
        The graph of the model.
    reference, target
        Values that the exogenous sites are set to in the two worlds, ``(n_cells, n_features)``.
    seed
        Seed of the draws; the global random state is left alone.

    Returns
    -------
    Expected expression ``(n_cells, n_genes)`` by world or path: ``"reference"``, ``"total"`` (all
    of the target world), the name of each latent or label that the intervention reaches (this site
    from the target world, and what it causes follows: all directed paths through it), and
    ``"direct"`` where the outcome itself has an intervened parent. Paths through one site may go
    through another, so parts need not add up.
    """
    cells, device = batch.without("y"), batch["library"].device
    released = Released(reach(graph, target).released)
    with looking(model, guide, seed=seed, device=device):
        shared = abduct(guide, batch, tuple(graph.shared))

    def draw(do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with looking(model, seed=seed, device=device):
            program: Any = released(world(model, held=shared, do=do))
            trace = poutine.trace(program).get_trace(cells)
        return {name: node["value"] for name, node in drawn_sites(trace).items() if name != "y"}

    def expect(sites: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Tensor:
        with looking(model, seed=seed, device=device), Overruled(sites), Expect():
            program: Any = released(world(model, held=shared, do=do))
            return poutine.trace(program).get_trace(cells).nodes["y"]["fn"].mean

    before, after = draw(reference), draw(target)
    responses = {REFERENCE: expect(before, reference), TOTAL: expect(after, target)}
    for site in (s for s in before if s in graph.descendants(target)):
        others = set(before) - graph.descendants([site])
        sites = {**{s: before[s] for s in others}, site: after[site]}
        responses[site] = expect(sites, reference)
    if set(graph.parents["y"]) & set(target):
        responses[DIRECT] = expect(before, target)
    return responses
