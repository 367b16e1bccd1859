"""Predictions of any tool against real cells: the judging of a fitted model, without a model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from anndata import AnnData
from threadpoolctl import threadpool_limits

from pyro_fcr.data import Schema, SchemaError, Split, split_cells
from pyro_fcr.data.io import read_cells
from pyro_fcr.data.pairs import Pair, read_layout
from pyro_fcr.evaluation import judging
from pyro_fcr.evaluation.predicted import Predicted, PredictedPairs, shared_genes
from pyro_fcr.evaluation.result import Evaluation
from pyro_fcr.values import checked


@checked()
def evaluate_predictions(
    adata: AnnData | str | Path,
    schema: Schema,
    predictions: Mapping[str, Predicted | AnnData | str | Path],
    *,
    n_draws: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Score predicted cells of any tools beside all baselines and the ceiling.

    Parameters
    ----------
    adata
        The real cells, those that the tools trained on and those that they are judged on.
    schema
        What its columns mean. ``split_key`` says which cells the tools had (``"train"``,
        ``"valid"``): pairs of treatment and context that these lack are judged; if there are none,
        all predicted pairs on the cells that are left. Without ``split_key`` the tools are taken
        to have had all cells but those of the pairs that they predict.
    predictions
        Predicted cells by name of the tool; :class:`pyro_fcr.evaluation.Predicted` where a file has
        to be read otherwise than by default.
    n_draws
        Bootstrap draws of the real cells.
    seed
        Seed of everything random.

    Returns
    -------
    An :class:`pyro_fcr.Evaluation` with ``headline``, ``responses``, ``methods`` and ``changes``,
    on the pairs and genes that all tools predict. Where a tool has control cells of a context
    (its own, not copies of real ones), its change is between its own two arms; otherwise it is
    against real control cells that do not measure the response.

    Raises
    ------
    pyro_fcr.SchemaError
        A prediction cannot be read; the message names the tool, what of it, and the mend.
    ValueError
        No pair can be judged, or a name is that of a baseline.

    Examples
    --------
    >>> import pyro_fcr
    >>> cells = pyro_fcr.datasets.gbm_panobinostat()[:, :50].copy()
    >>> schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    >>> theirs = cells[cells.obs["patient"] == "PW030"].copy()
    >>> theirs.X = np.random.default_rng(0).poisson(theirs.X.toarray()).astype("float32")
    >>> found = evaluate_predictions(cells, schema, {"noisy": theirs}, n_draws=20)
    >>> found.scenarios, found.methods["method"].iloc[0]
    (['unseen pair'], 'noisy')
    """
    real = read_cells(adata)
    given = _read(real, schema, predictions)
    genes, split = shared_genes(real, schema, given), _split(real, schema, given)
    own = real if len(genes) == real.n_vars else real[:, genes]
    plan = judging.judged_scenarios(own, schema, split, unknown=partial(_not_predicted, given))
    left_out = dict(plan.left_out)
    for each in given.values():
        left_out |= each.left_out
    if not plan.made:
        reasons = "; ".join(f"{what}: {why}" for what, why in list(left_out.items())[:3])
        raise ValueError(f"No predicted pair can be judged: {reasons}.")
    known = {name: each.predict(genes) for name, each in given.items()}
    with threadpool_limits(limits=1):
        found = judging.judge(own, schema, plan.made, lambda _: known, n_draws=n_draws, seed=seed)
    methods = found["methods"]
    theirs = "predicted cells of " + methods["method"]
    words = methods["words"].mask(methods["role"] == "model", theirs)
    facts = {
        "n_cells": real.n_obs,
        "n_training": len(split.train),
        "n_left_out": real.n_obs - len(split.train) - len(split.heldout),
        "n_genes": len(genes),
        "seed": seed,
    }
    found["methods"] = methods.assign(words=words)
    return Evaluation(facts=facts, left_out=left_out, **found)


def _read(
    real: AnnData,
    schema: Schema,
    predictions: Mapping[str, Predicted | AnnData | str | Path],
) -> dict[str, PredictedPairs]:
    if not predictions:
        raise ValueError("predictions is empty; give predicted cells by the name of their tool.")
    if schema.control is None:
        raise SchemaError(
            "schema.control is None: a response is a change against control cells; name the label "
            "of untreated cells"
        )
    named = {
        name: each if isinstance(each, Predicted) else Predicted(source=each)
        for name, each in predictions.items()
    }
    return {name: PredictedPairs(name, each, real, schema) for name, each in named.items()}


def _split(real: AnnData, schema: Schema, given: Mapping[str, PredictedPairs]) -> Split:
    """Return the cells that the tools had; without a split column, all but what they predict."""
    if schema.split_key is not None:
        return split_cells(real.obs, schema, heldout_fraction=0.0)
    layout = read_layout(real.obs, schema)
    predicted = {pair for each in given.values() for pair in each.pairs}
    rows = [i for i, pair in layout.treated().items() if pair in predicted]
    kept = np.flatnonzero(~np.isin(layout.codes, rows))
    return Split(kept, np.empty(0, dtype=np.int64))


def _not_predicted(given: Mapping[str, PredictedPairs], pair: Pair) -> str:
    """Say who does not predict a pair; nothing if all do."""
    lacking = [name for name, each in given.items() if pair not in each.pairs]
    return f"not predicted by {', '.join(lacking)}" if lacking else ""
