"""The loss: the ELBO and the penalties that follow from the graph, by name."""

from pyro_fcr.objective.objective import DEFAULT_WEIGHTS, Losses, Objective, resolve_weights
from pyro_fcr.objective.schedules import Ramp, Weight
from pyro_fcr.objective.svi import FCRLoss
from pyro_fcr.objective.terms import Discriminator, Extra, Label, Term

__all__ = [
    "DEFAULT_WEIGHTS",
    "Discriminator",
    "Extra",
    "FCRLoss",
    "Label",
    "Losses",
    "Objective",
    "Ramp",
    "Term",
    "Weight",
    "resolve_weights",
]
