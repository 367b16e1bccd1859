"""Factorized causal representations of single-cell perturbation responses, as a Pyro model.

:class:`FCR` takes an AnnData and a :class:`Schema` to latents and responses. Below it stand the
two Pyro programs, :class:`Model` and :class:`Guide`, and their loss, :class:`Objective`, for those
who change the graph or write their own loop.
"""

from importlib.metadata import version

from pyro_fcr import datasets, plots
from pyro_fcr.api import FCR
from pyro_fcr.architecture import Architecture
from pyro_fcr.assessment import Assessment, assess, label_blind_latents
from pyro_fcr.batch import Batch
from pyro_fcr.contract import ProgramError
from pyro_fcr.data import Schema, SchemaError
from pyro_fcr.discovery import (
    CrossFit,
    Effects,
    Interactions,
    bootstrap,
    cross_fit,
    effects,
    enrichment,
    rank_interactions,
)
from pyro_fcr.export import to_arviz
from pyro_fcr.guide import Guide
from pyro_fcr.model import Model
from pyro_fcr.objective import Objective
from pyro_fcr.queries import (
    AVERAGE,
    Output,
    dose_response,
    interval_coverage,
    posterior_predictive,
)
from pyro_fcr.responses import QueryError
from pyro_fcr.schedules import Ramp
from pyro_fcr.simulation import (
    EffectDesign,
    FCRDesign,
    InteractionDesign,
    RandomInteractions,
    simulate,
    simulate_from_controls,
    simulate_interactions,
)
from pyro_fcr.svi import FCRLoss
from pyro_fcr.training import TrainingPlan

__version__ = version("pyro-fcr")

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
    "datasets",
    "dose_response",
    "effects",
    "enrichment",
    "interval_coverage",
    "label_blind_latents",
    "plots",
    "posterior_predictive",
    "rank_interactions",
    "simulate",
    "simulate_from_controls",
    "simulate_interactions",
    "to_arviz",
]
