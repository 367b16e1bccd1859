"""What treatments do to genes, where they act differently, and how sure that is."""

from pyro_fcr.discovery.effects import Effects, effects, enrichment
from pyro_fcr.discovery.interactions import Interactions, rank_interactions
from pyro_fcr.discovery.refits import CrossFit, bootstrap, cross_fit

__all__ = [
    "CrossFit",
    "Effects",
    "Interactions",
    "bootstrap",
    "cross_fit",
    "effects",
    "enrichment",
    "rank_interactions",
]
