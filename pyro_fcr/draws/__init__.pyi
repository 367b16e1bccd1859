# What there is to import from here; read when a name is first used, see __init__.py.
from .moments import (
    LabelDistribution,
    label_blind_means,
    posterior_means,
    posterior_moments,
    prior_moments,
)
from .paths import path_responses
from .responder import (
    Responder,
    abduct,
    block_seed,
    block_size,
    blocks_of,
    new_cells,
    outcome,
    respond,
)
from .twins import Noise, TwinResponder
from .worlds import QueryError, Reach, reach

__all__ = [
    "LabelDistribution",
    "Noise",
    "QueryError",
    "Reach",
    "Responder",
    "TwinResponder",
    "abduct",
    "block_seed",
    "block_size",
    "blocks_of",
    "label_blind_means",
    "new_cells",
    "outcome",
    "path_responses",
    "posterior_means",
    "posterior_moments",
    "prior_moments",
    "reach",
    "respond",
]
