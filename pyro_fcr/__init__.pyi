# What the package offers; read when a name is first used, see __init__.py.
from . import data, metrics, plots, simulation, training
from .api import FCR
from .batch import Batch
from .data import Schema, SchemaError, datasets
from .discovery import bootstrap, cross_fit, effects, rank_interactions
from .draws import QueryError
from .evaluation import Evaluation
from .graph import ProgramError, SumOut
from .guide import Guide
from .model import Model
from .nn.architecture import Architecture
from .objective import FCRLoss, Objective, Ramp
from .queries import AVERAGE, Output
from .training import TrainingPlan

__version__: str

__all__ = [
    "AVERAGE",
    "FCR",
    "Architecture",
    "Batch",
    "Evaluation",
    "FCRLoss",
    "Guide",
    "Model",
    "Objective",
    "Output",
    "ProgramError",
    "QueryError",
    "Ramp",
    "Schema",
    "SchemaError",
    "SumOut",
    "TrainingPlan",
    "bootstrap",
    "cross_fit",
    "data",
    "datasets",
    "effects",
    "metrics",
    "plots",
    "rank_interactions",
    "simulation",
    "training",
]
