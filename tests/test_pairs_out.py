"""Pairs predicted by fits that lacked them, and the weight of a model beside a regression."""

import numpy as np
import pandas as pd
import pytest

from pyro_fcr import FCR, Architecture, QueryError, Schema, TrainingPlan
from pyro_fcr.data.pairs import Pair
from pyro_fcr.evaluation import leave_pairs_out
from pyro_fcr.metrics.stacking import stack
from pyro_fcr.simulation import FCRDesign, simulate

SCHEMA = Schema(treatment_key="treatment", control="control", covariate_keys="context")
PLAN = TrainingPlan(max_epochs=2, align_at=None, progress=False)


def changes(real, model, simple):
    """Tables as of `response_table`, of one treatment in several contexts."""
    names = ["scenario", "treatment", "context", "method"]
    rows = {
        ("unseen pair", "a", f"line{i}", name): values[i]
        for i in range(len(real))
        for name, values in (("real", real), ("fcr", model), ("ridge", simple))
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return {"mean_log1p": table.set_axis(pd.MultiIndex.from_tuples(table.index, names=names))}


def test_the_weight_is_that_of_least_error():
    """Errors of independent causes: the weight is their precision's share."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 300))
    for spread, expected in [(1.0, 0.5), (0.5, 0.8), (3.0, 0.1)]:
        model = real + spread * rng.normal(size=real.shape)
        simple = real + rng.normal(size=real.shape)
        found = stack(changes(real, model, simple))
        assert found.weight["mean_log1p"] == pytest.approx(expected, abs=0.03)
        mixed = found.mix({"mean_log1p": model}, {"mean_log1p": simple})["mean_log1p"]
        errors = [np.mean((each - real) ** 2) for each in (mixed, model, simple)]
        assert errors[0] < min(errors[1:])


def test_the_weight_of_a_pair_is_that_of_the_others():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(5, 50))
    model, simple = real.copy(), np.zeros_like(real)
    simple[2], model[2] = real[2], 0.0  # here alone the regression is right
    found = stack(changes(real, model, simple))
    left_out = found.left_out["mean_log1p"].droplevel(["scenario", "treatment"])
    assert left_out["line2"] > 0.85
    assert left_out.drop("line2").max() < found.weight["mean_log1p"] < left_out["line2"]
    one = stack(changes(real[:1], model[:1], simple[:1]))
    assert one.left_out["mean_log1p"].tolist() == [0.5]  # nothing else is known
    with pytest.raises(ValueError, match="'fcr' or 'missing' has no prediction of some pair"):
        stack(changes(real, model, simple), simple="missing")


@pytest.fixture(scope="module")
def fcr():
    design = FCRDesign(n_contexts=4, n_treatments=3, n_genes=30, n_cells=600, likelihood="nb")
    adata = simulate(design, seed=0)
    architecture = Architecture(n_tx=2, decoder="additive", dropout=0.0, n_hidden=16)
    return FCR(adata, SCHEMA, architecture=architecture)


def test_each_pair_is_predicted_by_a_fit_that_knows_nothing_of_it(fcr, monkeypatch):
    seen = []
    whole = FCR.fit

    def fit(self, plan=None, *, split=None, **settings):
        seen.append((self, split))
        return whole(self, plan, split=split, **settings)

    monkeypatch.setattr(FCR, "fit", fit)
    found = leave_pairs_out(fcr, n_folds=3, plan=PLAN, n_draws=20)
    obs = fcr.source(None).obs
    pairs = set(zip(obs["treatment"], obs["context"], strict=True))
    asked = {pair for pair in pairs if pair[0] != "control"}
    own = found.table.frame.query("method == 'stacked' and metric == 'mse_delta'")
    assert set(zip(own["treatment"], own["context"], strict=True)) == asked
    assert len(seen) == 3
    for fit_, split in seen:
        used = obs.iloc[np.concatenate([split.train, split.heldout])]
        out = pairs - set(zip(used["treatment"], used["context"], strict=True))
        assert len(out) >= 2
        for treatment, context in out:
            assert fit_.registry.is_extrapolated(treatment, {"context": context})
    assert fcr.history is None
    assert not fcr.registry.is_extrapolated(*next((t, {"context": c}) for t, c in asked))
    assert not found.left_out
    head = found.headline("mse_delta")
    assert set(head["scale"]) == {"mean_log1p", "log1p_mean"}
    assert set(head["method"]) == {"stacked"}


def test_a_pair_that_was_never_measured_is_answered_by_both(fcr):
    adata = fcr.source(None)
    out = (adata.obs["treatment"] == "drug1") & (adata.obs["context"] == "line1")
    names = {"treatment": adata.obs["treatment"].unique(), "context": adata.obs["context"].unique()}
    assert out.any(), names
    lacking = FCR(adata[~out.to_numpy()].copy(), SCHEMA, architecture=fcr.architecture)
    found = leave_pairs_out(lacking, n_folds=2, plan=PLAN, n_draws=10)
    lacking.fit(PLAN)
    answer = found.respond(lacking, "drug1", {"context": "line1"})
    assert answer.shape == (30, 6)
    for scale, weight in found.stack.weight.items():
        mixed = weight * answer[scale, "fcr"] + (1 - weight) * answer[scale, "ridge"]
        np.testing.assert_allclose(answer[scale, "stacked"], mixed)
    assert Pair("drug1", ("line1",)).place == "line1"
    with pytest.raises(Exception, match="'line9'"):
        found.respond(lacking, "drug1", {"context": "line9"})


def test_what_cannot_be_left_out_is_refused_before_any_fit(fcr):
    with pytest.raises(ValueError, match="n_folds is 1"):
        leave_pairs_out(fcr, n_folds=1)
    adata = fcr.source(None)
    one = adata[(adata.obs["context"] == "line1").to_numpy()].copy()
    with pytest.raises(QueryError, match="No pair can be left out: no other context has"):
        leave_pairs_out(FCR(one, SCHEMA, architecture=fcr.architecture), plan=PLAN)
