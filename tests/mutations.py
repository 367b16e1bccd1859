"""Good cells, schemas and questions with one or two things wrong, and what must then happen."""

import datetime
import traceback
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from data_helpers import make_adata, make_schema
from hypothesis import strategies as st
from scipy import sparse

import pyro_fcr
from pyro_fcr import FCR, Architecture, Schema
from pyro_fcr.data import register

PACKAGE = str(Path(pyro_fcr.__file__).parent)
COLUMNS = ["drug", "line", "donor", "dose", "split"]
ODD = [
    None, np.nan, "", "  ", "nan", "u ", "U", " A", "a", "A+", "+", "A++B", "B + A", "A+A", "(+)-x",
    "A(+B", "ctrl", "w", "\u00e9", "e\u0301", "x" * 500, "a\nb", "1", 1, 1.0, 0.5, -1, 0, np.inf,
    -np.inf, 1e300, 10**30, True, np.bool_(0), b"u", np.float32(0.1), np.int8(3), 1j, ["A", "B"],
    ("A",), {"a": 1}, {1}, np.array(["A"]), np.array(1), object(), str, pd.NaT, pd.NA,
    datetime.date(2020, 1, 1), pd.Timestamp("2020-01-01 05:00"), pd.Interval(0, 1), Path("A"),
    lambda: 1, float,
]  # fmt: skip
odd = st.sampled_from(range(len(ODD))).map(ODD.__getitem__)


def good_cells():
    adata = make_adata()
    adata.obs["donor"] = np.arange(adata.n_obs) % 2
    adata.obs["dose"] = adata.obs["drug"].map({"control": "0", "A": "1", "B": "2", "A+B": "1+2"})
    adata.obs["split"] = np.resize(["train", "train", "train", "valid"], adata.n_obs)
    adata.layers["raw"] = adata.X.copy()
    return adata


def good_schema(**changes):
    settings = {"covariate_keys": ("line", "donor"), "dose_key": "dose", "split_key": "split"}
    return make_schema(**{**settings, **changes})


def _set_values(adata, draw):
    column, value = draw(st.sampled_from(COLUMNS)), draw(odd)
    cells = draw(st.sampled_from([[0], [5, 6], range(48)]))
    values = adata.obs[column].astype(object).tolist()
    for cell in cells:
        values[cell] = value
    wrapped = np.empty(len(values), dtype=object)
    wrapped[:] = [*values]
    adata.obs[column] = pd.Series(wrapped, index=adata.obs_names, dtype=object)
    return [column, adata.obs_names[0], "dose"]


def _change_type(adata, draw):
    column = draw(st.sampled_from(COLUMNS))
    kinds = ["category", "string", "Int64", "float32", "bytes", "codes", "bool"]
    kind = draw(st.sampled_from(kinds))
    values = adata.obs[column]
    if kind == "bytes":
        values = values.astype(str).str.encode("utf8")
    elif kind in ("codes", "Int64", "float32", "bool"):
        codes = pd.Series(pd.factorize(values)[0], index=values.index)
        values = codes if kind == "codes" else codes.astype(kind)
    else:
        values = values.astype(kind)
    adata.obs[column] = values
    return [column, "control", "train", "dose"]


def _change_columns(adata, draw):
    column = draw(st.sampled_from(COLUMNS))
    what = draw(st.sampled_from(["drop", "twice", "rename", "upper"]))
    if what == "drop":
        del adata.obs[column]
    elif what == "twice":
        adata.obs = pd.concat([adata.obs, adata.obs[[column]]], axis=1)
    else:
        adata.obs = adata.obs.rename(columns={column: column.upper() if what == "upper" else 3})
    return [column]


def _change_values(adata, draw):
    value = draw(st.sampled_from([np.nan, np.inf, -1, 0.5, 2.0**31, 1e38, 2.0**24]))
    cell, gene = draw(st.integers(0, 47)), draw(st.integers(0, 4))
    adata.X[cell, gene] = value
    return [f"cell{cell}", f"g{gene}"]


def _change_storage(adata, draw):
    kinds = [
        sparse.csr_matrix, sparse.csc_matrix, sparse.coo_array, sparse.csr_array, np.asfortranarray,
        np.float16, np.float64, np.int8, np.uint64, bool, object, complex, str,
    ]  # fmt: skip
    kind = draw(st.sampled_from(kinds))
    plain = isinstance(kind, type) and not issubclass(kind, sparse.spmatrix | sparse.sparray)
    adata.X = adata.X.astype(kind) if plain else kind(adata.X)
    return ["adata.X"]


