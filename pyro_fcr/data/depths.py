"""Sequencing depth of conditions: as measured, or what treatment and context let expect."""

from collections.abc import Hashable

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.data.registry import Registry
from pyro_fcr.data.treatments import canonical_label, parse_agents


def expected_depths(obs: pd.DataFrame, registry: Registry) -> npt.NDArray[np.float64]:
    """Return the depth that cells of each condition are expected to have.

    Parameters
    ----------
    obs
        Annotation with the schema's columns.
    registry
        Training conditions with their depths.

    Returns
    -------
    Counts per cell, ``(n_cells,)``. Of a pair of treatment and context that training had, the
    median of its training cells; of any other, that of a median regression of the training
    conditions' log depths on agents and covariate levels, weighted by cells: one odd library should
    not make a treatment deep. The median of all training cells where depths are not known: of log1p
    values, and in models saved by earlier versions.

    Examples
    --------
    >>> import anndata as ad
    >>> from pyro_fcr.data import Schema, register
    >>> obs = pd.DataFrame({"drug": ["none", "A", "none"], "line": ["u", "u", "v"]}, list("abc"))
    >>> adata = ad.AnnData(np.array([[4.0, 4.0], [2.0, 2.0], [1.0, 1.0]]), obs=obs)
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line", min_cells=1)
    >>> registry, _ = register(adata, schema)
    >>> expected_depths(pd.DataFrame({"drug": ["A", "A"], "line": ["u", "v"]}), registry).round(6)
    array([4., 1.])
    """
    design = registry.read_design(obs)
    present, at = np.unique(design.conditions, return_inverse=True)
    pairs = []
    for t, x in zip(*np.divmod(present, len(design.contexts)), strict=True):
        label = canonical_label(design.treatments[t].agents, registry.schema)
        pairs.append((label, design.contexts[x]))
    return _of_pairs(pairs, registry)[at.reshape(-1)]


def _of_pairs(
    pairs: list[tuple[str, tuple[str, ...]]], registry: Registry
) -> npt.NDArray[np.float64]:
    from sklearn.linear_model import QuantileRegressor  # noqa: PLC0415 (takes long to import)

    known = [each for each in registry.conditions if each.depth]
    if not known:
        return np.full(len(pairs), registry.target_sum or 1.0)
    trained = [(each.treatment, tuple(each.covariates.values())) for each in known]
    logs = np.log([each.depth or np.nan for each in known])
    weights = np.array([each.n_cells for each in known], dtype=np.float64)
    found = np.empty(len(pairs))
    for number, pair in enumerate(pairs):
        if seen := [i for i, each in enumerate(trained) if each == pair]:
            found[number] = np.average(logs[seen], weights=weights[seen])
    if unseen := [i for i, pair in enumerate(pairs) if pair not in trained]:
        rows = [_features(*pair, registry) for pair in (*trained, *(pairs[i] for i in unseen))]
        names = list(dict.fromkeys(name for row in rows for name in row))
        design = np.array([[float(name in row) for name in names] for row in rows])
        fit = QuantileRegressor(alpha=1e-6).fit(design[: len(known)], logs, sample_weight=weights)
        found[unseen] = fit.predict(design[len(known) :])
    return np.exp(found)


def _features(treatment: str, context: tuple[str, ...], registry: Registry) -> set[Hashable]:
    """Name the agents of a treatment and the levels of a context."""
    agents = parse_agents(treatment, registry.schema)
    return {*agents, *enumerate(context)}
