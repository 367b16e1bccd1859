"""Pairs predicted by fits that lacked them, and the weight of a model beside a regression."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from pyro_fcr import FCR, Architecture, QueryError, Schema, TrainingPlan
from pyro_fcr.data import Split
from pyro_fcr.data.folds import deal_pairs
from pyro_fcr.data.pairs import Pair, read_layout
from pyro_fcr.data.scenarios import unseen_pairs
from pyro_fcr.evaluation import leave_pairs_out
from pyro_fcr.metrics.chances import FEATURES, Chances
from pyro_fcr.metrics.conformal import ConformalIntervals, noise_variance
from pyro_fcr.metrics.profiles import SCALES, Mixture, Prediction, log_values
from pyro_fcr.metrics.response_table import response_table
from pyro_fcr.metrics.stacking import stack
from pyro_fcr.nn import InteractionPrior
from pyro_fcr.programs import build_programs
from pyro_fcr.queries.refitting import refit
from pyro_fcr.queries.simple import SimpleAnswers
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
    architecture = Architecture(n_tx=1, decoder="additive", dropout=0.0, n_hidden=16)
    return FCR(adata, SCHEMA, architecture=architecture)


def test_a_mixture_sees_the_control_cells_that_its_baseline_sees(fcr):
    """All weight on the baseline: the same scores, also where halves of the controls take turns."""
    adata, schema = fcr.source(None), fcr.registry.schema
    scenario = unseen_pairs(adata.obs, schema).made[0]
    nothing = Prediction(dict.fromkeys(SCALES, np.zeros(adata.n_vars)))
    mixed = {p: Mixture(nothing, "ridge", dict.fromkeys(SCALES, 0.0)) for p in scenario.pairs}
    table = response_table(adata, schema, [(scenario, {"mixed": mixed})], n_draws=10).frame
    own = table[table["metric"] != "e_distance"].pivot(
        index=["scale", "metric"], columns="method", values="value"
    )
    np.testing.assert_allclose(own["mixed"], own["ridge"])


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


@pytest.fixture(scope="module")
def lacking(fcr):
    """A model that lacks a pair, and what leaving out the others has found."""
    adata = fcr.source(None)
    out = (adata.obs["treatment"] == "drug1") & (adata.obs["context"] == "line1")
    adata = adata.copy()
    adata.obs["split"] = np.where(out, "test", "train")
    schema = replace(SCHEMA, split_key="split")
    model = FCR(adata, schema, architecture=fcr.architecture)
    model.fit(PLAN)
    return model, model.leave_pairs_out(n_folds=2, plan=PLAN, n_draws=10)


def test_a_pair_that_was_never_measured_is_answered_by_both(lacking):
    model, found = lacking
    answer = found.respond(model, "drug1", {"context": "line1"})
    assert answer.shape == (30, 10)
    assert 0 < answer.attrs["chance"] < 1
    for scale, weight in found.stack.weight.items():
        mixed = weight * answer[scale, "fcr"] + (1 - weight) * answer[scale, "ridge"]
        np.testing.assert_allclose(answer[scale, "stacked"], mixed)
        assert (answer[scale, "lower"] < mixed).all()
        assert (answer[scale, "upper"] > mixed).all()
    assert Pair("drug1", ("line1",)).place == "line1"
    assert set(found.coverage["nominal"]) == {0.5, 0.9}
    with pytest.raises(Exception, match="'line9'"):
        found.respond(model, "drug1", {"context": "line9"})


def test_predictions_bear_the_chance_that_the_model_is_right(lacking, tmp_path):
    model, found = lacking
    asked = {"covariates": {"context": "line1"}, "n_cells": 40}
    assert model.chances is found.chances
    table = found.table.frame  # what the split keeps from training is not looked at
    assert not ((table["treatment"] == "drug1") & (table["context"] == "line1")).any()
    unseen = model.predict("drug1", **asked).obs["chance"]
    assert unseen.nunique() == 1
    assert 0 < unseen.iloc[0] < 1
    assert model.predict("drug2", **asked).obs["chance"].isna().all()
    control = model.source(None)[(model.source(None).obs["treatment"] == "control").to_numpy()]
    of_cells = model.counterfactual(control, treatment="drug1").obs
    assert (of_cells["chance"].notna() == (control.obs["context"] == "line1").to_numpy()).all()
    model.save(tmp_path / "model")
    again = FCR.load(tmp_path / "model", adata=model.source(None))
    assert again.predict("drug1", **asked).obs["chance"].iloc[0] == pytest.approx(unseen.iloc[0])
    alone = FCR.load(tmp_path / "model")
    assert alone.predict("drug1", **asked).obs["chance"].isna().all()
    assert model.with_programs(model.model, model.guide).chances is None


@pytest.mark.parametrize("won", [True, False])
def test_the_likelier_method_answers(lacking, monkeypatch, won):
    model, found = lacking
    table = found.chances.table.assign(share=float(won), gain=1.0 if won else -1.0)
    monkeypatch.setattr(model, "chances", replace(found.chances, table=table, simple="additive"))
    asked = {"covariates": {"context": "line1"}, "n_cells": 400, "seed": 3}
    cells = model.predict("drug1", **asked, fallback="best")
    method = "fcr" if won else "additive"
    assert set(cells.obs["method"]) == {cells.uns["pyro_fcr"]["method"]} == {method}
    plain = model.predict("drug1", **asked)
    assert "method" not in plain.obs
    assert ((cells.X != plain.X).sum() > 0) == (not won)
    assert set(model.predict("drug2", **asked, fallback="best").obs["method"]) == {"fcr"}
    if not won:  # control cells of the context, with the change of the additive fit
        own = SimpleAnswers(model, "additive")
        change = own.change(Pair("drug1", ("line1",)), "mean_log1p")
        control = own.cells(Pair("drug1", ("line1",)), np.full(400, 1e6), seed=0)
        obs = model.source(None).obs
        rows = (obs["treatment"] == "control") & (obs["context"] == "line1")
        real = log_values(model.source(None)[rows.to_numpy()].X).mean(axis=0)
        expected = np.clip(np.asarray(real).ravel() + change, 0, None)
        drawn = np.asarray(log_values(control).mean(axis=0)).ravel()
        assert np.corrcoef(drawn, expected)[0, 1] > 0.98


def test_a_fallback_that_cannot_be_is_refused(fcr, lacking):
    asked = {"covariates": {"context": "line1"}}
    with pytest.raises(QueryError, match=r"run fcr.leave_pairs_out\(\)"):
        fcr.predict("drug1", **asked, fallback="best")
    with pytest.raises(QueryError, match="Unknown fallback 'ridge'; expected best"):
        fcr.predict("drug1", **asked, fallback="ridge")
    with pytest.raises(QueryError, match="leave output= at 'draws'"):
        lacking[0].predict("drug1", **asked, fallback="best", output="mean")


def known_pairs(n_pairs, seed=0):
    """Pairs that are won where the answers agree, and as luck has it otherwise."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(n_pairs, len(FEATURES))), columns=list(FEATURES))
    gain = table["agreement"] + 0.3 * rng.normal(size=n_pairs)
    return table.assign(treatment="a", context="u", gain=gain, share=(gain > 0) * 0.9 + 0.05)


