"""The terms on held-out cells, and whether the parameters that were kept are of their best."""

import logging

import pandas as pd
import torch

from pyro_fcr._torch import sum_of_processes
from pyro_fcr.batch import Batch
from pyro_fcr.modes import looking
from pyro_fcr.objective import Objective
from pyro_fcr.ranks import n_processes
from pyro_fcr.training.batches import Batches

logger = logging.getLogger(__name__)

_WORTH_SAYING = 2.0  # nats per cell that a held-out ELBO fell from its peak


def mean_terms(objective: Objective, batches: Batches, *, seed: int = 0) -> dict[str, float]:
    """Average every term, the loss and the ELBO over cells, with the same draws at each call.

    Parameters
    ----------
    objective
        The loss; its mode is put back afterwards.
    batches
        The cells.
    seed
        Seed of the draws.

    Returns
    -------
    ``{term: nats per cell}`` with ``"loss"`` (weighted) and ``"elbo"`` (all weights 1).
    """
    rows = []
    with looking(objective, seed=seed, device=batches.device):
        for batch in batches.in_order():
            losses = objective(batch)
            row = [*losses.terms.values(), losses.total, objective.elbo(losses)]
            rows.append(torch.stack(row) * _counted(batch, batches))
    total = torch.stack(rows).sum(dim=0)
    if batches.is_divided:
        total = sum_of_processes(total)
    mean = (total / len(batches.rows)).tolist()
    return dict(zip([*objective.terms, "loss", "elbo"], mean, strict=True))


def _counted(batch: Batch, batches: Batches) -> float:
    """Return as how many cells a batch counts, of which every process may have all."""
    if batch.part is not None:
        return batch.part.n
    return len(batch) / n_processes() if batches.is_divided else len(batch)


def report_passed_peak(history: pd.DataFrame, best: int) -> None:
    """Say why a better held-out ELBO of an earlier epoch was not kept."""
    if "heldout/elbo" not in history or not 0 <= best < len(history):
        return
    elbo = history["heldout/elbo"]
    lost = elbo.max() - elbo[best]
    if lost > _WORTH_SAYING:
        logger.warning(
            "The held-out ELBO was %.1f nats per cell higher in epoch %d than in epoch %d, whose "
            "parameters are kept: before, blocks were not aligned yet, or penalties not at their "
            "full weight. So long a training overfits these cells: try a larger dropout or "
            "weight_decay, or fewer epochs.",
            *(lost, int(elbo.idxmax()), best),
        )
