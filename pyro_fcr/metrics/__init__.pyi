# What there is to import from here; read when a name is first used, see __init__.py.
from .arrays import nan_to_null
from .baselines import BASELINES, Baseline, ConditionMeans, baseline
from .clustering import cluster_agreement, umap
from .dimensions import PriorRank, dimension_use, only_in_use, prior_rank
from .hsic import hsic_table
from .identifiability import agreement_between_seeds, identifiability_table
from .independence import (
    IndependenceTest,
    independence_table,
    independence_test,
    power_against_leak,
)
from .profiles import SCALES, Prediction, log_values, predicted_cells, profile
from .recovery import block_r2, leakage, mcc, weak_mcc
from .response_table import ResponseTable, headline, response_table
from .scores import SCORES, Score, e_distance, largest_changes
from .supervised import supervised_latents

__all__ = [
    "BASELINES",
    "SCALES",
    "SCORES",
    "Baseline",
    "ConditionMeans",
    "IndependenceTest",
    "Prediction",
    "PriorRank",
    "ResponseTable",
    "Score",
    "agreement_between_seeds",
    "baseline",
    "block_r2",
    "cluster_agreement",
    "dimension_use",
    "e_distance",
    "headline",
    "hsic_table",
    "identifiability_table",
    "independence_table",
    "independence_test",
    "largest_changes",
    "leakage",
    "log_values",
    "mcc",
    "nan_to_null",
    "only_in_use",
    "power_against_leak",
    "predicted_cells",
    "prior_rank",
    "profile",
    "response_table",
    "supervised_latents",
    "umap",
    "weak_mcc",
]
