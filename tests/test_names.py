"""The user's own names beside the package's: in answers, tables and files."""

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from data_helpers import make_adata, make_schema

from pyro_fcr import FCR, Architecture, Output
from pyro_fcr.queries.columns import named_levels, put_beside, writable

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
SMALL = Architecture(decoder="additive", n_hidden=8, dropout=0.0)
OWN = ["support", "draw", "source_line", "source_drug", "extrapolated"]


def untrained(adata, **changes):
    return FCR(adata, make_schema(**changes), architecture=SMALL)


def controls(adata):
    return adata[adata.obs["drug"] == "control"].copy()


@pytest.mark.parametrize("store", [None, "answer.h5ad", "answer.zarr"])
def test_answers_leave_the_user_s_columns(store, tmp_path, caplog):
    adata = make_adata()
    for name in OWN:
        adata.obs[name] = f"own {name}"
    output = Output("draws", store=store and tmp_path / store)
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        answer = untrained(adata).counterfactual(
            controls(adata), treatment="A", n_draws=2, output=output
        )
    for name in OWN:
        assert (answer.obs[name] == f"own {name}").all()
        assert f"fcr_{name}" in answer.obs
        assert f"fcr_{name}" in caplog.text
    assert list(answer.obs["fcr_draw"][:2]) == [0, 1]
    assert set(answer.obs["fcr_source_drug"]) == {"control"}
    again = put_beside(answer.obs, {"support": 1.0})
    assert list(again)[-1] == "fcr_fcr_support"


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("key", ["cell/line", "a/b/c", "line ", "x=y", "z"])
def test_the_query_survives_a_file(key, suffix, tmp_path):
    adata = make_adata()
    adata.obs[key] = adata.obs.pop("line")
    answer = untrained(adata, covariate_keys=key).predict("A", covariates={key: "u"}, n_cells=4)
    assert json.loads(answer.uns["pyro_fcr"]["covariates"]) == {key: "u"}
    answer.obs = answer.obs[["drug"]]
    (answer.write_h5ad if suffix == ".h5ad" else answer.write_zarr)(tmp_path / f"answer{suffix}")
    again = (ad.read_h5ad if suffix == ".h5ad" else ad.read_zarr)(tmp_path / f"answer{suffix}")
    assert json.loads(str(again.uns["pyro_fcr"]["covariates"])) == {key: "u"}


def odd_columns(index):
    n = len(index)
    obs = pd.DataFrame({"fine": range(n), "text": ["a"] * n, "none": [None] * n}, index=index)
    obs["_index"] = "r"
    obs["mixed"] = pd.Series([1, "x"] * (n // 2), index=index, dtype=object)
    obs["lists"] = [[1]] * n
    obs["when"] = pd.Timestamp("2020-01-01")
    obs["a/b"] = 1
    obs[7] = 1
    obs["words"] = pd.array(["w", None] * (n // 2), dtype="string")
    return pd.concat([obs, pd.DataFrame({"twice": 1}, index=index)], axis=1)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_columns_that_no_file_holds_are_left_out_with_a_word(suffix, tmp_path, caplog):
    adata = make_adata()
    fcr, source = untrained(adata), controls(adata)
    source.obs = pd.concat([source.obs, odd_columns(source.obs_names)], axis=1)
    source.obs.index.name = "fine"
    output = Output("mean", store=tmp_path / f"answer{suffix}")
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        answer = fcr.counterfactual(source, treatment="A", output=output)
    assert {"drug", "line", "fine", "text", "words", "support"} <= set(answer.obs)
    lost = ["'_index'", "'mixed'", "'lists'", "'when'", "'a/b'", "7"]
    assert all(name in caplog.text for name in lost)
    assert answer.obs["words"].isna().sum() == source.n_obs // 2
    assert not {"_index", "mixed", "lists", "when", "a/b", 7} & set(answer.obs)


def test_labels_are_written_as_text_where_they_cannot_be_as_they_are():
    obs = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 2), "other": 1}, index=["a", "b"])
    assert list(writable(obs, labels=["day"])["day"]) == ["2020-01-01"] * 2
    assert list(writable(obs)) == ["other"]
    whole = obs[["other"]]
    assert writable(whole) is whole


def test_repeated_columns_are_written_once(caplog):
    obs = pd.DataFrame([[1, 2]], columns=["a", "a"], index=["c"])
    with caplog.at_level(logging.WARNING, logger="pyro_fcr"):
        assert writable(obs)["a"].tolist() == [1]
    assert "'a' cannot be written" in caplog.text


def test_tables_keep_covariates_of_their_own_names():
    assert named_levels({"gene": "wt", "line": "u"}, ["gene"]) == {"obs_gene": "wt", "line": "u"}
    assert named_levels({"context": "u"}, ["context"]) == {"context": "u"}
    adata = make_adata()
    adata.obs["gene"] = adata.obs.pop("line")
    adata.obs["dose"] = np.where(adata.obs["drug"] == "control", 0, 1.0)
    fcr = untrained(adata, covariate_keys="gene", dose_key="dose")
    curve = fcr.dose_response("A", doses=[1], n_draws=2)
    assert sorted(set(curve["obs_gene"])) == ["u", "v"]
    assert sorted(set(curve["gene"])) == ["g0", "g1", "g2", "g3", "g4"]
    effects = fcr.effects(n_cells=4).to_frame()
    assert sorted(set(effects["obs_gene"])) == ["u", "v"]


def test_a_layer_called_as_one_of_the_answer_s():
    adata = make_adata()
    adata.layers["sd"] = adata.X.copy()
    answer = untrained(adata, layer="sd").counterfactual(
        controls(adata), treatment="A", output="mean", n_draws=3
    )
    assert not np.array_equal(answer.layers["sd"], answer.X)
