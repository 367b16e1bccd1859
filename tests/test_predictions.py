"""Predictions of other tools: every published layout is read alike, and wrong files are refused."""

import dataclasses
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cli_helpers import run
from conftest import SCHEMA, simulate

import pyro_fcr
from pyro_fcr import Schema, SchemaError
from pyro_fcr.evaluation import Predicted, evaluate_predictions
from pyro_fcr.metrics import log_values

FILES = Path(__file__).parent / "predictions"
PAIR = ("drug2", "line1")
KNOWN = dataclasses.replace(SCHEMA, split_key="split")


def cells_of(adata, drug, line=PAIR[1]):
    return adata[(adata.obs["drug"] == drug) & (adata.obs["line"] == line)].copy()


@pytest.fixture(scope="module")
def screen():
    """Real cells of which a pair is held out, and as many other cells of that pair."""
    adata = simulate(1_600, 30, n_x=3, n_t=2)
    rows = (adata.obs["drug"] == PAIR[0]) & (adata.obs["line"] == PAIR[1])
    other = rows & (np.arange(adata.n_obs) % 2 == 0)
    real = adata[~other].copy()
    held = (real.obs["drug"] == PAIR[0]) & (real.obs["line"] == PAIR[1])
    real.obs["split"] = np.where(held, "ood", "train")
    return real, adata[other].copy()


def log_cells(adata):
    adata = adata.copy()
    adata.X = np.asarray(log_values(adata.X))
    return adata


def scores(found, method):
    rows = found.responses.query("method == @method")
    return rows.set_index(["scale", "metric"])["value"]


def test_cells_like_the_real_ones_reach_the_ceiling_and_other_ones_do_not(screen):
    real, like = screen
    wrong = cells_of(real, "drug1")
    wrong.obs["drug"] = PAIR[0]
    found = evaluate_predictions(real, KNOWN, {"like": like, "wrong": wrong}, n_draws=40)
    assert found.scenarios == ["unseen pair"]
    key = ("log1p_mean", "cosine_logfc")
    assert scores(found, "like")[key] > scores(found, "noise_ceiling")[key] - 0.05
    assert scores(found, "wrong")[key] < scores(found, "like")[key] - 0.2
    gains = found.headline.query(
        "metric == 'cosine_logfc' and scale == 'log1p_mean' and against == 'best on average'"
    ).set_index("method")
    assert gains.loc["like", "low"] > 0 > gains.loc["wrong", "high"]
    assert len(found.sentences) == 2
    assert found.sentences[0].startswith("like minus best baseline")


def scgen_layout(real, like):
    theirs = log_cells(like)
    theirs.obs["drug"] = "control"
    return Predicted(source=theirs, expression="log1p", treatment=PAIR[0])


def cpa_layout(real, like):
    theirs = like.copy()
    # X has what the tool was given: here real cells, which are no prediction.
    theirs.X = np.resize(cells_of(real, PAIR[0]).X, theirs.shape)
    theirs.obsm["CPA_pred"] = like.X
    return theirs


def cellflow_layout(real, like):
    theirs = log_cells(like)
    theirs.layers["X_recon"] = theirs.X
    theirs.X = np.zeros(theirs.shape, dtype=np.float32)
    return Predicted(source=theirs, expression="log1p")


def state_layout(real, like):
    """Simulated cells under their labels, real control cells among them, genes in another order."""
    theirs = ad.concat([cells_of(real, "control"), like])
    return theirs[:, ::-1].copy()


def state_hvg_layout(real, like):
    theirs = log_cells(like)
    theirs.obsm["X_hvg"] = pd.DataFrame(theirs.X, index=theirs.obs_names, columns=theirs.var_names)
    return Predicted(source=theirs[:, :3].copy(), at="obsm/X_hvg", expression="log1p")


LAYOUTS = [scgen_layout, cpa_layout, cellflow_layout, state_layout, state_hvg_layout]