def test_chances_are_learnt_where_there_is_something_to_learn():
    found = Chances(known_pairs(60), "ridge", "cosine_logfc", "mean_log1p")
    assert found.auroc > 0.85
    chance = [found.of({"agreement": value}) for value in (-2, 0, 2)]  # the rest is not known
    assert chance[0] < 0.25 < chance[1] < 0.75 < chance[2]
    assert "with an AUROC of 0." in found.line
    luck = known_pairs(60).assign(share=np.tile([0.2, 0.8], 30))
    rate = Chances(luck, "ridge", "cosine_logfc", "mean_log1p")
    assert rate.of({"agreement": 2.0}) == pytest.approx(0.5, abs=0.1)
    few = Chances(known_pairs(60)[:6].assign(share=1.0), "ridge", "cosine_logfc", "mean_log1p")
    assert few.of({"agreement": -2.0}) == pytest.approx(7 / 8)
    nothing_told = known_pairs(31).assign(**dict.fromkeys(FEATURES, 0.0))
    assert Chances(nothing_told, "ridge", "cosine_logfc", "mean_log1p").auroc == 0.5
    again = Chances.from_dict(found.to_dict())
    assert again.of({"agreement": 1.0}) == found.of({"agreement": 1.0})


def test_intervals_of_unseen_pairs_hold_the_truth_whatever_noise_it_was_measured_with():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 500)) * rng.gamma(1.0, 1.0, 500)
    error = 0.2 + 0.3 * np.abs(truth)
    predicted, noise = truth + error * rng.normal(size=truth.shape), np.full(truth.shape, 0.25)
    real = truth + rng.normal(0, 0.5, truth.shape)
    found = ConformalIntervals(predicted[:10], real[:10], noise[:10], "mean_log1p")
    for level, low, high in [(0.5, 0.4, 0.62), (0.9, 0.85, 0.96)]:
        ends = np.array([found.of(each, level) for each in predicted[10:]])
        assert low < ((ends[:, 0] <= truth[10:]) & (truth[10:] <= ends[:, 1])).mean() < high
    np.testing.assert_allclose(found.coverage()["observed"], [0.5, 0.9], atol=0.05)
    sparse = log_values(csr_matrix(rng.poisson(2.0, (50, 5))))
    for scale in ("mean_log1p", "log1p_mean"):
        dense = noise_variance(sparse.toarray(), scale)
        np.testing.assert_allclose(noise_variance(sparse, scale), dense)
    np.testing.assert_allclose(
        noise_variance(sparse, "mean_log1p"), sparse.toarray().var(axis=0, ddof=1) / 50
    )


