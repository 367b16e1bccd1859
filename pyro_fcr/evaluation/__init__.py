"""How good a fitted model is: response metrics, baselines, clusters of the latent blocks.

Everything takes plain arrays, data frames or AnnData; nothing here knows a model.
"""

from pyro_fcr.evaluation.baselines import (
    ConditionMeans,
    additive,
    baseline_deltas,
    components,
    condition_means,
    control_mean,
    treatment_mean_shift,
)
from pyro_fcr.evaluation.clustering import cluster_agreement, umap
from pyro_fcr.evaluation.hsic import hsic_table
from pyro_fcr.evaluation.identifiability import agreement_between_seeds, identifiability_table
from pyro_fcr.evaluation.independence import IndependenceTest, independence_table, independence_test
from pyro_fcr.evaluation.layout import Pair
from pyro_fcr.evaluation.metrics import (
    METRICS,
    largest_changes,
    log1p_normalise,
    mean_log1p,
    nan_to_null,
    response_metrics,
    split_half_ceiling,
)
from pyro_fcr.evaluation.populations import e_distance
from pyro_fcr.evaluation.power import power_against_leak
from pyro_fcr.evaluation.predictions import BASELINES, Prediction, predicted_cells
from pyro_fcr.evaluation.prior_rank import PriorRank
from pyro_fcr.evaluation.profiles import SCALES
from pyro_fcr.evaluation.recovery import block_r2, leakage, mcc, weak_mcc
from pyro_fcr.evaluation.responses_table import ResponseTable, headline, response_table
from pyro_fcr.evaluation.scenarios import (
    Scenario,
    Scenarios,
    random_cells,
    unseen_contexts,
    unseen_pairs,
    unseen_treatments,
)
from pyro_fcr.evaluation.scoring import SCORES

__all__ = [
    "BASELINES",
    "METRICS",
    "SCALES",
    "SCORES",
    "ConditionMeans",
    "IndependenceTest",
    "Pair",
    "Prediction",
    "PriorRank",
    "ResponseTable",
    "Scenario",
    "Scenarios",
    "additive",
    "agreement_between_seeds",
    "baseline_deltas",
    "block_r2",
    "cluster_agreement",
    "components",
    "condition_means",
    "control_mean",
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
    "power_against_leak",
    "predicted_cells",
    "random_cells",
    "response_metrics",
    "response_table",
    "split_half_ceiling",
    "treatment_mean_shift",
    "umap",
    "unseen_contexts",
    "unseen_pairs",
    "unseen_treatments",
    "weak_mcc",
]
