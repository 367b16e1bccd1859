"""Factorized causal representations of single-cell perturbation responses, as a Pyro model.

:class:`FCR` takes an AnnData and a :class:`Schema` to latents and responses. Below it stand the
two Pyro programs, :class:`Model` and :class:`Guide`, and their loss, :class:`Objective`, for those
who change the graph or write their own loop.
"""

from importlib.metadata import version

from pyro_fcr import datasets
from pyro_fcr.api import FCR
from pyro_fcr.architecture import Architecture
from pyro_fcr.batch import Batch
from pyro_fcr.contract import ProgramError
from pyro_fcr.data import Schema, SchemaError
from pyro_fcr.guide import Guide
from pyro_fcr.model import Model
from pyro_fcr.objective import Objective
from pyro_fcr.queries import AVERAGE
from pyro_fcr.responses import QueryError
from pyro_fcr.schedules import Ramp
from pyro_fcr.svi import FCRLoss
from pyro_fcr.training import TrainingPlan

__version__ = version("pyro-fcr")

__all__ = [
    "AVERAGE",
    "FCR",
    "Architecture",
    "Batch",
    "FCRLoss",
    "Guide",
    "Model",
    "Objective",
    "ProgramError",
    "QueryError",
    "Ramp",
    "Schema",
    "SchemaError",
    "TrainingPlan",
    "datasets",
]