def _empty(adata, draw):
    what = draw(st.sampled_from(["cells", "genes", "one cell", "cell", "gene", "X", "all"]))
    if what in ("cells", "genes", "one cell"):
        rows, genes = {"cells": (0, 5), "genes": (48, 0), "one cell": (1, 5)}[what]
        adata._inplace_subset_obs(np.arange(rows))
        adata._inplace_subset_var(np.arange(genes))
        return ["cell", "gene", "label"]
    if what == "X":
        adata.X = None
    else:
        at = {"cell": (3, slice(None)), "gene": (slice(None), 3), "all": slice(None)}[what]
        adata.X[at] = 0
    return ["adata.X", "cell3", "g3"]


def _repeat_names(adata, draw):
    axis = draw(st.sampled_from(["obs", "var"]))
    names = getattr(adata, f"{axis}_names").to_numpy().copy()
    names[1] = draw(st.sampled_from([names[0], "", "a/b"]))
    setattr(adata, f"{axis}_names", names)
    return [f"adata.{axis}_names"]


CHANGES = [
    _set_values, _set_values, _set_values, _change_type, _change_columns, _change_values,
    _change_storage, _empty, _repeat_names,
]  # fmt: skip


@st.composite
def changed_cells(draw):
    """Cells with one or two changes, and names of which an error has one."""
    adata, names = good_cells(), []
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2)):
        try:
            names += change(adata, draw)
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):  # not even an AnnData can hold both
            continue
    return adata, names


@st.composite
def changed_schema(draw):
    """Arguments of a schema, one or two of them odd, and their names."""
    settings = {
        "treatment_key": "drug", "control": "control", "covariate_keys": ["line", "donor"],
        "dose_key": "dose", "layer": None, "split_key": "split", "expression": "counts",
        "separator": "+", "min_cells": 2, "treatment_features": None, "covariate_sites": (),
        "other_controls": (),
    }  # fmt: skip
    more = ["drug", "dose", "missing", "raw", "log1p", "&", 2.5, {"x": "line"}, {"t": "line"}, [3]]
    names = draw(st.lists(st.sampled_from(sorted(settings)), min_size=1, max_size=2, unique=True))
    for name in names:
        settings[name] = draw(odd | st.sampled_from(more))
    return settings, [*names, "covariate_keys"]


QUESTIONS = {
    "predict": {"treatment": "A", "covariates": {"line": "u", "donor": 0}, "dose": None,
                "n_cells": 3, "n_draws": 1, "library": "target", "output": "draws", "seed": 0},
    "counterfactual": {"treatment": "B", "dose": None, "covariates": None, "hold": None,
                       "library": "own", "n_draws": 1, "output": "mean", "seed": 0},
    "posterior_predictive": {"n_draws": 2, "output": "summary", "library": "own", "seed": 0},
    "dose_response": {"treatment": "A", "cells": {"line": "u", "donor": "1"}, "doses": [1, 2],
                      "genes": None, "n_draws": 2, "level": 0.9, "seed": 0},
    "get_latent_representation": {"block": "z_x", "encoding": "labelled", "only_in_use": False,
                                  "labelled": True},
    "label_blind_latents": {"n_labels": 4, "seed": 0},
    "interval_coverage": {"levels": [0.5], "n_draws": 2, "seed": 0},
    "to_arviz": {"predictions": None, "genes": ["g1"], "n_draws": 2, "seed": 0},
    "effects": {"treatments": ["A"], "n_cells": 3, "level": 0.9, "seed": 0},
}  # fmt: skip


LEGAL = {
    "treatment": ["A", "B", "A+B", "B+A", "control"], "dose": [None, 1, 2.0, 0.5], "seed": [0, 7],
    "covariates": [{"line": "u", "donor": "1"}, {"line": "v", "donor": 0}], "n_draws": [1, 2, 3],
    "n_cells": [1, 4], "hold": [None, ["z_x"], ["z_x", "z_t"], []], "quantile": [0.5],
    "library": ["own", "target", 50, 1000.5], "output": ["draws", "mean", "summary"],
    "cells": [{"line": "u", "donor": "1"}, {"line": "v"}, None], "doses": [[1], [0.5, 2.0], None],
    "genes": [None, ["g1"], ["g4", "g0"]], "level": [0.5, 0.99], "labelled": [True, False],
    "block": ["z_x", "z_t", "z_tx"], "encoding": ["labelled", "label-blind"],
    "levels": [[0.5, 0.9]], "only_in_use": [False], "n_labels": [1, 6],
    "treatments": [None, ["B"], ["A", "B"]],
}  # fmt: skip


