"""Covariate sites of their own, treatments by their features, cells known by expression alone."""

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from data_helpers import assert_batches_equal, make_adata, make_schema, only

from pyro_fcr.data import Registry, Schema, register, split_cells
from pyro_fcr.data.treatments import Treatment, dose_strata

SITES = {"x": "line", "d": "donor", "b": ["lane", "kit"]}
TABLE = {"A": [1.0, 0.0, -2.0], "B": [0.5, 4.0, 1.0], "New": [0.1, 3.0, 0.0]}
ROWS = np.array([7, 0, 3, 3, 47])


def _annotated():
    """Donors, lanes and kits that are crossed with everything else at random."""
    adata = make_adata()
    rng = np.random.default_rng(1)
    for column, levels in (("donor", ["p", "q", "r"]), ("lane", ["1", "2"]), ("kit", ["k", "l"])):
        adata.obs[column] = rng.choice(levels, size=len(adata))
    return adata


def _dosed():
    """`A` at 0.5 and 1, `B` at 3 and 30."""
    adata = make_adata()
    doses = {"control": "0", "A": "0.5", "B": "3", "A+B": "1+30"}
    adata.obs["dose"] = adata.obs["drug"].map(doses)
    return adata


def _features(*agents):
    return np.array([TABLE[agent] for agent in agents], dtype=np.float32).sum(axis=0)


@pytest.mark.parametrize("keys", ["line", ["line"], {"x": "line"}, {"x": ["line"]}])
def test_one_site_is_x(keys):
    schema = make_schema(covariate_keys=keys)
    assert schema == make_schema()
    assert schema.sites == {"x": ("line",)}
    assert schema.covariate_sites == ()


def test_several_columns_are_one_joint_site():
    assert make_schema(covariate_keys=("line", "donor")).sites == {"x": ("line", "donor")}


def test_a_mapping_makes_sites():
    schema = make_schema(covariate_keys=SITES)
    assert schema.covariate_keys == ("line", "donor", "lane", "kit")
    assert schema.sites == {"x": ("line",), "d": ("donor",), "b": ("lane", "kit")}
    assert replace(schema, layer="raw").sites == schema.sites
    assert replace(schema, covariate_keys={"d": "donor"}).sites == {"d": ("donor",)}
    assert schema != make_schema(covariate_keys=schema.covariate_keys)
    assert hash(schema) == hash(make_schema(covariate_keys=SITES))


def test_each_site_has_its_own_rows():
    adata = _annotated()
    registry = register(adata, make_schema(covariate_keys=SITES))[0]
    cells = registry.encode(adata)
    assert registry.widths == {"x": 2, "d": 3, "b": 4, "t": 2, "y": 5}
    assert list(cells.levels) == list(cells.codes) == ["x", "d", "b", "t"]
    batch, obs = cells.batch(ROWS), adata.obs.iloc[ROWS]
    assert batch.values.keys() == {"x", "d", "b", "t", "y", "library"}
    for site, keys in registry.schema.sites.items():
        columns = [(key, level) for key in keys for level in registry.covariates[key]]
        for (key, level), column in zip(columns, batch.values[site].T, strict=True):
            np.testing.assert_array_equal(column, obs[key] == level)
        np.testing.assert_array_equal(cells.levels[site][batch.codes[site]], batch.values[site])
    assert batch.n_levels == {"x": 2, "d": 3, "b": 4, "t": 4}
    assert batch.stratum(("x", "d"))[1] == 6


