"""What cells would express: draws of the programs under conditions and interventions.

Batches go in, tensors and arrays come out; nothing here knows AnnData or training.
"""

from pyro_fcr.draws.labels import LabelDistribution, label_blind_means, prior_moments
from pyro_fcr.draws.responder import (
    QueryError,
    Responder,
    abduct,
    block_seed,
    block_size,
    blocks_of,
    check_held,
    held_by_default,
    new_cells,
    outcome,
    posterior_means,
    posterior_moments,
    respond,
)

__all__ = [
    "LabelDistribution",
    "QueryError",
    "Responder",
    "abduct",
    "block_seed",
    "block_size",
    "blocks_of",
    "check_held",
    "held_by_default",
    "label_blind_means",
    "new_cells",
    "outcome",
    "posterior_means",
    "posterior_moments",
    "prior_moments",
    "respond",
]
