"""Models to hold FCR against: graphs with one part changed, built from the same conditionals.

scVI stands in :mod:`pyro_fcr.comparison.scvi`; it needs the extra ``pyro-fcr[scvi]``.
"""

from pyro_fcr.comparison.builders import Build
from pyro_fcr.comparison.catalogue import COMPARISONS, Comparison
from pyro_fcr.comparison.fitting import build_comparison, fit_comparison
from pyro_fcr.comparison.graphs import (
    ConditionalVAE,
    ConditionPrior,
    IdentifiableVAE,
    NoInteraction,
    NoInteractionGuide,
    OneBlockGuide,
    StandardPrior,
)
from pyro_fcr.comparison.scvi import ScviFit, fit_scvi
from pyro_fcr.comparison.total_correlation import TotalCorrelation, permute_dimensions

__all__ = [
    "COMPARISONS",
    "Build",
    "Comparison",
    "ConditionPrior",
    "ConditionalVAE",
    "IdentifiableVAE",
    "NoInteraction",
    "NoInteractionGuide",
    "OneBlockGuide",
    "ScviFit",
    "StandardPrior",
    "TotalCorrelation",
    "build_comparison",
    "fit_comparison",
    "fit_scvi",
    "permute_dimensions",
]
