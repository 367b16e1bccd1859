"""Simulated cells of known truth, to measure what is found against what is there."""

from pyro_fcr.simulation.factorized import LEAKS, FCRDesign, simulate
from pyro_fcr.simulation.interactions import InteractionDesign, simulate_interactions

__all__ = ["LEAKS", "FCRDesign", "InteractionDesign", "simulate", "simulate_interactions"]
