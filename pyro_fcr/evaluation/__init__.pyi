# What there is to import from here; read when a name is first used, see __init__.py.
from .calibration import Calibration, measure_calibration
from .measure import evaluate
from .others import evaluate_predictions
from .pairs_out import PairsOut, leave_pairs_out
from .predicted import Predicted
from .reports import report_calibration, report_separation
from .result import Evaluation
from .separation import Separation, measure_separation

__all__ = [
    "Calibration",
    "Evaluation",
    "PairsOut",
    "Predicted",
    "Separation",
    "evaluate",
    "evaluate_predictions",
    "leave_pairs_out",
    "measure_calibration",
    "measure_separation",
    "report_calibration",
    "report_separation",
]
