# What the package offers; read when a name is first used, see __init__.py.
from . import data, metrics, plots, training
from .api import FCR
from .batch import Batch
from .data import Schema, SchemaError, datasets
from .discovery import (
    CrossFit,
    Effects,
    Interactions,
    bootstrap,
    cross_fit,
    effects,
    rank_interactions,
)
from .draws import QueryError
from .evaluation import Evaluation, evaluate, label_blind_latents
from .graph import ProgramError
from .guide import Guide
from .model import Model
from .nn.architecture import Architecture
from .objective import FCRLoss, Objective, Ramp
from .queries import (
    AVERAGE,
    Output,
)
from .simulation import (
    EffectDesign,
    FCRDesign,
    InteractionDesign,
    RandomInteractions,
    simulate,
    simulate_from_controls,
    simulate_interactions,
)
from .training import TrainingPlan

__version__: str

__all__ = [
    "AVERAGE",
    "FCR",
    "Architecture",
    "Batch",
    "CrossFit",
    "EffectDesign",
    "Effects",
    "Evaluation",
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
    "bootstrap",
    "cross_fit",
    "data",
    "datasets",
    "effects",
    "evaluate",
    "label_blind_latents",
    "metrics",
    "plots",
    "rank_interactions",
    "simulate",
    "simulate_from_controls",
    "simulate_interactions",
    "training",
]
