# What there is to import from here; read when a name is first used, see __init__.py.
from .measure import evaluate
from .result import Evaluation

__all__ = ["Evaluation", "evaluate"]
