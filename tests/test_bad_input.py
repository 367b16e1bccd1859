"""Every bad input is refused before training; the message names the culprit and the mend."""

import re
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from data_helpers import make_adata, make_schema, only
from scipy import sparse

from pyro_fcr.data import Registry, Schema, SchemaError, read_cells, register, split_cells


def _says(error, *parts):
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def _set(adata, column, cell, value):
    adata.obs[column] = adata.obs[column].astype(object)
    adata.obs.loc[cell, column] = value


def _first_with(adata, drug):
    return adata.obs_names[adata.obs["drug"] == drug][0]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"covariate_keys": "drug"}, ["'drug'", "treatment_key, covariate_keys", "own column"]),
        ({"covariate_keys": ["line", "line"]}, ["'line'", "twice"]),
        ({"dose_key": "line"}, ["'line'", "dose_key, covariate_keys"]),
        ({"split_key": "drug"}, ["'drug'", "treatment_key, split_key"]),
        ({"covariate_keys": ()}, ["covariate_keys is empty", "adata.obs['context'] = 'all'"]),
        ({"expression": "log"}, ["'log'", "counts or log1p"]),
        ({"separator": " "}, ["separator", "None"]),
        ({"min_cells": 0}, ["min_cells is 0", "1 or more"]),
    ],
)
def test_contradictory_schema(changes, parts):
    with pytest.raises(SchemaError) as error:
        make_schema(**changes)
    _says(error, *parts)


@pytest.mark.parametrize(
    ("sites", "parts"),
    [
        ({}, ["covariate_keys is empty", "at least one obs column"]),
        ({"d": []}, ["site 'd' has no obs column", "leave the site out"]),
        ({"x": "line", "d": ["donor", ""]}, ["site 'd' has an empty obs column", "name them"]),
        ({"t": "line"}, ["'t'", "'t', 'y', 'library'", "call the site otherwise"]),
        ({"x": "line", "y": "donor"}, ["'y' cannot be a site of its own"]),
        ({"library": "line"}, ["'library' cannot be a site of its own"]),
        ({"cell line": "line"}, ["'cell line' cannot name a site", "Python identifier"]),
        ({"1": "line"}, ["'1' cannot name a site"]),
        ({1: "line"}, ["1 cannot name a site"]),
        ({"lambda": "line"}, ["'lambda' cannot name a site"]),
        (
            {"x": "line", "d": ["donor", "line"]},
            ["'line' is given twice", "covariate_keys['x'], covariate_keys['d']", "own column"],
        ),
        ({"x": "line", "d": "drug"}, ["'drug'", "treatment_key, covariate_keys['d']"]),
    ],
)
def test_bad_sites(sites, parts):
    with pytest.raises(SchemaError) as error:
        make_schema(covariate_keys=sites)
    _says(error, *parts)


def test_sites_that_do_not_fit_the_columns():
    schema = make_schema(covariate_keys={"x": "line", "d": "donor"})
    with pytest.raises(SchemaError) as error:
        replace(schema, covariate_keys="line")
    _says(error, "sites of 2 columns", "covariate_keys has 1: 'line'", "as a mapping")


def test_missing_column_of_a_site():
    with pytest.raises(SchemaError) as error:
        register(make_adata(), make_schema(covariate_keys={"x": "line", "d": "donor"}))
    _says(error, "'donor' is not a column", "columns: 'drug', 'line'")


