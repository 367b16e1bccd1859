# What there is to import from here; read when a name is first used, see __init__.py.
from .measure import evaluate
from .result import Evaluation
from .separation import Separation, measure_separation

__all__ = ["Evaluation", "Separation", "evaluate", "measure_separation"]
