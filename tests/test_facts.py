"""Columns that follow from a cell's condition go with it when a query changes it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_fcr import FCR, Architecture, Schema
from pyro_fcr.data import Registry, register

SCHEMA = Schema(treatment_key="drug", control="none", covariate_keys="line", min_cells=1)
N = 20


@pytest.fixture
def adata():
    """Two drugs in three lines, one pair missing, with columns of every kind."""
    pairs = [(drug, line) for drug in ("none", "a", "b") for line in "uvw"]
    pairs.remove(("b", "w"))
    obs = pd.DataFrame([pair for pair in pairs for _ in range(N)], columns=["drug", "line"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["is_control"] = obs["drug"] == "none"
    obs["target"] = pd.Categorical(obs["drug"].map({"none": "-", "a": "MEK", "b": "HDAC"}))
    obs["tissue"] = obs["line"].map({"u": "lung", "v": "skin", "w": "skin"})
    obs["condition"] = obs["drug"] + "_" + obs["line"]
    obs["arm"] = obs["drug"].map({"none": 0, "a": 1, "b": 2}) + 10 * (obs["line"] == "u")
    obs["n"] = np.arange(len(obs))
    obs["same"] = "x"
    counts = np.random.default_rng(0).poisson(3.0, (len(obs), 8))
    return ad.AnnData(counts.astype(float), obs=obs)


@pytest.fixture
def fcr(adata):
    small = Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8, decoder="additive", dropout=0.0)
    return FCR(adata, SCHEMA, architecture=small)


def test_what_follows_from_the_condition_is_found(adata):
    registry, _ = register(adata, SCHEMA)
    names = {"is_control", "target", "tissue", "condition", "arm"}
    assert all(set(each.facts) == names for each in registry.conditions)
    assert Registry.from_json_dict(registry.to_json_dict()) == registry
    few = adata[::N].copy()  # one cell per condition: everything would follow
    assert not register(few, SCHEMA)[0].conditions[0].facts


def test_a_counterfactual_of_controls_is_no_control(adata, fcr):
    source = adata[((adata.obs["drug"] == "none") & (adata.obs["line"] == "u")).to_numpy()].copy()
    obs = fcr.counterfactual(source, treatment="a").obs
    assert not obs["is_control"].any()
    assert obs["is_control"].dtype == bool
    assert set(obs["target"]) == {"MEK"}
    assert isinstance(obs["target"].dtype, pd.CategoricalDtype)
    assert set(obs["condition"]) == {"a_u"}
    assert set(obs["arm"]) == {11}
    assert set(obs["tissue"]) == {"lung"}
    assert obs["n"].tolist() == source.obs["n"].tolist()
    back = fcr.counterfactual(adata, treatment="none").obs
    assert back["is_control"].all()
    assert (back["n"] == adata.obs["n"]).all()


def test_what_an_unseen_condition_does_not_settle_is_left_empty(adata, fcr):
    source = adata[((adata.obs["drug"] == "none") & (adata.obs["line"] == "w")).to_numpy()].copy()
    obs = fcr.counterfactual(source, treatment="b").obs
    assert set(obs["target"]) == {"HDAC"}
    assert not obs["is_control"].any()
    assert obs["condition"].isna().all()
    assert obs["arm"].isna().all()
    moved = fcr.counterfactual(source, covariates={"line": "u"}).obs
    assert set(moved["tissue"]) == {"lung"}
    assert moved["is_control"].all()


def test_answers_with_empty_columns_can_be_written_and_read(adata, fcr, tmp_path):
    source = adata[((adata.obs["drug"] == "none") & (adata.obs["line"] == "w")).to_numpy()].copy()
    answer = fcr.counterfactual(source, treatment="b")
    answer.write_h5ad(tmp_path / "b.h5ad")
    assert ad.read_h5ad(tmp_path / "b.h5ad").obs["arm"].isna().all()


def test_cells_that_stay_keep_what_they_have(adata, fcr):
    own = adata[(adata.obs["drug"] == "a").to_numpy()].copy()
    own.obs["target"] = "something of my own"
    obs = fcr.counterfactual(own, treatment="a").obs
    assert set(obs["target"]) == {"something of my own"}
