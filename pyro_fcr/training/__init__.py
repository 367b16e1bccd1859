"""Training: batches, optimisers, schedules, checkpoints and the loop."""

from pyro_fcr.training.batches import Batches
from pyro_fcr.training.checkpoint import CheckpointError
from pyro_fcr.training.diagnosis import NonFiniteError
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.plan import TrainingPlan
from pyro_fcr.training.trainer import Trainer, fit, mean_terms

__all__ = [
    "Batches",
    "CheckpointError",
    "GuardedOptimizer",
    "NonFiniteError",
    "Trainer",
    "TrainingPlan",
    "fit",
    "mean_terms",
]