FEATURES = {"A": [1.0, 0.0], "B": [0.5, 2.0], "New": [3.0, 3.0]}


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({}, ["treatment_features is empty", "pass None for one-hot"]),
        ({"A": [], "B": []}, ["treatment_features is empty (2 agents"]),
        (pd.DataFrame(index=["A", "B"]), ["treatment_features is empty"]),
        ({**FEATURES, "B": [1.0]}, ["different lengths: 'B: 1'", "'A' has 2", "same features"]),
        ({**FEATURES, "B": [1, np.nan]}, ["agent 'B'", "feature 1", "is nan", "fill it in"]),
        ({**FEATURES, "B": [-np.inf, 1]}, ["agent 'B'", "feature 0", "is -inf", "finite"]),
        ({**FEATURES, "B": [1, 1e39]}, ["agent 'B'", "is 1e+39", "float32"]),
        (pd.DataFrame({"f": {"A": 1.0, "B": None}}), ["agent 'B'", "feature 0", "is nan"]),
        ({**FEATURES, "B": ["high", 1]}, ["agent 'B'", "'high'", "sequence of numbers"]),
        ({**FEATURES, "B": 1.0}, ["agent 'B'", "found float '1.0'", "sequence of numbers"]),
        ({**FEATURES, "B": "10"}, ["agent 'B'", "found str '10'", "sequence of numbers"]),
        ({**FEATURES, "control": [0, 0]}, ["the control 'control'", "leave it out"]),
        (pd.DataFrame([[1], [2]], index=["A", "A"]), ["two rows of agent 'A'", "all but one"]),
        ({**FEATURES, "A ": [2, 2]}, ["two rows of agent 'A'"]),
        (np.eye(2), ["is ndarray", "pd.DataFrame(array, index=agents)"]),
    ],
)
def test_bad_features(table, parts):
    with pytest.raises(SchemaError) as error:
        make_schema(treatment_features=table)
    _says(error, *parts)


def test_agents_without_features():
    table = {"b": [1.0], "C": [2.0]}
    with pytest.raises(SchemaError) as error:
        register(make_adata(), make_schema(treatment_features=table))
    _says(error, "'drug'", "'A', 'B' without a row", "rows of 'C', 'b'", "Add rows to the table")
    with pytest.raises(SchemaError, match="'B' without a row .* Did you mean 'b'"):
        register(make_adata(), make_schema(treatment_features={**table, "A": [1.0]}))


def test_features_that_are_those_of_control():
    table = {**FEATURES, "B": [0, 0]}
    with pytest.raises(SchemaError) as error:
        register(make_adata(), make_schema(treatment_features=table))
    _says(error, "'drug'", "'B' with zeros only", "control 'control'", "correct the table")
    treated = make_adata(treatments=("A", "B"))
    register(treated, make_schema(control=None, treatment_features=table))
    register(make_adata(), make_schema(treatment_features={**FEATURES, "New": [0, 0]}))


def test_query_of_an_agent_without_features():
    registry = register(make_adata(), make_schema(treatment_features=FEATURES))[0]
    adata = make_adata()
    _set(adata, "drug", "cell9", "A+new")
    for attempt in (
        lambda: registry.encode_treatment("A+new"),
        lambda: registry.canonical("new"),
        lambda: registry.is_extrapolated("new", {"line": "u"}),
        lambda: registry.encode_obs(adata.obs),
        lambda: registry.encode(adata),
    ):
        with pytest.raises(SchemaError) as error:
            attempt()
        _says(error, "'drug' of", "'new' has no row in treatment_features", "mean 'New'?")
        _says(error, "known: 'A', 'B', 'New', 'control'", "with a table that has it")
    assert "cell 'cell9'" in str(error.value)


@pytest.mark.parametrize(("label", "dose"), [("New", 2), ("A+New", 2), ("A+New", "1+2")])
def test_dose_of_an_agent_that_was_never_trained(label, dose):
    adata, schema = _dosed()
    registry = register(adata, replace(schema, treatment_features=FEATURES))[0]
    _set(adata, "drug", "cell9", label)
    _set(adata, "dose", "cell9", dose)
    for where, attempt in (
        ("the query", lambda: registry.encode_treatment(label, dose)),
        ("the query", lambda: registry.is_extrapolated(label, {"line": "u"}, dose=dose)),
        ("cell 'cell9'", lambda: registry.encode_obs(adata.obs)),
        ("cell 'cell9'", lambda: registry.encode(adata)),
    ):
        with pytest.raises(SchemaError) as error:
            attempt()
        _says(error, f"'dose' of {where}", "'New' has the dose 2", "have no scale")
        _says(error, "leave its dose empty", "train with it")


def test_dosed_agent_outside_training_has_no_scale():
    adata = make_adata(treatments=("control", "A", "B", "New"))
    adata.obs["dose"] = np.where(adata.obs["drug"] == "control", 0, 2)
    adata.obs["split"] = np.where(adata.obs["drug"] == "New", "ood", "train")
    schema = make_schema(split_key="split", dose_key="dose", treatment_features=FEATURES)
    with pytest.raises(SchemaError) as error:
        register(adata, schema)
    _says(error, "'drug': 'New' only in cells", "left out", "no scale of doses can be learnt")
    register(adata, replace(schema, dose_key=None))


