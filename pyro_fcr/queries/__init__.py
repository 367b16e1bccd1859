"""Questions to a fitted model in the words of AnnData, and their answers as AnnData or tables."""

from pyro_fcr.queries.answers import Output
from pyro_fcr.queries.ask import (
    condition_marks,
    counterfactual,
    posterior_predictive,
    predict,
)
from pyro_fcr.queries.coverage import interval_coverage
from pyro_fcr.queries.curves import dose_response
from pyro_fcr.queries.export import to_arviz
from pyro_fcr.queries.fitted import Fitted, Source
from pyro_fcr.queries.support import support
from pyro_fcr.queries.targets import AVERAGE, Form, Query

__all__ = [
    "AVERAGE",
    "Fitted",
    "Form",
    "Output",
    "Query",
    "Source",
    "condition_marks",
    "counterfactual",
    "dose_response",
    "interval_coverage",
    "posterior_predictive",
    "predict",
    "support",
    "to_arviz",
]