@pytest.fixture(scope="module")
def plain(screen):
    real, like = screen
    return evaluate_predictions(real, KNOWN, {"theirs": like}, n_draws=10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prediction_scores_alike_in_every_layout(screen, plain, layout):
    real, like = screen
    found = evaluate_predictions(real, KNOWN, {"theirs": layout(real, like)}, n_draws=10)
    pd.testing.assert_series_equal(scores(found, "theirs"), scores(plain, "theirs"), atol=1e-5)


def test_means_per_condition_as_of_gears_are_judged_on_their_own_scale(screen, plain):
    real, like = screen
    mean = log_cells(like).X.mean(axis=0, keepdims=True)
    obs = pd.DataFrame({"drug": [f"{PAIR[0]}+control"], "line": [PAIR[1]]}, index=["0"])
    theirs = ad.AnnData(mean, obs=obs, var=real.var.copy())
    given = {"gears": Predicted(source=theirs, expression="log1p")}
    own = scores(evaluate_predictions(real, KNOWN, given, n_draws=10), "gears")
    assert set(own.index.get_level_values("scale")) == {"mean_log1p"}
    assert ("mean_log1p", "e_distance") not in own
    expected = scores(plain, "theirs").loc[own.index]
    pd.testing.assert_series_equal(own, expected, atol=1e-5)


def test_a_missing_covariate_of_one_level_is_that_level(screen):
    real, like = screen
    line, like = real[real.obs["line"] == PAIR[1]].copy(), like.copy()
    del like.obs["line"]
    found = evaluate_predictions(line, KNOWN, {"theirs": like}, n_draws=10)
    assert found.responses["context"].unique().tolist() == [PAIR[1]]


def shifted(adata, by):
    adata = log_cells(adata)
    adata.X = adata.X + by
    return adata


def test_what_a_method_gets_wrong_in_both_arms_cancels(screen):
    real, like = screen
    control = simulate(1_600, 30, n_x=3, n_t=2, seed=0)
    own = cells_of(control, "control")
    own.X = own.X + 1  # not the real cells
    bias = np.linspace(0.0, 2.0, like.n_vars)
    both = ad.concat([shifted(like, bias), shifted(own, bias)])
    clean = ad.concat([log_cells(like), log_cells(own)])
    given = {
        name: Predicted(source=cells, expression="log1p")
        for name, cells in {"biased": both, "clean": clean, "alone": shifted(like, bias)}.items()
    }
    found = evaluate_predictions(real, KNOWN, given, n_draws=10)
    key = ("mean_log1p", "mse_delta")
    assert scores(found, "biased")[key] == pytest.approx(scores(found, "clean")[key])
    assert scores(found, "alone")[key] > 2 * scores(found, "clean")[key]


def test_without_a_split_column_what_is_predicted_was_unseen(screen, plain):
    real, like = screen
    found = evaluate_predictions(real, SCHEMA, {"theirs": like}, n_draws=10)
    pd.testing.assert_series_equal(scores(found, "theirs"), scores(plain, "theirs"))


def test_methods_are_compared_on_the_pairs_that_all_predict(screen):
    real, like = screen
    more = cells_of(real, "drug1")
    more.X = more.X + 1
    both = ad.concat([like, more])
    found = evaluate_predictions(real, SCHEMA, {"one": like, "two": both}, n_draws=10)
    assert found.responses["treatment"].unique().tolist() == [PAIR[0]]
    assert found.left_out["'drug1' in line1"] == "not predicted by one"


def test_fewer_genes_are_said(screen):
    real, like = screen
    found = evaluate_predictions(real, KNOWN, {"theirs": like[:, 2:].copy()}, n_draws=10)
    assert found.facts["n_genes"] == 28
    assert "2 of 30" in found.left_out["genes (theirs)"]
    theirs = Predicted(source=log_cells(like)[:, 2:].copy(), expression="log1p")
    with pytest.raises(SchemaError, match="'theirs' has 28 of 30 genes on the scale log1p"):
        evaluate_predictions(real, KNOWN, {"theirs": theirs})


def with_obs(like, **columns):
    like = like.copy()
    for name, values in columns.items():
        like.obs[name] = values
    return like


def renamed(like):
    like = like.copy()
    like.obs = like.obs.rename(columns={"line": "Line"})
    return like


def with_x(like, values, **settings):
    like = like.copy()
    like.X = np.asarray(values, dtype=np.float32)
    return Predicted(source=like, **settings) if settings else like


def no_genes(like):
    like = like.copy()
    like.var_names = [f"ENSG{i}" for i in range(like.n_vars)]
    return like


def both_places(like):
    like = like.copy()
    like.obsm["CPA_pred"], like.layers["X_recon"] = like.X, like.X
    return like


WRONG = {
    "column": (lambda r, p: renamed(p), "'theirs' has no obs column 'line'.*Did you mean 'Line'"),
    "no label": (lambda r, p: with_obs(p, drug=None), "'theirs' has labels that cannot be read"),
    "misspelt": (lambda r, p: with_obs(p, drug="Drug-2"), "predicts 'Drug-2' in line1, of which"),
    "control only": (lambda r, p: with_obs(p, drug="control"), "control cells only, by obs column"),
    "real cells": (lambda r, p: cells_of(r, PAIR[0]), "has real cells of 'drug2' in line1 in 'X'"),
    "negative": (lambda r, p: with_x(p, p.X - 1), "negative values in 'X', which are no counts"),
    "not finite": (lambda r, p: with_x(p, p.X * np.nan), "values in 'X' that are not finite"),
    "log": (lambda r, p: log_cells(p), "'theirs' has values in 'X' that are not whole and at most"),
    "genes": (lambda r, p: no_genes(p), "'theirs' has no gene of the real cells"),
    "place": (lambda r, p: Predicted(source=p, at="layers/x"), "has no 'layers/x'; places: 'X'"),
    "two places": (lambda r, p: both_places(p), "has predictions at 'obsm/CPA_pred', 'layers/X"),
    "empty": (lambda r, p: p[:0].copy(), "'theirs' has no cells"),
    "format": (lambda r, p: "theirs.csv", "theirs.csv' ends in '.csv'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_in_a_line_that_names_it(screen, name):
    real, like = screen
    build, message = WRONG[name]
    with pytest.raises(SchemaError, match=message) as found:
        evaluate_predictions(real, KNOWN, {"theirs": build(real, like)})
    assert "\n" not in str(found.value)


def test_another_log_scale_is_warned_of(screen):
    real, like = screen
    per_million = np.log1p(100 * np.expm1(log_cells(like).X))
    theirs = with_x(like, per_million, expression="log1p")
    with pytest.warns(UserWarning, match="'theirs': predicted log1p values are"):
        evaluate_predictions(real, KNOWN, {"theirs": theirs}, n_draws=10)


def test_a_method_cannot_have_the_name_of_a_baseline(screen):
    real, like = screen
    with pytest.raises(ValueError, match="'ridge' has the name of a baseline"):
        evaluate_predictions(real, KNOWN, {"ridge": like})
    with pytest.raises(ValueError, match="predictions is empty"):
        evaluate_predictions(real, KNOWN, {})


@pytest.fixture(scope="module")
def gbm():
    """Real cells on the scale and genes of what scGen and scVI handed back."""
    adata = pyro_fcr.datasets.gbm_panobinostat()[::4].copy()
    adata.layers["log1p"] = log_values(adata.X)
    return adata[:, :60].copy()


def test_what_scgen_and_scvi_hand_back_is_scored_side_by_side(gbm):
    """Made by tests/benchmarks/peers.py with pertpy 1.0.3 and scvi-tools 1.4.2, cut."""
    schema = Schema(
        treatment_key="treatment", control="control", covariate_keys="patient", expression="log1p",
        layer="log1p",
    )  # fmt: skip
    given = {
        "scgen": Predicted(source=FILES / "scgen.h5ad", treatment="panobinostat"),
        "scvi": Predicted(source=FILES / "scvi.h5ad", expression="counts"),
    }
    found = evaluate_predictions(gbm, schema, given, n_draws=20)
    assert set(found.headline["method"]) == {"scgen", "scvi"}
    assert found.responses["context"].unique().tolist() == ["PW030"]
    own = {name: scores(found, name)["mean_log1p", "cosine_logfc"] for name in given}
    assert 0 < own["scgen"] < own["scvi"] < 1
    with pytest.raises(SchemaError, match="'scgen' has control cells only"):
        evaluate_predictions(gbm, schema, {"scgen": FILES / "scgen.h5ad"})


def test_the_command_line_scores_files(screen, tmp_path):
    real, like = screen
    real.write_h5ad(tmp_path / "real.h5ad")
    for name in ("a", "b"):
        like.write_h5ad(tmp_path / f"{name}.h5ad")
    asked = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]
    files = ["--predictions", tmp_path / "a.h5ad", "--predictions", f"second={tmp_path / 'b.h5ad'}"]
    cells = ["--cells", tmp_path / "real.h5ad", "--out", tmp_path / "out"]
    result = run("evaluate", *files, *cells, *asked, "--split-key", "split")
    assert result.exit_code == 0, result.output
    assert "second minus best baseline" in result.output
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "second minus the best baseline" in page
    assert "predicted cells of a<" in page
    table = pd.read_csv(tmp_path / "out/headline.csv")
    assert set(table["method"]) == {"a", "second"}
    lacking = run("evaluate", *files, "--out", tmp_path / "other")
    assert lacking.exit_code == 1
    assert "--predictions are held against real cells: give --cells" in lacking.output