@pytest.mark.parametrize("role", ["treatment_key", "covariate_keys", "dose_key", "split_key"])
def test_missing_column(role):
    with pytest.raises(SchemaError) as error:
        register(make_adata(), make_schema(**{role: "lines"}))
    _says(error, role, "'lines'", "columns: 'drug', 'line'", "Did you mean 'line'?")


def test_repeated_column():
    adata = make_adata()
    adata.obs = pd.concat([adata.obs, adata.obs[["line"]]], axis=1)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "'line'", "2 columns of this name", "drop all but one")


@pytest.mark.parametrize("nothing", [np.nan, None, "", "  ", "nan", "<NA>"])
@pytest.mark.parametrize("column", ["drug", "line"])
@pytest.mark.parametrize("dtype", [object, "category"])
def test_missing_label(column, nothing, dtype):
    adata = make_adata()
    _set(adata, column, "cell3", nothing)
    adata.obs[column] = adata.obs[column].astype(dtype)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, f"'{column}'", "1 of 48 cells", "'cell3'", f"adata.obs['{column}'].notna()")


def test_no_label_at_all():
    adata = make_adata()
    adata.obs["line"] = np.nan
    with pytest.raises(SchemaError, match="'line': 48 of 48 cells"):
        register(adata, make_schema())


def test_control_is_not_there():
    with pytest.raises(SchemaError) as error:
        register(make_adata(), make_schema(control="Ctrl"))
    _says(error, "'Ctrl'", "'drug'", "'A', 'A+B', 'B'", "mean 'control'?", "control=None")


def test_control_outside_training_only():
    adata = make_adata()
    adata.obs["split"] = np.where(adata.obs["drug"] == "control", "test", "train")
    with pytest.raises(SchemaError, match="'control' is not a label of any training cell"):
        register(adata, make_schema(split_key="split"))


@pytest.mark.parametrize(("control", "label"), [("control", "control"), (None, "A")])
def test_nothing_to_compare(control, label):
    adata = make_adata()
    adata = adata[adata.obs["drug"] == label].copy()
    with pytest.raises(SchemaError, match=f"'drug' has one label only, '{label}'"):
        register(adata, make_schema(control=control))


def test_level_without_control_is_a_warning():
    adata = make_adata(lines=("u", "v", "w"))
    keep = (adata.obs["drug"] != "control") | (adata.obs["line"] == "w")
    adata = adata[keep].copy()
    with pytest.warns(UserWarning, match="'line': 'u', 'v' without control cells") as caught:
        register(adata, make_schema())
    warning = only(caught, "without control cells")
    assert warning.filename == __file__
    assert "effects against control" in str(warning.message)


@pytest.mark.parametrize("label", ["control", "DMSO", "Ctrl", "non-targeting", "NT", "none"])
def test_forgotten_control_is_a_warning(label):
    adata = make_adata(treatments=(label, "A", "A+B"))
    with pytest.warns(UserWarning, match="looks like a label of untreated cells") as caught:
        registry, _ = register(adata, make_schema(control=None))
    warning = only(caught, "untreated cells")
    assert warning.filename == __file__
    assert f"'drug': '{label}' looks" in str(warning.message)
    assert f"pass control='{label}'" in str(warning.message)
    assert label in registry.agents
    register(adata, make_schema(control=label))


@pytest.mark.parametrize("treatments", [("A", "B"), ("controlled", "NT5E"), ("A", "A+control")])
def test_labels_that_are_not_those_of_untreated_cells(treatments):
    register(make_adata(treatments=treatments), make_schema(control=None))


@pytest.mark.parametrize(("column", "level", "other"), [("drug", "A+B", "A"), ("line", "v", "u")])
def test_too_few_cells_in_a_level(column, level, other):
    adata = make_adata(n_each=12)
    rare = np.flatnonzero(adata.obs[column] == level)
    adata = adata[np.setdiff1d(np.arange(len(adata)), rare[4:])].copy()
    schema = make_schema(min_cells=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SchemaError) as error:
            register(adata, schema)
        _says(error, f"'{column}'", f"'{level}: 4'", "5 or more", f"!= '{level}'", "min_cells")
        assert f"{other}:" not in str(error.value)
        register(adata, make_schema(min_cells=4))


