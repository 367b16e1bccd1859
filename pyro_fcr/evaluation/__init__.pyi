# What there is to import from here; read when a name is first used, see __init__.py.
from .calibration import Calibration, measure_calibration
from .measure import evaluate
from .result import Evaluation
from .separation import Separation, measure_separation

__all__ = [
    "Calibration",
    "Evaluation",
    "Separation",
    "evaluate",
    "measure_calibration",
    "measure_separation",
]
