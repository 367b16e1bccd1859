"""Questions to a fitted model in the words of AnnData, and their answers as AnnData or tables."""

from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.ask import (
    Fitted,
    condition_marks,
    counterfactual,
    posterior_predictive,
    predict,
    source_cells,
)
from pyro_fcr.queries.coverage import interval_coverage
from pyro_fcr.queries.curves import dose_response
from pyro_fcr.queries.support import support
from pyro_fcr.queries.targets import AVERAGE, Form, Query

__all__ = [
    "AVERAGE",
    "Fitted",
    "Form",
    "Output",
    "Query",
    "condition_marks",
    "counterfactual",
    "dose_response",
    "interval_coverage",
    "posterior_predictive",
    "predict",
    "source_cells",
    "support",
]