def test_control_outside_training_does_not_count():
    adata = make_adata()
    out = (adata.obs["drug"] == "control") & (adata.obs["line"] == "u")
    adata.obs["split"] = np.where(out, "test", "train")
    with pytest.warns(UserWarning, match="'line': 'u' without control cells"):
        register(adata, make_schema(split_key="split"))


def test_too_few_training_cells():
    adata = make_adata()
    rare = np.flatnonzero(adata.obs["drug"] == "A")
    adata.obs["split"] = "train"
    adata.obs.iloc[rare[1:], adata.obs.columns.get_loc("split")] = "test"
    with pytest.raises(SchemaError, match="too few training cells in 'A: 1'"):
        register(adata, make_schema(split_key="split"))


@pytest.mark.parametrize(("column", "level"), [("drug", "A"), ("line", "v")])
def test_level_outside_training_only(column, level):
    adata = make_adata(treatments=("control", "A", "B"))
    adata.obs["split"] = np.where(adata.obs[column] == level, "test", "train")
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema(split_key="split"))
    _says(error, f"'{column}'", f"'{level}'", "nothing can be learnt", "'train'")


def test_agent_outside_training_only():
    adata = make_adata(treatments=("control", "A", "A+B"))
    adata.obs["split"] = np.where(adata.obs["drug"] == "A+B", "ood", "train")
    with pytest.raises(SchemaError, match="'drug': 'B' only in cells that are left out"):
        register(adata, make_schema(split_key="split"))


@pytest.mark.parametrize("label", ["A+", "+A", "A++B"])
def test_empty_part_of_a_combination(label):
    adata = make_adata()
    _set(adata, "drug", "cell5", label)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "'drug'", "'cell5'", repr(label), "separator")


def test_agent_twice_in_a_combination():
    adata = make_adata()
    _set(adata, "drug", "cell5", "B+A+B")
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "'drug'", "'cell5'", "'B+A+B'", "twice", "name it once")


@pytest.mark.parametrize(("rows", "columns", "what"), [(0, 5, "cells"), (48, 0, "genes")])
def test_nothing_there(rows, columns, what):
    with pytest.raises(SchemaError, match=f"adata has no {what}"):
        register(make_adata()[:rows, :columns].copy(), make_schema())


def test_split_of_nothing():
    with pytest.raises(SchemaError, match="no cells"):
        split_cells(make_adata().obs.iloc[:0], make_schema())


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_in_another_encoding(axis):
    adata = make_adata()
    names = getattr(adata, f"{axis}_names").to_numpy().copy()
    names[1] = "\udcb5"
    setattr(adata, f"{axis}_names", names)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, f"adata.{axis}_names", "no text in UTF-8")


def test_genes_whose_names_are_numbers_are_known_as_text():
    adata = make_adata()
    adata.var.index = pd.RangeIndex(adata.n_vars)
    assert register(adata, make_schema())[0].genes[:2] == ("0", "1")


@pytest.mark.parametrize("change", [lambda x: np.ma.masked_greater(x, 4), lambda x: x + 1j])
def test_values_that_would_lose_a_part(change):
    adata = make_adata()
    adata.X = change(np.asarray(adata.X))
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "adata.X is ", "expected real numbers")


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize("axis", ["var", "obs"])
def test_repeated_names(axis):
    adata = make_adata()
    names = getattr(adata, f"{axis}_names").to_numpy().copy()
    names[1] = names[0]
    setattr(adata, f"{axis}_names", names)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, repr(names[0]), f"adata.{axis}_names_make_unique()")


FORMATS = pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])


def _with_value(convert, value, cell=11, gene=3):
    adata = make_adata()
    adata.X[cell, gene] = value
    adata.X = convert(adata.X)
    return adata