@st.composite
def legal_question(draw):
    """A question with arguments that each are right, though perhaps not beside one another."""
    question = draw(st.sampled_from(sorted(QUESTIONS)))
    arguments = {
        name: draw(st.sampled_from(LEGAL.get(name, [value])))
        for name, value in QUESTIONS[question].items()
    }
    return question, arguments, [*arguments, "'drug'", "'line'", "'donor'", "n_draws"]


@st.composite
def changed_question(draw):
    """A question, its arguments with one or two odd ones, and their names."""
    question = draw(st.sampled_from(sorted(QUESTIONS)))
    arguments = dict(QUESTIONS[question])
    names = draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True))
    more = ["A+B", "1+2", (1, 2), [0.1], "z_tx", ["z_x"], {"line": "v"}, {"line": ["u"]}, "mean",
            {"line": "w", "donor": 1}, {"treatment": "A"}, [], 3, "g9"]  # fmt: skip
    for name in names:
        arguments[name] = draw(odd | st.sampled_from(more))
    return question, arguments, [*names, "'drug'", "'line'", "'donor'"]


def fitted():
    """A model for questions; what it answers is of no account."""
    architecture = Architecture(decoder="additive", n_hidden=4, n_x=2, n_t=2, n_tx=1, dropout=0.0)
    return FCR(good_cells(), good_schema(), architecture=architecture)


def outcome(call, names):
    """Return the answer and None, or None and the error of ours that names the culprit.

    Raises
    ------
    AssertionError
        The error is not ours, of several lines, or names nothing.
    """
    caught = None
    try:
        return call(), None
    except AssertionError:
        raise
    except Exception as error:
        caught = error
    said, frame = str(caught), traceback.extract_tb(caught.__traceback__)[-1]
    is_ours = isinstance(caught, ValueError | OSError) and frame.filename.startswith(PACKAGE)
    if not is_ours:
        raise AssertionError(f"foreign: {type(caught).__name__}: {said[:99]} at {frame}")
    assert "\n" not in said, f"several lines: {said}"
    assert any(str(name) in said for name in names), f"{names[:3]} not named: {said}"
    return None, caught


def check_registered(adata, schema):
    """Register cells, and hold what was learnt from them against the cells."""
    registry, cells = register(adata, schema)
    split = adata.obs["split"].astype(str).str.strip().str.casefold()
    n_train = split.isin(["train", "valid", "val"]).sum() if schema.split_key else adata.n_obs
    assert sum(each.n_cells for each in registry.conditions) == n_train
    given = adata.X if schema.layer is None else adata.layers[schema.layer]
    given = given.toarray() if sparse.issparse(given) else np.asarray(given)
    stored = cells.expression
    stored = stored.toarray() if sparse.issparse(stored) else stored
    np.testing.assert_array_equal(stored, given.astype(np.float64))
    for key, levels in registry.covariates.items():
        texts = adata.obs[key].map(lambda value: value.strip() if isinstance(value, str) else None)
        assert set(texts.dropna()) <= set(levels)
    assert isinstance(schema, Schema)
    return registry


def check_answer(answer, question="", arguments=None):
    """Hold an answer against what any answer is, and against its question."""
    asked = arguments or {}
    if question in ("predict", "counterfactual", "posterior_predictive"):
        n = asked["n_cells"] if question == "predict" else 48
        rows = n * asked["n_draws"] if asked["output"] == "draws" else n
        assert answer.n_obs == rows
        if asked.get("treatment") is not None:
            assert set(answer.obs["drug"]) == {"A+B" if "+" in asked["treatment"] else
                                               asked["treatment"]}  # fmt: skip
        for key, level in (asked.get("covariates") or {}).items():
            assert set(answer.obs[key].astype(str)) == {str(level)}
    values = answer.X if isinstance(answer, ad.AnnData) else answer
    if isinstance(values, np.ndarray) or sparse.issparse(values):
        dense = values.toarray() if sparse.issparse(values) else values
        assert np.isfinite(dense).all()
        assert dense.size > 0
    if isinstance(answer, ad.AnnData):
        assert answer.n_vars == 5
