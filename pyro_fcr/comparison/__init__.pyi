# What there is to import from here; read when a name is first used, see __init__.py.
from .catalogue import (
    COMPARISONS,
    Comparison,
    TotalCorrelation,
    build_comparison,
    fit_comparison,
    permute_dimensions,
)
from .graphs import (
    Build,
    ConditionalVAE,
    ConditionPrior,
    IdentifiableVAE,
    NoInteraction,
    NoInteractionGuide,
    OneBlockGuide,
    StandardPrior,
)
from .scvi import ScviFit, fit_scvi

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
