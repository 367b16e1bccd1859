# What there is to import from here; read when a name is first used, see __init__.py.
from .baselines import (
    ConditionMeans,
    additive,
    baseline_deltas,
    components,
    condition_means,
    control_mean,
    treatment_mean_shift,
)
from .clustering import cluster_agreement, umap
from .dimensions import dimension_use, only_in_use
from .hsic import hsic_table
from .identifiability import agreement_between_seeds, identifiability_table
from .independence import IndependenceTest, independence_table, independence_test
from .metrics import (
    METRICS,
    largest_changes,
    log1p_normalise,
    mean_log1p,
    nan_to_null,
    response_metrics,
    split_half_ceiling,
)
from .populations import e_distance
from .power import power_against_leak
from .predictions import BASELINES, Prediction, predicted_cells
from .prior_rank import PriorRank
from .profiles import SCALES
from .recovery import block_r2, leakage, mcc, weak_mcc
from .responses_table import ResponseTable, headline, response_table
from .scoring import SCORES

__all__ = [
    "BASELINES",
    "METRICS",
    "SCALES",
    "SCORES",
    "ConditionMeans",
    "IndependenceTest",
    "Prediction",
    "PriorRank",
    "ResponseTable",
    "additive",
    "agreement_between_seeds",
    "baseline_deltas",
    "block_r2",
    "cluster_agreement",
    "components",
    "condition_means",
    "control_mean",
    "dimension_use",
    "e_distance",
    "headline",
    "hsic_table",
    "identifiability_table",
    "independence_table",
    "independence_test",
    "largest_changes",
    "leakage",
    "log1p_normalise",
    "mcc",
    "mean_log1p",
    "nan_to_null",
    "only_in_use",
    "power_against_leak",
    "predicted_cells",
    "response_metrics",
    "response_table",
    "split_half_ceiling",
    "treatment_mean_shift",
    "umap",
    "weak_mcc",
]
