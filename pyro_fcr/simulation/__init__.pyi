# What there is to import from here; read when a name is first used, see __init__.py.
from .factorized import simulate
from .families import FAMILIES, Family, checksum, simulate_family
from .fcr_design import LEAKS, FCRDesign, RandomInteractions
from .screens import InteractionDesign, simulate_interactions
from .semisynthetic import simulate_on_controls
from .thinning import EffectDesign, simulate_from_controls

__all__ = [
    "FAMILIES",
    "LEAKS",
    "EffectDesign",
    "FCRDesign",
    "Family",
    "InteractionDesign",
    "RandomInteractions",
    "checksum",
    "simulate",
    "simulate_family",
    "simulate_from_controls",
    "simulate_interactions",
    "simulate_on_controls",
]
