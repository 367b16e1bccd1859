# What there is to import from here; read when a name is first used, see __init__.py.
from .combinations import synergy
from .doubles import genetic_interactions
from .effects import Effects, effects
from .hill import compare_ec50, hill_curves, measured_doses
from .interactions import Interactions, rank_interactions
from .power import PlannedScreen, interaction_power
from .refits import CrossFit, bootstrap, cross_fit
from .unmeasured import next_pairs

__all__ = [
    "CrossFit",
    "Effects",
    "Interactions",
    "PlannedScreen",
    "bootstrap",
    "compare_ec50",
    "cross_fit",
    "effects",
    "genetic_interactions",
    "hill_curves",
    "interaction_power",
    "measured_doses",
    "next_pairs",
    "rank_interactions",
    "synergy",
]
