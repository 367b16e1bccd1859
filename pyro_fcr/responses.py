"""What cells would express: predictive draws of the model under a condition or an intervention.

Nothing here knows AnnData or training; batches go in, arrays come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph import Graph
from pyro_fcr.modes import looking, outside_param_store
from pyro_fcr.terms import drawn_sites


class QueryError(ValueError):
    """A question that the model cannot answer as it is asked; the message says why."""


@dataclass(frozen=True)
class Responses:
    """Predicted expression of cells.

    Parameters
    ----------
    mean
        Expected expression given the latents, averaged over draws, ``(n_cells, n_genes)``.
    sd
        Standard deviation of the expected expression over draws, ``(n_cells, n_genes)``: how far
        the latents leave the response open; 0 for a single draw.
    draws
        Drawn expression with its observation noise, ``(n_draws, n_cells, n_genes)``; None if it
        was not asked for.
    """

    mean: np.ndarray
    sd: np.ndarray
    draws: np.ndarray | None


def held_by_default(graph: Graph, intervened: Iterable[str]) -> tuple[str, ...]:
    """Give the latents that no intervened site is a cause of: what a cell keeps."""
    changed = set(intervened)
    return tuple(z for z in graph.blocks if not changed & graph.ancestors(z))


def check_held(graph: Graph, held: Iterable[str], intervened: Iterable[str]) -> None:
    """Refuse to hold what is no latent or what the intervention acts through.

    Raises
    ------
    QueryError
        Names the latent and what may be held.
    """
    allowed = held_by_default(graph, intervened)
    for site in held:
        if site not in graph.blocks:
            raise QueryError(f"hold: {site!r} is no latent; these are: {', '.join(graph.blocks)}.")
        if site not in allowed:
            causes = ", ".join(sorted(graph.ancestors(site) & set(intervened)))
            raise QueryError(
                f"hold: {site} is caused by {causes}, which the query changes: holding it would "
                "return a part of the cells as they are. What can be held: "
                f"{', '.join(allowed) or 'nothing'}."
            )


def posterior_means(
    model: nn.Module, guide: nn.Module, batches: Iterable[Batch], *, blocks: Iterable[str]
) -> dict[str, np.ndarray]:
    """Give the guide's mean of some blocks for cells, ``{block: (n_cells, n_latent)}``.

    Parameters
    ----------
    model, guide
        The two programs.
    batches
        The cells, in order.
    blocks
        Latents.
    """
    found: dict[str, list[np.ndarray]] = {block: [] for block in blocks}
    with looking(model, guide):
        for batch in batches:
            nodes = _drawn_by(guide, batch)
            for block, parts in found.items():
                parts.append(nodes[block]["fn"].mean.cpu().numpy())
    return {block: np.concatenate(parts) for block, parts in found.items()}


def respond(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    *,
    do: Mapping[str, Tensor],
    hold: Iterable[str] = (),
) -> tuple[Tensor, Tensor]:
    """Draw once: abduct the held latents, act, predict the outcome.

    Parameters
    ----------
    model, guide
        The two programs.
    batch
        The cells. Their expression is read only if something is held.
    do
        Values to set exogenous sites to, ``(n_cells, n_features)``.
    hold
        Latents drawn from the guide given the cells' expression; the others are drawn from their
        conditional priors under ``do``. What all cells have in common is to be among them.

    Returns
    -------
    Expected and drawn expression, ``(n_cells, n_genes)`` each.
    """
    held: dict[str, Tensor] = {}
    if sites := tuple(hold):
        nodes = _drawn_by(guide, batch)
        held = {site: nodes[site]["value"] for site in sites}
    acted = poutine.do(poutine.condition(model, held), dict(do))
    node: Any = poutine.trace(acted).get_trace(batch.without("y")).nodes["y"]
    return node["fn"].mean, node["value"]


def sample_responses(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    *,
    do: Mapping[str, Tensor],
    hold: Iterable[str] = (),
    n_draws: int = 1,
    keep_draws: bool = False,
    seed: int = 0,
) -> Responses:
    """Draw repeatedly; see :func:`respond`. Memory does not grow with draws that are not kept.

    Parameters
    ----------
    model, guide, batch, do, hold
        As in :func:`respond`.
    n_draws
        Draws per cell.
    keep_draws
        Whether to return every draw of the expression beside the moments of its expectation.
    seed
        Of the draws; the global random state is left alone.
    """
    mean, squares, kept = torch.zeros(()), torch.zeros(()), []
    with looking(model, guide, seed=seed, device=batch["library"].device):
        for number in range(1, n_draws + 1):
            expected, drawn = (v.cpu() for v in respond(model, guide, batch, do=do, hold=hold))
            step = expected.double() - mean
            mean = mean + step / number
            squares = squares + step * (expected - mean)
            kept += [drawn.numpy()] if keep_draws else []
    sd = (squares / n_draws).sqrt()
    return Responses(mean.float().numpy(), sd.float().numpy(), np.stack(kept) if kept else None)


def _drawn_by(guide: nn.Module, batch: Batch) -> dict[str, Any]:
    with outside_param_store():
        return drawn_sites(poutine.trace(guide).get_trace(batch))