@FORMATS
@pytest.mark.parametrize(
    ("value", "mend"),
    [
        (np.nan, "expected finite numbers; fill or drop"),
        (np.inf, "expected finite numbers; fill or drop"),
        (-1, "name the layer with raw counts"),
        (2.5, "name the layer with raw counts"),
    ],
)
def test_values_that_are_no_counts(convert, value, mend):
    adata = _with_value(convert, value)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "adata.X", "'cell11'", "'g3'", f"found {value:g}", mend)
    with pytest.raises(SchemaError, match="'cell11', gene 'g3'"):
        register(make_adata(), make_schema())[0].encode(adata)


@FORMATS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_on_the_log_scale(convert, value):
    adata = make_adata()
    adata.X = np.log1p(adata.X)
    adata.X[11, 3] = value
    adata.X = convert(adata.X)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema(expression="log1p"))
    _says(error, "'cell11'", "'g3'", f"found {value:g}", "fill or drop")


@FORMATS
@pytest.mark.parametrize("cell", [0, 11, 47])
@pytest.mark.parametrize("gene", [0, 4])
def test_bad_value_at_the_ends_of_a_cell(convert, cell, gene):
    adata = _with_value(convert, -3, cell=cell, gene=gene)
    with pytest.raises(SchemaError, match=f"cell 'cell{cell}', gene 'g{gene}': found -3"):
        register(adata, make_schema())


def test_bad_value_in_a_later_block(monkeypatch):
    monkeypatch.setattr("pyro_fcr.data.checks._BLOCK", 7)
    with pytest.raises(SchemaError, match="cell 'cell40', gene 'g2': found -3"):
        register(_with_value(np.asarray, -3, cell=40, gene=2), make_schema())


@FORMATS
def test_log_values_given_as_counts(convert):
    adata = make_adata()
    adata.layers["raw"] = adata.X.copy()
    adata.X = convert(np.log1p(adata.X))
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "adata.X", "look log-normalised", "expression='log1p'", "layers: 'raw'")
    register(adata, make_schema(layer="raw"))
    register(adata, make_schema(expression="log1p"))


def test_corrected_counts_are_not_called_log_values():
    adata = make_adata()
    adata.X *= 40.5
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "normalised or corrected", "np.rint", "layers: none")
    assert "log1p" not in str(error.value)


def test_counts_given_as_log_values_are_a_warning():
    with pytest.warns(UserWarning, match="whole numbers only.*expression='counts'") as caught:
        registry = register(make_adata(), make_schema(expression="log1p"))[0]
    assert only(caught, "whole numbers").filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once, at registration
        registry.encode(make_adata())


@FORMATS
def test_values_that_are_not_logged(convert):
    adata = make_adata()
    adata.X = convert(adata.X * 300.5)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema(expression="log1p"))
    _says(error, "adata.X, cell '", "none of which is above 20", "sc.pp.log1p(adata)")


@pytest.mark.parametrize("clip", [None, 1.5])
def test_z_scores_given_as_log_values_are_a_warning(clip):
    adata = make_adata()
    values = np.log1p(adata.X)
    adata.X = np.clip((values - values.mean(axis=0)) / values.std(axis=0), None, clip)
    with pytest.warns(UserWarning, match="adata.X has negative values and genes of mean 0"):
        register(adata, make_schema(expression="log1p"))
    adata.X = values - 0.5  # corrected for something, and on a log scale
    register(adata, make_schema(expression="log1p"))


@FORMATS
@pytest.mark.parametrize("value", [2.0**24, 1e9, 2.0**31, 1e20])
def test_counts_that_are_too_many(convert, value):
    with pytest.raises(SchemaError) as error:
        register(_with_value(convert, value), make_schema())
    _says(error, "cell 'cell11', gene 'g3'", f"found {value:g}", "below 2**24", "drop the cell")
    register(_with_value(convert, 2.0**24 - 1), make_schema())


def test_bad_value_in_the_layer_is_named_there():
    adata = make_adata()
    adata.layers["raw"] = _with_value(sparse.csr_matrix, -2).X
    with pytest.raises(SchemaError, match=re.escape("adata.layers['raw'], cell 'cell11'")):
        register(adata, make_schema(layer="raw"))
    register(adata, make_schema())