def test_sites_are_the_columns_of_the_joint_site():
    adata = _annotated()
    apart = register(adata, make_schema(covariate_keys=SITES))[0]
    joint = register(adata, make_schema(covariate_keys=["line", "donor", "lane", "kit"]))[0]
    sites, expected = apart.encode_obs(adata.obs), joint.encode_obs(adata.obs)
    assert sites.keys() == {"x", "d", "b", "t"}
    together = torch.cat([sites["x"], sites["d"], sites["b"]], dim=1)
    torch.testing.assert_close(together, expected["x"], rtol=0, atol=0)
    torch.testing.assert_close(sites["t"], expected["t"], rtol=0, atol=0)
    assert apart.conditions == joint.conditions
    assert apart.n_prior_conditions == joint.n_prior_conditions
    for mine, theirs in zip(
        *(vars(split_cells(adata.obs, each.schema)).values() for each in (apart, joint)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_x_need_not_be_a_site():
    adata = _annotated()
    registry = register(adata, make_schema(covariate_keys={"d": "donor"}))[0]
    assert registry.widths == {"d": 3, "t": 2, "y": 5}
    assert registry.encode(adata).batch(ROWS).codes.keys() == {"d", "t"}


def test_a_query_has_a_row_for_each_site():
    registry = register(_annotated(), make_schema(covariate_keys=SITES))[0]
    levels = {"kit": "l", "lane": "1", "donor": "q", "line": "v"}
    rows = registry.encode_covariates(levels)
    expected = {"x": [0, 1], "d": [0, 1, 0], "b": [1, 0, 0, 1]}
    assert {site: row.tolist() for site, row in rows.items()} == expected
    assert {row.dtype for row in rows.values()} == {np.dtype(np.float32)}


def test_extrapolation_is_about_all_covariates():
    adata = _annotated()
    gone = (adata.obs["drug"] == "A") & (adata.obs["line"] == "u") & (adata.obs["donor"] == "p")
    keys = {"x": "line", "d": "donor"}
    registry = register(adata[~gone].copy(), make_schema(covariate_keys=keys))[0]
    assert registry.is_extrapolated("A", {"line": "u", "donor": "p"})
    assert not registry.is_extrapolated("A", {"line": "v", "donor": "p"})
    assert not registry.is_extrapolated("control", {"line": "u", "donor": "p"})


@pytest.mark.parametrize(
    "changes",
    [
        {"covariate_keys": SITES},
        {"treatment_features": TABLE},
        {"covariate_keys": SITES, "treatment_features": TABLE},
    ],
)
def test_json_round_trip(changes):
    adata = _annotated()
    registry = register(adata, make_schema(**changes))[0]
    plain = registry.to_json_dict()
    text = json.dumps(plain, allow_nan=False, sort_keys=False)
    assert json.loads(text) == plain
    again = Registry.from_json_dict(json.loads(text))
    assert again == registry
    assert again.schema.sites == registry.schema.sites
    assert_batches_equal(again.encode(adata).batch(ROWS), registry.encode(adata).batch(ROWS))


def test_json_of_the_first_format_is_read():
    registry = register(make_adata(), make_schema())[0]
    old = {**registry.to_json_dict(), "format": 1}
    schema = {"treatment_key": "drug", "control": "control", "covariate_keys": ["line"]}
    schema |= {"dose_key": None, "layer": None, "split_key": None, "expression": "counts"}
    old["schema"] = {**schema, "separator": "+", "min_cells": 2}
    again = Registry.from_json_dict(json.loads(json.dumps(old)))
    assert again == registry
    assert again.schema.sites == {"x": ("line",)}
    assert again.schema.treatment_features is None


def _frame(table=TABLE):
    return pd.DataFrame.from_dict(table, orient="index", columns=["f", "g", "h"])


@pytest.mark.parametrize(
    "table",
    [
        dict(reversed(TABLE.items())),
        {agent: tuple(row) for agent, row in TABLE.items()},
        {f" {agent}": np.array(row) for agent, row in TABLE.items()},
        _frame(),
        _frame().iloc[::-1].astype(object),
        tuple(TABLE.items()),
    ],
)
def test_any_table_of_features_becomes_plain(table):
    schema = make_schema(treatment_features=table)
    assert schema.treatment_features == tuple((each, tuple(TABLE[each])) for each in sorted(TABLE))
    assert schema == make_schema(treatment_features=TABLE)
    assert hash(schema) == hash(make_schema(treatment_features=TABLE))
    assert replace(schema, layer="raw").treatment_features == schema.treatment_features
    assert "treatment_features" not in repr(schema)


def test_agents_of_a_table_need_not_be_text():
    adata = make_adata(treatments=("0", "1", "2"))
    schema = make_schema(control="0", treatment_features=pd.DataFrame({"f": {1: 7.0, 2: 9.0}}))
    assert register(adata, schema)[0].encode_treatment("2").tolist() == [9]


def test_t_is_the_sum_of_features():
    adata = make_adata()
    registry = register(adata, make_schema(treatment_features=TABLE))[0]
    assert registry.agents == ("A", "B")
    assert registry.widths == {"x": 2, "t": 3, "y": 5}
    expected = {"control": np.zeros(3), "A": _features("A"), "B": _features("B")}
    expected["A+B"] = _features("A", "B")
    batch = registry.encode(adata).batch(np.arange(len(adata)))
    assert batch.values["t"].dtype == torch.float32
    rows = np.array([expected[drug] for drug in adata.obs["drug"]])
    np.testing.assert_array_equal(batch.values["t"], rows)
    assert batch.n_levels["t"] == 4
    for label, row in expected.items():
        np.testing.assert_array_equal(registry.encode_treatment(label), row)
        assert registry.encode_treatment(label).dtype == np.float32


def test_one_hot_features_are_the_default():
    adata = _dosed()
    plain = register(adata, make_schema(dose_key="dose"))[0]
    one_hot = make_schema(dose_key="dose", treatment_features={"A": [1, 0], "B": [0, 1]})
    registry = register(adata, one_hot)[0]
    assert replace(registry, schema=plain.schema) == plain
    assert_batches_equal(registry.encode(adata).batch(ROWS), plain.encode(adata).batch(ROWS))


def test_features_are_multiplied_by_the_scaled_dose():
    registry = register(_dosed(), make_schema(dose_key="dose", treatment_features=TABLE))[0]
    a, b = np.array(TABLE["A"]), np.array(TABLE["B"])
    low_a, low_b = np.log(2) / np.log(3), np.log(2) / np.log(11)
    np.testing.assert_allclose(registry.encode_treatment("A", 0.5), low_a * a, rtol=1e-6)
    np.testing.assert_allclose(registry.encode_treatment("B+A", "3+1"), low_b * b + a, rtol=1e-6)
    assert registry.encode_treatment("control").tolist() == [0, 0, 0]


def test_equal_features_are_one_level():
    adata = make_adata(treatments=("control", "A", "B"))
    table = {"A": [1.0, 2.0], "B": [1.0, 2.0]}
    cells = register(adata, make_schema(treatment_features=table))[1]
    assert cells.levels["t"].tolist() == [[0, 0], [1, 2]]
    np.testing.assert_array_equal(cells.codes["t"], adata.obs["drug"] != "control")


def test_an_agent_without_cells_may_be_asked_about():
    registry = register(make_adata(), make_schema(treatment_features=TABLE))[0]
    asked = {"New": _features("New"), "New+A": _features("A", "New")}
    for label, row in asked.items():
        np.testing.assert_array_equal(registry.encode_treatment(label), row)
        assert registry.is_extrapolated(label, {"line": "u"})
    assert registry.canonical("New+A") == "A+New"
    assert not registry.is_extrapolated("A", {"line": "u"})
    adata = make_adata()
    adata.obs["drug"] = adata.obs["drug"].replace({"A+B": "New"})
    new = (adata.obs["drug"] == "New").to_numpy()
    for rows in (registry.encode_obs(adata.obs)["t"], registry.encode(adata).site("t")):
        assert (rows.numpy()[new] == _features("New")).all()
        assert not (rows.numpy()[~new] == _features("New")).all(axis=1).any()


def test_an_agent_may_be_left_out_of_training():
    adata = make_adata(treatments=("control", "A", "B", "New"))
    adata.obs["split"] = np.where(adata.obs["drug"] == "New", "ood", "train")
    schema = make_schema(split_key="split", treatment_features=TABLE)
    registry = register(adata, schema)[0]
    assert registry.agents == ("A", "B")
    assert registry.treatments == ("control", "A", "B")
    assert registry.is_extrapolated("New", {"line": "u"})
    new = (adata.obs["drug"] == "New").to_numpy()
    assert (registry.encode(adata).site("t").numpy()[new] == _features("New")).all()


@pytest.mark.parametrize(
    ("label", "dose", "expected"),
    [
        ("New", None, _features("New")),
        ("New", np.nan, _features("New")),
        ("A+New", "1+", _features("A", "New")),
        ("New+A", (None, 1), _features("A", "New")),
    ],
)
def test_a_never_trained_agent_counts_one_without_a_dose(label, dose, expected):
    registry = register(_dosed(), make_schema(dose_key="dose", treatment_features=TABLE))[0]
    np.testing.assert_allclose(registry.encode_treatment(label, dose), expected, rtol=1e-6)
    assert registry.is_extrapolated(label, {"line": "u"}, dose=dose)


@pytest.mark.parametrize(("label", "filled"), [("New", None), ("B+New", "9+"), ("New+Newer", "+")])
def test_columns_of_a_query_leave_its_dose_empty(label, filled):
    adata = _dosed()
    adata.obs.loc[adata.obs["drug"] == "B", "dose"] = "9"
    adata.obs.loc[adata.obs["drug"] == "A+B", "dose"] = "1+9"
    table = {**TABLE, "Newer": [1, 2, 3]}
    registry = register(adata, make_schema(dose_key="dose", treatment_features=table))[0]
    columns = registry.columns_of(label)
    assert columns["drug"] == label
    if filled is None:
        assert np.isnan(columns["dose"])
    else:
        assert columns["dose"].replace("9.0", "9") == filled
    obs = adata.obs.iloc[:3].assign(**columns)
    row = registry.encode_treatment(label)
    np.testing.assert_array_equal(registry.encode_obs(obs)["t"], np.stack([row] * 3))


def test_expression_alone_gives_the_same_cells():
    adata = make_adata()
    registry = register(adata, make_schema())[0]
    bare = ad.AnnData(adata.X[:, ::-1].copy(), var=adata.var.iloc[::-1])
    bare.obs_names = adata.obs_names
    cells, expected = registry.encode_expression(bare), registry.encode(adata)
    assert cells.levels == cells.codes == {}
    assert cells.genes == expected.genes
    assert cells.obs_names.tolist() == expected.obs_names.tolist()
    batch, known = cells.batch(ROWS), expected.batch(ROWS)
    assert batch.values.keys() == {"y", "library"}
    assert (batch.codes, batch.n_levels, batch.n_total) == ({}, {}, len(adata))
    assert_batches_equal(batch, replace(known.without("x", "t"), codes={}, n_levels={}))


def test_expression_alone_looks_at_no_column():
    adata = make_adata()
    registry = register(_dosed(), make_schema(dose_key="dose"))[0]
    adata.obs = pd.DataFrame({"drug": [np.nan, "never"] * 24}, index=adata.obs_names)
    np.testing.assert_array_equal(
        registry.encode_expression(adata).batch(ROWS).values["y"], adata.X[ROWS]
    )


def test_expression_alone_is_read_from_a_file(tmp_path):
    adata = make_adata()
    adata.X = np.log1p(adata.X / 3)
    registry = register(adata, make_schema(expression="log1p"))[0]
    path = tmp_path / "cells.h5ad"
    ad.AnnData(adata.X, var=adata.var).write_h5ad(path)
    batch = registry.encode_expression(str(path)).batch(ROWS)
    assert batch.values["library"].tolist() == [[1.0]] * len(ROWS)
    np.testing.assert_allclose(batch.values["y"], adata.X[ROWS], rtol=1e-6)


def test_extra_genes_of_expression_alone_are_one_warning():
    registry = register(make_adata(), make_schema())[0]
    with pytest.warns(UserWarning, match="2 genes that were not registered") as caught:
        cells = registry.encode_expression(make_adata(n_genes=7))
    assert only(caught, "were not registered").filename == __file__
    assert cells.n_genes == 5


def test_all_three_together():
    adata = _annotated()
    schema = Schema(
        treatment_key="drug",
        control=None,
        covariate_keys={"d": "donor"},
        treatment_features={"A": [1.0], "B": [2.0], "control": [5.0]},
    )
    with pytest.warns(UserWarning, match="'control' looks like a label of untreated cells"):
        registry = register(adata, schema)[0]
    assert registry.widths == {"d": 3, "t": 1, "y": 5}
    assert registry.encode_treatment("control").tolist() == [5]
    assert registry.encode(adata).levels["t"].tolist() == [[1], [2], [3], [5]]
    assert registry.encode_expression(adata).batch(ROWS).values.keys() == {"y", "library"}


def test_many_doses_of_an_agent_are_binned_into_strata():
    adata = make_adata(treatments=("control", "A", "B"), n_each=40)
    rng = np.random.default_rng(0)
    drug = adata.obs["drug"].to_numpy()
    dose = np.where(drug == "A", rng.lognormal(size=adata.n_obs), np.where(drug == "B", 2.0, 0.0))
    adata.obs["dose"] = dose
    schema = make_schema(dose_key="dose")
    cells = register(adata, schema)[1]
    batch = cells.batch(np.arange(adata.n_obs))
    assert len(cells.levels["t"]) == 2 + (drug == "A").sum()
    assert cells.n_levels["t"] == 2 + 8
    codes = batch.codes["t"].numpy()
    by_dose = pd.Series(dose[drug == "A"]).groupby(codes[drug == "A"]).agg(["min", "max", "size"])
    assert by_dose["size"].tolist() == [10] * 8
    ordered = by_dose.sort_values("min")
    assert (ordered["max"].to_numpy()[:-1] < ordered["min"].to_numpy()[1:]).all()
    assert len(set(codes[drug == "B"])) == len(set(codes[drug == "control"])) == 1
    np.testing.assert_allclose(batch["t"][drug == "A", 0].max(), 1.0)  # values are not binned
    split = split_cells(adata.obs, schema, heldout_fraction=0.2)
    assert (drug[split.heldout] == "A").sum() == 16


def test_few_doses_are_strata_of_their_own():
    treatments = [Treatment(("A",), (float(d),)) for d in range(1, 9)]
    assert dose_strata(treatments).tolist() == list(range(8))
    pair = Treatment(("A", "B"), (1.0, 2.0))
    assert dose_strata([*treatments, pair, Treatment(())]).max() == 9
