"""Coverage is nominal where the distribution is right, and only there."""

import copy

import numpy as np
import pytest
import torch
from conftest import NO_PENALTIES, SCHEMA, simulate
from scipy import stats

from pyro_fcr import FCR, Architecture, QueryError, Schema
from pyro_fcr.metrics.intervals import central_shares, pit_of_draws
from pyro_fcr.simulation import InteractionDesign, simulate_interactions

DESIGN = InteractionDesign(
    n_cells=2_000, n_genes=40, n_contexts=3, n_treatments=2, n_interacting=2, n_drivers=8
)
SHORT = Architecture(n_x=4, n_t=3, n_tx=2, n_hidden=32, decoder="additive", dropout=0.0)
PLAN = {"batch_size": 128, "learning_rate": 3e-3, "progress": False, "weights": NO_PENALTIES}
PLANNED = Schema(treatment_key="treatment", control="control", covariate_keys="context")

# Interactions alone are weak; a fit says that it shrinks them.
pytestmark = pytest.mark.filterwarnings("ignore:Counterfactuals of control cells change too little")


@pytest.fixture(scope="module")
def fitted():
    fcr = FCR(
        simulate_interactions(DESIGN), PLANNED, architecture=Architecture(n_tx=2, n_hidden=64)
    )
    fcr.fit(max_epochs=40, **{**PLAN, "learning_rate": 6e-3})
    return fcr


def observed(fcr, adata=None, **settings):
    table = fcr.interval_coverage(adata, **{"n_draws": 100, **settings})
    return table.set_index(["kind", "nominal"])["observed"]


@pytest.mark.parametrize("mean", [0.02, 0.5, 30.0])
@pytest.mark.parametrize("n_draws", [1, 7, 99])
def test_pit_is_uniform_for_rare_and_frequent_counts_and_few_draws(mean, n_draws):
    rng = np.random.default_rng(0)
    values, draws = rng.poisson(mean, 4_000), rng.poisson(mean, (n_draws, 4_000))
    counts = ((draws < values).sum(axis=0), (draws == values).sum(axis=0))
    pit = pit_of_draws(*counts, n_draws, rng=rng)
    assert stats.kstest(pit, "uniform").pvalue > 0.01


def test_pit_of_a_wrong_distribution_is_not_uniform():
    rng = np.random.default_rng(0)
    values, draws = rng.poisson(2.0, 4_000), rng.negative_binomial(1, 1 / 3, (99, 4_000))
    counts = ((draws < values).sum(axis=0), (draws == values).sum(axis=0))
    pit = pit_of_draws(*counts, 99, rng=rng)
    assert central_shares(pit[None], [0.5, 0.9])[0] == pytest.approx([0.66, 0.98], abs=0.03)


def test_pit_refuses_more_ranks_than_draws():
    with pytest.raises(ValueError, match=r"below \+ equal is 12, more than 10 draws"):
        pit_of_draws([7], [5], 10, rng=np.random.default_rng(0))


def test_intervals_hold_held_out_cells_as_often_as_they_say(fitted):
    table = fitted.interval_coverage()
    assert list(table["kind"]) == ["observation"] * 2
    assert list(table["n"]) == [len(fitted.split.heldout) * 40] * 2
    half, most = table["observed"]
    assert 0.45 < half < 0.55
    assert 0.85 < most < 0.95


@pytest.mark.parametrize(("factor", "low", "high"), [(10.0, 0.0, 0.85), (0.1, 0.95, 1.0)])
def test_a_wrong_dispersion_shows(fitted, factor, low, high):
    wrong = copy.copy(fitted)
    wrong.model = copy.deepcopy(fitted.model)
    wrong.model.y.log_dispersion.data += np.log(factor)
    assert low <= observed(wrong)["observation", 0.9] <= high


def test_latents_of_another_condition_show():
    adata = simulate(1_200, interaction=1.5)
    fcr = FCR(adata, SCHEMA, architecture=SHORT)
    fcr.fit(max_epochs=40, **PLAN)
    assert 0.85 < observed(fcr)["observation", 0.9] < 0.95
    mistaken = adata[fcr.split.heldout].copy()
    mistaken.obs["drug"] = mistaken.obs["drug"].replace({"drug1": "drug2", "drug2": "drug1"})
    assert observed(fcr, mistaken)["observation", 0.9] < 0.85


def test_cells_are_not_shown_to_the_guide(fitted, monkeypatch):
    def refuse(*_):
        raise AssertionError("the guide ran")

    monkeypatch.setattr(fitted.guide, "forward", refuse)
    observed(fitted, n_draws=2)


def test_continuous_expression_is_covered_too():
    adata, rng = simulate(900, 20), np.random.default_rng(0)
    condition = (adata.obs["line"] + adata.obs["drug"]).astype("category").cat.codes
    level = rng.normal(4.0, 0.5, (condition.max() + 1, adata.n_vars))[condition]
    adata.X = rng.normal(level, 0.5).clip(min=0.0).astype(np.float32)
    schema = Schema(
        treatment_key="drug", control="control", covariate_keys="line", expression="log1p"
    )
    fcr = FCR(adata, schema, architecture=Architecture(n_tx=2, n_hidden=32, likelihood="normal"))
    fcr.fit(max_epochs=40, **PLAN)
    assert 0.85 < observed(fcr)["observation", 0.9] < 0.95
    shifted = adata[fcr.split.heldout].copy()
    shifted.X += 1.0
    assert observed(fcr, shifted)["observation", 0.9] < 0.7


def test_unseen_conditions_stand_in_rows_of_their_own():
    adata = simulate(400, 10)
    pair = (adata.obs["line"] == "line1") & (adata.obs["drug"] == "drug1")
    adata.obs["split"] = np.where(pair, "test", "train")
    schema = Schema(
        treatment_key="drug", control="control", covariate_keys="line", split_key="split"
    )
    fcr = FCR(adata, schema, architecture=Architecture(n_tx=1, n_hidden=8))
    fcr.fit(max_epochs=1, progress=False)
    assert set(fcr.interval_coverage(n_draws=2)["kind"]) == {"observation"}
    table = fcr.interval_coverage(adata, levels=(0.8,), n_draws=2)
    assert list(table["kind"]) == ["observation", "observation, unseen condition"]
    assert list(table["n"]) == [10 * (~pair).sum(), 10 * pair.sum()]


def test_the_same_seed_gives_the_same_table_and_leaves_the_global_state_alone(fitted):
    state = torch.get_rng_state()
    first = fitted.interval_coverage(n_draws=5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.equals(fitted.interval_coverage(n_draws=5, seed=3))
    assert not first.equals(fitted.interval_coverage(n_draws=5, seed=4))


def test_what_cannot_be_asked_is_named(fitted, adata):
    with pytest.raises(QueryError, match="levels is 90; expected a number between 0 and 1"):
        fitted.interval_coverage(levels=(0.5, 90))
    with pytest.raises(QueryError, match="n_draws is 0"):
        fitted.interval_coverage(n_draws=0)
    fresh = FCR(adata, SCHEMA, architecture=Architecture(n_tx=1))
    with pytest.raises(QueryError, match="no held-out cells.*adata="):
        fresh.interval_coverage()
    fresh.fit(max_epochs=1, heldout_fraction=0.0, progress=False)
    with pytest.raises(QueryError, match="held out no cells.*heldout_fraction="):
        fresh.interval_coverage()