@FORMATS
@pytest.mark.parametrize("expression", ["counts", "log1p"])
def test_zero_cells(convert, expression):
    adata = make_adata()
    adata.X[[4, 9]] = 0
    adata.X = convert(adata.X if expression == "counts" else np.log1p(adata.X))
    schema = make_schema(expression=expression)
    with pytest.raises(SchemaError) as error:
        register(adata, schema)
    _says(error, "2 of 48 cells", "'cell4', 'cell9'", "sc.pp.filter_cells(adata, min_")
    with pytest.raises(SchemaError, match="2 of 48 cells"):
        register(adata[10:].copy(), schema)[0].encode(adata)


@FORMATS
def test_zero_genes(convert):
    adata = make_adata()
    adata.X[:, [1, 3]] = 0
    adata.X = convert(adata.X)
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema())
    _says(error, "2 of 5 genes", "'g1', 'g3'", "sc.pp.filter_genes(adata, min_cells=1)")
    # New data may lack a gene's expression: it was learnt elsewhere.
    register(make_adata(), make_schema())[0].encode(adata)


@FORMATS
@pytest.mark.parametrize("axis", ["cells", "genes"])
def test_zeros_of_a_layer_are_mended_in_the_layer(convert, axis):
    adata = make_adata()
    raw = adata.X.copy()
    raw[(4, slice(None)) if axis == "cells" else (slice(None), 4)] = 0
    adata.layers["raw"] = convert(raw)
    with pytest.raises(SchemaError, match=f"1 of .* {axis} are zero") as error:
        register(adata, make_schema(layer="raw"))
    mend = str(error.value).split("drop them: ")[1]
    scope = {"adata": adata, "np": np}
    exec(mend, scope)
    register(scope["adata"], make_schema(layer="raw"))
    assert scope["adata"].n_obs == 48 - (axis == "cells")


def test_stored_zeros_are_zeros():
    adata = make_adata()
    adata.X = sparse.csr_matrix(adata.X)
    adata.X.data[adata.X.indptr[4] : adata.X.indptr[5]] = 0
    with pytest.raises(SchemaError, match="1 of 48 cells are zero in all 5 genes, first 'cell4'"):
        register(adata, make_schema())


def test_missing_layer():
    adata = make_adata()
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(SchemaError) as error:
        register(adata, make_schema(layer="count"))
    _says(
        error,
        "'count'",
        "layers: 'counts'",
        "Did you mean 'counts'?",
        "Leave layer out",
    )


def test_no_matrix():
    adata = make_adata()
    adata.layers["counts"] = adata.X.copy()
    adata.X = None
    with pytest.raises(SchemaError, match="X is empty; name a layer, of those there: 'counts'"):
        register(adata, make_schema())


def _dosed():
    adata = make_adata()
    adata.obs["dose"] = adata.obs["drug"].map({"control": 0, "A": 1.0, "B": 2.0, "A+B": "1+2"})
    return adata, make_schema(dose_key="dose")


@pytest.mark.parametrize(
    ("drug", "dose", "parts"),
    [
        ("A", "10 uM", ["'10 uM'", "expected a number", "without units"]),
        ("A", True, ["True", "expected a number"]),
        ("A+B", "1+high", ["'1+high'", "expected a number"]),
        ("A", -1.0, ["-1", "finite number of 0 or more", "correct the column"]),
        ("A", np.inf, ["inf", "finite number of 0 or more"]),
        ("A+B", "1+-2", ["-2", "finite number of 0 or more"]),
        ("A", 0, ["'A'", "the dose 0", "untreated cells: 'control'"]),
        ("A", np.nan, ["'A'", "no dose", "fill it in"]),
        ("A+B", "1+", ["'B'", "no dose"]),
        ("A+B", "1+2+3", ["'1+2+3'", "3 doses for the 2 parts ['A', 'B']", "same order"]),
        ("control", 0.5, ["the control 'control' has the dose 0.5", "set it to 0"]),
    ],
)
def test_bad_dose(drug, dose, parts):
    adata, schema = _dosed()
    good = register(adata, schema)[0]
    cell = _first_with(adata, drug)
    _set(adata, "dose", cell, dose)
    for attempt in (lambda cells: register(cells, schema), good.encode):
        with pytest.raises(SchemaError) as error:
            attempt(adata)
        _says(error, "'dose'", repr(cell), *parts)


