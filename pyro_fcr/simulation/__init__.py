"""Simulated cells of known truth, to measure what is found against what is there."""

from pyro_fcr.simulation.factorized import LEAKS, FCRDesign, simulate
from pyro_fcr.simulation.planted import RandomInteractions
from pyro_fcr.simulation.screens import InteractionDesign, simulate_interactions
from pyro_fcr.simulation.thinning import EffectDesign, simulate_from_controls

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
