# What there is to import from here; read when a name is first used, see __init__.py.
from .evidence import importance_bound
from .objective import DEFAULT_WEIGHTS, Losses, Objective, Ramp, Weight, resolve_weights
from .svi import FCRLoss
from .terms import Discriminator, Extra, Label, Term

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
    "importance_bound",
    "resolve_weights",
]