def test_unseen_levels_in_new_data():
    registry = register(make_adata(), make_schema())[0]
    for column, level, known in [("drug", "A+C", "'A', 'B'"), ("line", "w", "'u', 'v'")]:
        adata = make_adata()
        _set(adata, column, "cell9", level)
        with pytest.raises(SchemaError) as error:
            registry.encode_obs(adata.obs)
        with pytest.raises(SchemaError, match=re.escape(str(error.value))):
            registry.encode(adata)
        culprit = "'C'" if column == "drug" else "'w'"
        _says(error, f"'{column}'", "'cell9'", culprit, f"known: {known}", "Rename it")


def test_missing_genes_in_new_data():
    registry = register(make_adata(), make_schema())[0]
    with pytest.raises(SchemaError) as error:
        registry.encode(make_adata()[:, ["g4", "g0"]].copy())
    _says(error, "3 of the 5 registered genes", "'g1', 'g2', 'g3'", "before any filtering")


def test_new_cells_without_the_registered_genes():
    registry = register(make_adata(), make_schema())[0]
    adata = make_adata(n_genes=6)
    adata.X[7, :5] = 0
    adata.X[7, 5] = 3
    with (
        pytest.warns(UserWarning, match="1 genes"),
        pytest.raises(SchemaError, match=r"zero in all 5 genes, first 'cell7'.*registry\.genes"),
    ):
        registry.encode(adata)


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_new_data_are_checked_like_the_old():
    registry = register(make_adata(), make_schema())[0]
    adata = make_adata()
    adata.var_names = ["g0", "g0", "g2", "g3", "g4"]
    with pytest.raises(SchemaError, match="var_names_make_unique"):
        registry.encode(adata)
    with pytest.raises(SchemaError, match="'line' is not a column"):
        registry.encode(ad.AnnData(make_adata().X, obs=make_adata().obs[["drug"]]))
    with pytest.raises(SchemaError, match="no cells"):
        registry.encode(make_adata()[:0].copy())


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_expression_alone_is_checked_like_all_data():
    registry = register(make_adata(), make_schema())[0]
    with pytest.raises(SchemaError, match="lacks 3 of the 5 registered genes, first 'g1'"):
        registry.encode_expression(make_adata()[:, ["g4", "g0"]].copy())
    with pytest.raises(SchemaError, match="'cell11', gene 'g3': found -1, expected raw counts"):
        registry.encode_expression(_with_value(sparse.csr_matrix, -1))
    with pytest.raises(SchemaError, match="no cells"):
        registry.encode_expression(make_adata()[:0].copy())
    with pytest.raises(SchemaError, match="found DataFrame; expected an AnnData"):
        registry.encode_expression(make_adata().to_df())
    empty = make_adata()
    empty.X[7] = 0
    with pytest.raises(SchemaError, match="1 of 48 cells are zero in all 5 genes, first 'cell7'"):
        registry.encode_expression(empty)
    twice = make_adata()
    twice.var_names = ["g0", "g0", "g2", "g3", "g4"]
    with pytest.raises(SchemaError, match="var_names_make_unique"):
        registry.encode_expression(twice)


def _query(dosed=False):
    adata = make_adata()
    if not dosed:
        return register(adata, make_schema())[0]
    adata.obs["dose"] = np.select(
        [adata.obs["drug"] == "control", adata.obs["line"] == "u"], [0, 1], 10
    )
    return register(adata, make_schema(dose_key="dose"))[0]


@pytest.mark.parametrize(
    ("label", "dose", "dosed", "parts"),
    [
        ("C", None, False, ["the query", "'C'", "known: 'A', 'B'"]),
        ("a", None, False, ["'a'", "Did you mean 'A'?"]),
        ("ctrl", None, False, ["'ctrl'", "known: 'A', 'B', 'control'", "mean 'control'?"]),
        ("A+C", None, False, ["'C'", "known: 'A', 'B'"]),
        ("A", 1.0, False, ["without doses", "leave dose out"]),
        ("A", None, True, ["'A'", "from 1 to 10", "dose=10"]),
        ("A", 0, True, ["the query", "'A'", "the dose 0"]),
        ("A", -1, True, ["the query", "-1"]),
        ("A+B", (1, 2, 3), True, ["3 doses for the 2 parts"]),
        ("control", 1, True, ["the control 'control' has the dose 1"]),
    ],
)
def test_bad_treatment_query(label, dose, dosed, parts):
    registry = _query(dosed)
    for attempt in (
        lambda: registry.encode_treatment(label, dose),
        lambda: registry.is_extrapolated(label, {"line": "u"}, dose=dose),
    ):
        with pytest.raises(SchemaError) as error:
            attempt()
        _says(error, *parts)


