# What there is to import from here; read when a name is first used, see __init__.py.
from .moments import (
    LabelDistribution,
    label_blind_means,
    posterior_means,
    posterior_moments,
    prior_moments,
)
from .responder import (
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
    path_responses,
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
    "path_responses",
    "posterior_means",
    "posterior_moments",
    "prior_moments",
    "respond",
]
