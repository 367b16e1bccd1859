# What there is to import from here; read when a name is first used, see __init__.py.
from .answers import Output
from .ask import counterfactual, posterior_predictive, predict
from .coverage import interval_coverage
from .curves import dose_response
from .export import to_arviz
from .fitted import Fitted, Source
from .marks import condition_marks, support
from .representations import (
    add_latents_to,
    dimension_use,
    get_latent_representation,
    label_blind_latents,
)
from .shards import join_shards
from .targets import AVERAGE, Form, Query
from .units import unit_counterfactual

__all__ = [
    "AVERAGE",
    "Fitted",
    "Form",
    "Output",
    "Query",
    "Source",
    "add_latents_to",
    "condition_marks",
    "counterfactual",
    "dimension_use",
    "dose_response",
    "get_latent_representation",
    "interval_coverage",
    "join_shards",
    "label_blind_latents",
    "posterior_predictive",
    "predict",
    "support",
    "to_arviz",
    "unit_counterfactual",
]
