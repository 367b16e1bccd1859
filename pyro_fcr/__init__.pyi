# What the package offers; read when a name is first used, see __init__.py.
from . import data, datasets, evaluation, plots, training
from .api import FCR
from .architecture import Architecture
from .assessment import Assessment, assess, label_blind_latents
from .batch import Batch
from .contract import ProgramError
from .data import Schema, SchemaError
from .discovery import (
    CrossFit,
    Effects,
    Interactions,
    bootstrap,
    cross_fit,
    effects,
    enrichment,
    rank_interactions,
)
from .export import to_arviz
from .guide import Guide
from .model import Model
from .objective import Objective
from .queries import (
    AVERAGE,
    Output,
    dose_response,
    interval_coverage,
    posterior_predictive,
)
from .responses import QueryError
from .schedules import Ramp
from .simulation import (
    EffectDesign,
    FCRDesign,
    InteractionDesign,
    RandomInteractions,
    simulate,
    simulate_from_controls,
    simulate_interactions,
)
from .svi import FCRLoss
from .training import TrainingPlan

__version__: str

__all__ = [
    "AVERAGE",
    "FCR",
    "Architecture",
    "Assessment",
    "Batch",
    "CrossFit",
    "EffectDesign",
    "Effects",
    "FCRDesign",
    "FCRLoss",
    "Guide",
    "InteractionDesign",
    "Interactions",
    "Model",
    "Objective",
    "Output",
    "ProgramError",
    "QueryError",
    "Ramp",
    "RandomInteractions",
    "Schema",
    "SchemaError",
    "TrainingPlan",
    "assess",
    "bootstrap",
    "cross_fit",
    "data",
    "datasets",
    "dose_response",
    "effects",
    "enrichment",
    "evaluation",
    "interval_coverage",
    "label_blind_latents",
    "plots",
    "posterior_predictive",
    "rank_interactions",
    "simulate",
    "simulate_from_controls",
    "simulate_interactions",
    "to_arviz",
    "training",
]
