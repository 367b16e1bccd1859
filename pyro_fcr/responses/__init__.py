"""What cells would express: draws of the programs under conditions and interventions.

Batches go in, tensors and arrays come out; nothing here knows AnnData or training.
"""

from pyro_fcr.responses.responder import (
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
    respond,
)

__all__ = [
    "QueryError",
    "Responder",
    "abduct",
    "block_seed",
    "block_size",
    "blocks_of",
    "check_held",
    "held_by_default",
    "new_cells",
    "outcome",
    "posterior_means",
    "respond",
]
