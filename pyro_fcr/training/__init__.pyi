# What there is to import from here; read when a name is first used, see __init__.py.
from .alignment import Aligned
from .batches import Batches
from .callbacks import Callback, check_callbacks
from .checkpoint import CheckpointError, check_checkpoint_place
from .heldout import mean_terms
from .optimizer import GuardedOptimizer, NonFiniteError
from .plan import TrainingPlan
from .trainer import Trainer, fit

__all__ = [
    "Aligned",
    "Batches",
    "Callback",
    "CheckpointError",
    "GuardedOptimizer",
    "NonFiniteError",
    "Trainer",
    "TrainingPlan",
    "check_callbacks",
    "check_checkpoint_place",
    "fit",
    "mean_terms",
]
