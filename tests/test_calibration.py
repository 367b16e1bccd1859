"""Do counterfactuals give back what training saw? Against answers of known strength."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import NO_PENALTIES

from pyro_fcr import FCR, Architecture, Schema, TrainingPlan, datasets
from pyro_fcr.evaluation import measure_calibration

SCHEMA = Schema(treatment_key="drug", control="none", covariate_keys="line", expression="log1p")
N, GENES = 120, 80


def experiment(seed=0):
    """Cells of two lines under a drug, with the means of each condition."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(2, 4, GENES)
    means = {(line, "none"): base + rng.normal(0, 0.3, GENES) for line in "uv"}
    means |= {(line, "a"): means[line, "none"] + rng.normal(0, 0.7, GENES) for line in "uv"}
    obs = pd.DataFrame([key for key in means for _ in range(N)], columns=["line", "drug"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    values = np.repeat(list(means.values()), N, axis=0)
    return ad.AnnData(values + rng.normal(size=values.shape), obs=obs), means


@pytest.fixture
def answering(monkeypatch):
    """A model that answers with a share of the true change, from controls that are a bit off."""

    def make(means, *, strength, off=0.0):
        rng = np.random.default_rng(1)

        def cells(wanted, adata, n_draws):
            mean = [wanted(row.line, row.drug) for row in adata.obs.itertuples()]
            values = np.repeat(mean, n_draws, axis=0)
            return ad.AnnData(values + rng.normal(size=values.shape))

        def answer(fcr, adata, *, treatment, n_draws, seed, library="own"):
            def mean(line, drug):
                change = means[line, treatment] - means[line, "none"]
                return means[line, "none"] + off + strength * change

            return cells(mean, adata, n_draws)

        def again(fcr, adata, *, n_draws, seed):
            return cells(lambda line, drug: means[line, drug], adata, n_draws)

        monkeypatch.setattr("pyro_fcr.evaluation.arms.counterfactual", answer)
        monkeypatch.setattr("pyro_fcr.evaluation.calibration.posterior_predictive", again)
        return SimpleNamespace(registry=SimpleNamespace(schema=SCHEMA))

    return make


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.4])
def test_the_slope_is_the_share_of_the_change_that_is_answered(answering, strength):
    adata, means = experiment()
    fcr = answering(means, strength=strength)
    found = measure_calibration(fcr, adata, np.ones(adata.n_obs, dtype=bool))
    own = found.table.query("scale == 'mean_log1p'")
    assert list(own["context"]) == ["u", "v"]
    np.testing.assert_allclose(own["slope"], strength, atol=0.06)
    assert (own["reconstruction_error"] < 0.08).all()
    assert bool(found.warning) == (strength != 1.0)
    if strength == 0.5:
        assert "change too little under" in found.warning
        assert "'a' in u (0." in found.warning
        # The genes of largest change by half of the cells: no luck of the choice in the error.
        expected = [
            0.5 * np.sqrt(np.sort((means[x, "a"] - means[x, "none"]) ** 2)[-50:].mean())
            for x in "uv"
        ]
        np.testing.assert_allclose(own["change_error"], expected, rtol=0.1)
    assert f"give back {found.slope:.2f} of the change" in found.line


def test_controls_that_are_off_on_both_sides_show_in_the_arms_only(answering):
    adata, means = experiment()
    fcr = answering(means, strength=1.0, off=0.3)
    table = measure_calibration(fcr, adata, np.ones(adata.n_obs, dtype=bool)).table
    own = table.query("scale == 'mean_log1p'")
    np.testing.assert_allclose(own[["treated_error", "control_error"]], 0.3, atol=0.06)
    assert (own["change_error"] < 0.12).all()


def test_cells_that_did_not_train_and_small_conditions_are_not_looked_at(answering):
    adata, means = experiment()
    train = np.ones(adata.n_obs, dtype=bool)
    train[np.flatnonzero((adata.obs["line"] == "v") & (adata.obs["drug"] == "a"))[15:]] = False
    found = measure_calibration(answering(means, strength=1.0), adata, train)
    assert set(found.table["context"]) == {"u"}
    assert found.to_dict() == {"slope": found.slope, "n_conditions": 1, "off": []}
    few = measure_calibration(
        answering(means, strength=1.0), adata, train & (adata.obs.line == "v")
    )
    assert few.table.empty
    assert "no condition has cells enough" in few.line
    assert not few.warning


def test_a_training_of_500_steps_says_how_its_interventions_come_out(monkeypatch):
    adata = datasets.gbm_panobinostat()[::10, :40].copy()
    schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    fcr = FCR(adata, schema, architecture=Architecture(decoder="additive", dropout=0.0))
    plan = TrainingPlan(
        batch_size=16, learning_rate=1e-6, align_at=None, engine="eager", progress=False
    )
    assert "calibration" not in fcr.fit(plan, max_epochs=1).attrs
    monkeypatch.setattr("pyro_fcr.training.plan._STEPS_WORTH_ALIGNING", 500)
    with pytest.warns(UserWarning, match="change too little under treatments that training saw"):
        history = fcr.fit(plan, max_epochs=18, weights=NO_PENALTIES)
    assert abs(history.attrs["calibration"]["slope"]) < 0.5
    assert history.attrs["calibration"]["n_conditions"] == 5