@pytest.mark.parametrize(
    ("levels", "parts"),
    [
        ({}, ["'line' not given", "a level of each of 'line'"]),
        ({"line": "w"}, ["'line' of the query", "'w'", "known: 'u', 'v'"]),
        ({"line": "u", "donor": "1"}, ["'donor' is not a covariate key", "keys: 'line'"]),
    ],
)
def test_bad_context_query(levels, parts):
    registry = _query()
    for attempt in (
        lambda: registry.encode_covariates(levels),
        lambda: registry.is_extrapolated("A", levels),
    ):
        with pytest.raises(SchemaError) as error:
            attempt()
        _says(error, *parts)


def test_registry_of_another_format():
    saved = {**_query().to_json_dict(), "format": 99}
    with pytest.raises(SchemaError, match="format 99; expected 1 to 4; load it with the version"):
        Registry.from_json_dict(saved)


def test_empty_training_split():
    adata = make_adata()
    adata.obs["split"] = np.resize(["Trian", "valid"], len(adata))
    schema = make_schema(split_key="split")
    for attempt in (lambda: register(adata, schema)[0], lambda: split_cells(adata.obs, schema)):
        with pytest.raises(SchemaError) as error:
            attempt()
        _says(error, "'split'", "labelled 'train'", "labels: 'Trian', 'valid'", "mean 'Trian'?")


def test_split_label_that_no_cell_has():
    adata = make_adata()
    adata.obs["split"] = pd.Categorical(["valid"] * len(adata), categories=["train", "valid"])
    with pytest.raises(SchemaError, match=r"training split is empty.*labels: 'valid'"):
        split_cells(adata.obs, make_schema(split_key="split"))


def test_cell_without_a_split():
    adata = make_adata()
    adata.obs["split"] = "train"
    _set(adata, "split", "cell2", np.nan)
    with pytest.raises(SchemaError, match=r"split_key 'split': 1 of 48 cells .* 'cell2'"):
        split_cells(adata.obs, make_schema(split_key="split"))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, np.nan])
def test_fraction_out_of_range(fraction):
    with pytest.raises(SchemaError, match=r"heldout_fraction is .*below 1"):
        split_cells(make_adata().obs, make_schema(), heldout_fraction=fraction)


def test_no_cell_can_be_held_out():
    with pytest.raises(SchemaError) as error:
        split_cells(make_adata(n_each=1).obs, make_schema(), heldout_fraction=0.5)
    _says(error, "8 training cells in 8 conditions", "heldout_fraction=0")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cells\.h5ad' does not exist"):
        read_cells(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("name", ["cells.csv", "cells"])
def test_wrong_suffix(name, tmp_path):
    (tmp_path / name).write_text("a,b")
    with pytest.raises(SchemaError) as error:
        read_cells(str(tmp_path / name))
    _says(error, name, "expected .h5ad or .zarr", "adata.write_h5ad")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_broken_file(suffix, tmp_path):
    path = tmp_path / f"cells{suffix}"
    if suffix == ".zarr":
        path.mkdir()
    else:
        path.write_bytes(b"not a file of cells")
    with pytest.raises(SchemaError, match=f"cannot be read as {suffix}.*write it again"):
        read_cells(path)


def test_something_else_than_cells():
    with pytest.raises(SchemaError, match="found DataFrame; expected an AnnData or the path"):
        register(make_adata().to_df(), make_schema())


def test_unknown_storage():
    adata = make_adata()
    adata.X = adata.X.astype(object)
    adata.X[0, 0] = "many"
    with pytest.raises(SchemaError, match=r"adata\.X is .*adata\.to_memory\(\)"):
        register(adata, make_schema())


def test_schema_error_is_a_value_error():
    assert issubclass(SchemaError, ValueError)
    with pytest.raises(ValueError, match="covariate_keys"):
        Schema(treatment_key="drug", control=None, covariate_keys=[])
