"""A bound of the evidence that is tighter than the ELBO: importance weights of several draws."""

import math

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph import CELLS, Run, plates
from pyro_fcr.graph.runs import scored_sites
from pyro_fcr.modes import outside_param_store


def importance_bound(model: nn.Module, guide: nn.Module, batch: Batch, n_particles: int) -> Tensor:
    """Bound the log evidence of cells by the average of importance weights.

    It is ``log mean_k p(y, z_k) / q(z_k)`` of each cell (Burda et al. 2016, equation 8), the ELBO
    for one draw, and rises to the evidence with their number. What all cells share is drawn once,
    and counts as in the ELBO.

    Parameters
    ----------
    model, guide
        The two programs.
    batch
        The cells.
    n_particles
        Number of draws of each cell's latents.

    Returns
    -------
    Nats per cell, a scalar.
    """
    with outside_param_store():
        first = poutine.trace(guide).get_trace(batch)
    shared = Trace()
    for name, node in scored_sites(first).items():
        if CELLS not in plates(node):
            shared.add_node(name, **node)
    again = poutine.replay(guide, trace=shared)
    runs = (Run.trace(model, again, batch) for _ in range(n_particles))
    weights = [run.log_weights() for run in runs]
    per_cell = torch.stack([each for each, _ in weights])
    bound = torch.logsumexp(per_cell, dim=0) - math.log(n_particles)
    return bound.mean() + weights[0][1] / batch.n_total
