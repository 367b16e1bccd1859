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
from pyro_fcr.evaluation.clustering import cluster_nmi, umap
from pyro_fcr.evaluation.metrics import (
    METRICS,
    largest_changes,
    log1p_normalise,
    mean_log1p,
    nan_to_null,
    response_metrics,
    split_half_ceiling,
)

__all__ = [
    "METRICS",
    "ConditionMeans",
    "additive",
    "baseline_deltas",
    "cluster_nmi",
    "components",
    "condition_means",
    "control_mean",
    "largest_changes",
    "log1p_normalise",
    "mean_log1p",
    "nan_to_null",
    "response_metrics",
    "split_half_ceiling",
    "treatment_mean_shift",
    "umap",
]
