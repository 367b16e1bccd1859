"""How a response flows through the latent blocks: one block at a time is switched to the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.responder import abduct, outcome
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
    """Predict the same cells in two worlds, and with one block at a time from the other world.

    Both worlds are drawn from the same noise, so that what the intervention does not reach is equal
    in both: the difference is the response, not sampling noise.

    Parameters
    ----------
    model, guide
        The two programs. Latents of cells are drawn from the model; only what all cells have in
        common is taken from the guide.
    batch
        The cells; library sizes and exogenous sites are read.
    graph
        The graph of the model.
    reference, target
        Values that the exogenous sites are set to in the two worlds, ``(n_cells, n_features)``.
    seed
        Of the draws; the global random state is left alone.

    Returns
    -------
    Expected expression ``(n_cells, n_genes)`` by world or path: ``"reference"``, ``"total"`` (all
    of the target world), the name of each block that the intervention reaches (this block alone
    from the target world), and ``"direct"`` where the outcome itself has an intervened parent.
    """
    cells = batch.without("y")
    with looking(model, guide, seed=seed, device=cells["library"].device):
        shared = abduct(guide, batch, tuple(graph.shared))
    before, after = (
        _draw_latents(model, cells, do=do, held=shared, seed=seed) for do in (reference, target)
    )

    def expect(latents: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Tensor:
        with looking(model, seed=seed, device=cells["library"].device):
            return outcome(model, cells, held=latents, do=do, draw=False)["fn"].mean

    found = {REFERENCE: expect(before, reference), TOTAL: expect(after, target)}
    for block in reached(graph, target):
        found[block] = expect({**before, block: after[block]}, reference)
    if any(set(graph.parents[y]) & set(target) for y in graph.outcomes):
        found[DIRECT] = expect(before, target)
    return found


def reached(graph: Graph, sites: Iterable[str]) -> tuple[str, ...]:
    """Give the blocks that some sites are a cause of."""
    return tuple(z for z in graph.blocks if graph.ancestors(z) & set(sites))


def _draw_latents(
    model: nn.Module,
    cells: Batch,
    *,
    do: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    seed: int,
) -> dict[str, Tensor]:
    program: Any = poutine.do(poutine.condition(model, dict(held)), dict(do))
    with looking(model, seed=seed, device=cells["library"].device):
        trace = poutine.trace(program).get_trace(cells)
    drawn = {name: node["value"] for name, node in drawn_sites(trace).items() if name != "y"}
    return {**held, **drawn}