def test_what_cannot_be_left_out_is_refused_before_any_fit(fcr):
    with pytest.raises(ValueError, match="n_folds is 1"):
        leave_pairs_out(fcr, n_folds=1)
    adata = fcr.source(None)
    one = adata[(adata.obs["context"] == "line1").to_numpy()].copy()
    with pytest.raises(QueryError, match="No pair can be left out: no other context has"):
        leave_pairs_out(FCR(one, SCHEMA, architecture=fcr.architecture), plan=PLAN)


def test_combinations_of_agents_that_others_have_are_left_out():
    labels = ["control", "a", "b", "c", "a+b", "b+c", "c+d"]
    obs = pd.DataFrame({"treatment": np.repeat(labels, 8), "context": "u"})
    layout, cells = read_layout(obs, SCHEMA), np.arange(len(obs)) % 8 > 0
    made, reasons = deal_pairs(layout, cells, n_folds=2)
    assert [[pair.treatment for pair in scenario.pairs] for scenario in made] in (
        [["a+b"], ["b+c"]],
        [["b+c"], ["a+b"]],
    )
    assert reasons["'c+d' in u"] == "no other treatment has 'd'"
    assert reasons["'a' in u"] == "no other context has 'a'"
    first = made[0]
    assert set(obs["treatment"][first.test]) == {first.pairs[0].treatment}
    assert not (first.train & first.test).any()
    assert (first.train | first.test).tolist() == cells.tolist()


def test_a_fit_ends_with_what_seen_pairs_foretell(fcr, monkeypatch):
    told = []

    def foretell(prior, states):
        told.append((prior, states))

    monkeypatch.setattr(InteractionPrior, "foretell", foretell)
    new = fcr.with_programs(*build_programs(fcr.registry, fcr.architecture, seed=0))
    new.fit(PLAN)
    ((prior, states),) = told
    assert prior is new.model.z_tx
    torch.testing.assert_close(states.T, new.model.z_x.loc.weight)


def test_a_fit_without_a_pair_knows_nothing_of_it(fcr):
    """The average that z_tx is centred at leaves the pair out, and the pair counts as unseen."""
    obs = fcr.source(None).obs
    line1 = (obs["context"] == "line1").to_numpy()
    kept = np.flatnonzero(~line1 | (obs["treatment"] == "control").to_numpy())
    split = Split(kept[::2], kept[1::2])
    new = refit(fcr, split, seed=0, programs=None, settings={"plan": PLAN})
    place = fcr.registry.covariates["context"].index("line1")
    assert (new.model.z_tx.mean_context[:, place] == 0).all()
    assert (fcr.model.z_tx.mean_context[:, place] > 0).all()
    assert new.registry.is_extrapolated("drug1", {"context": "line1"})
    assert not fcr.registry.is_extrapolated("drug1", {"context": "line1"})
    x = torch.eye(len(fcr.registry.covariates["context"]))[[place]]
    new.model.z_tx.foretold.zero_()  # what contexts like it foretell
    found = new.model.z_tx(torch.ones(1, new.model.z_tx.treatment.in_features), x).mean
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-6, rtol=0.0)
    with pytest.raises(ValueError, match=r"no cell of 'drug1' in line1.*Schema\(split_key="):
        fcr.with_programs(*build_programs(fcr.registry, fcr.architecture, seed=0)).fit(
            PLAN, split=split
        )


def test_a_context_that_was_never_treated_responds_as_the_average_does():
    """Wherever training has moved the embeddings of the others, which have no fixed origin."""
    prior = InteractionPrior(1, 3, 2, mean_context=torch.tensor([[0.5, 0.5, 0.0]]))
    with torch.no_grad():
        prior.context.weight[:, :2] += 3.0
        found = prior(torch.ones(3, 1), torch.eye(3)).mean
        mixed = prior(torch.ones(3, 1), torch.eye(3)).stddev
    assert (found[2] == 0).all()
    torch.testing.assert_close(found[0], -found[1], atol=1e-5, rtol=1e-5)
    assert found[0].abs().max() > 0.01
    torch.testing.assert_close(mixed[2], prior(torch.zeros(1, 1), torch.eye(3)[:1]).stddev[0])
