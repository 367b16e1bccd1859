# What there is to import from here; read when a name is first used, see __init__.py.
from .factorized import simulate
from .fcr_design import LEAKS, FCRDesign, RandomInteractions
from .screens import InteractionDesign, simulate_interactions
from .thinning import EffectDesign, simulate_from_controls

__all__ = [
    "LEAKS",
    "EffectDesign",
    "FCRDesign",
    "InteractionDesign",
    "RandomInteractions",
    "simulate",
    "simulate_from_controls",
    "simulate_interactions",
]
