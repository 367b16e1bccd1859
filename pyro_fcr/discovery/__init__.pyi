# What there is to import from here; read when a name is first used, see __init__.py.
from .effects import Effects, effects
from .interactions import Interactions, rank_interactions
from .refits import CrossFit, bootstrap, cross_fit

__all__ = [
    "CrossFit",
    "Effects",
    "Interactions",
    "bootstrap",
    "cross_fit",
    "effects",
    "rank_interactions",
]
