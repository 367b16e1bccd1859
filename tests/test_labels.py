"""One text for a label whatever its type, look-alikes, and what is a combination."""

import datetime
import enum
import json
import warnings
from decimal import Decimal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from data_helpers import make_adata, make_schema, only

from pyro_fcr.data import Registry, SchemaError, register
from pyro_fcr.data.labels import is_balanced, label_text, split_parts
from pyro_fcr.data.spelling import did_you_mean, look_alikes


class Word(enum.StrEnum):
    LINE = "u"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("u", ["u", " u\t", np.str_("u"), b"u", "u\N{NO-BREAK SPACE}", Word.LINE]),
        ("1", [1, 1.0, "1", np.int8(1), np.uint64(1), np.float16(1), np.float32(1), Decimal(1)]),
        ("0.1", [0.1, np.float32(0.1), float(np.float32(0.1)), Decimal("0.1")]),
        ("0.3", [0.3, 0.1 + 0.2, np.float32(0.3)]),
        ("0.33333334", [1 / 3, np.float32(1 / 3)]),
        ("12345678.5", [12345678.5]),
        ("1e+300", [1e300, Decimal("1e300")]),
        ("True", [True, np.bool_(1), "True"]),
        (
            "2020-02-01",
            [
                datetime.date(2020, 2, 1), datetime.datetime(2020, 2, 1), np.datetime64("2020-02"),
                np.datetime64("2020-02-01T00:00:00.000000000"), pd.Timestamp("2020-02-01"),
                "2020-02-01",
            ],
        ),
        ("2020-02-01T06:00:00", [np.datetime64("2020-02-01T06"), pd.Timestamp("2020-02-01 06:00")]),
        ("1 days 00:00:00", [datetime.timedelta(1), np.timedelta64(1, "D"), pd.Timedelta(days=1)]),
        ("2020-02", [pd.Period("2020-02")]),
        ("(0, 1]", [pd.Interval(0, 1)]),
        ("", [None, np.nan, pd.NA, pd.NaT, np.datetime64("NaT"), "", "  ", "nan", "<NA>"]),
    ],
)  # fmt: skip
def test_a_label_has_one_text_whatever_its_type(text, values):
    assert {label_text(value, where="line") for value in values} == {text}


@pytest.mark.parametrize("value", [["A", "B"], ("A",), {"A": 1}, np.array(["A"]), object(), str])
def test_what_is_no_label_is_named(value):
    with pytest.raises(SchemaError, match=f"line: found {type(value).__name__} .*one label"):
        label_text(value, where="line")


@pytest.mark.parametrize("value", [b"\xb5M", "A\ud800", "1\udcb5M"])
def test_text_that_no_file_takes_is_named(value):
    with pytest.raises(SchemaError, match=r"line: found b?'.*, which is no text in UTF-8") as error:
        label_text(value, where="line")
    str(error.value).encode()


COLUMNS = {
    "integers": np.array([1, 2, 10]),
    "floats": np.array([0.1, 0.5, 2.0]),
    "float32": np.array([0.1, 0.5, 2.0], np.float32),
    "truth": np.array([True, False, True]),
    "dates": pd.to_datetime(["2020-01-01", "2020-02-01", "2020-02-01"]),
    "zoned": pd.to_datetime(["2020-01-01", "2020-02-01", "2020-02-01"]).tz_localize("UTC"),
    "nullable": pd.array([1, 2, 10], dtype="Int64"),
    "nullable text": pd.array(["1", "2", "b"], dtype="string"),
    "truth or not": pd.array([True, False, True], dtype="boolean"),
    "bins": pd.cut([1, 5, 9], [0, 3, 6, 9]),
    "mixed": np.array([1, "b", 2.5], dtype=object),
}


@pytest.mark.filterwarnings("ignore:.*without control cells")
@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_of_column_can_be_asked_about_in_its_own_type(name):
    adata = make_adata()
    values = pd.Series(COLUMNS[name])
    order = np.arange(adata.n_obs) % 3
    adata.obs["line"] = values.take(order).set_axis(adata.obs_names)
    registry = register(adata, make_schema())[0]
    texts = registry.covariates["line"]
    again = Registry.from_json_dict(json.loads(json.dumps(registry.to_json_dict())))
    for value in values:
        rows = again.encode_covariates({"line": value})["x"]
        assert rows.sum() == 1
        assert texts[rows.argmax()] == label_text(value, where="line")
    as_text = adata.copy()
    as_text.obs["line"] = [label_text(value, where="line") for value in adata.obs["line"]]
    as_categories = adata.copy()
    as_categories.obs["line"] = adata.obs["line"].astype("category")
    for cells in (as_text, as_categories):
        np.testing.assert_array_equal(
            registry.encode(cells).site("x"), again.encode(adata).site("x")
        )


@pytest.mark.parametrize("numbers", [np.int64([1, 2]), np.float32([0.1, 2])])
def test_labels_survive_concatenation_and_a_file(numbers, tmp_path):
    adata = make_adata()
    adata.obs["line"] = numbers[np.arange(adata.n_obs) % 2]
    registry, cells = register(adata, make_schema())
    other = make_adata()[:3].copy()
    other.obs = other.obs[["drug"]].set_axis(["a", "b", "c"])
    joined = ad.concat([adata, other], join="outer")
    joined.obs["line"] = joined.obs["line"].astype(float)
    joined.write_h5ad(tmp_path / "joined.h5ad")
    for again in (joined, ad.read_h5ad(tmp_path / "joined.h5ad")):
        known = again[: adata.n_obs].copy()
        np.testing.assert_array_equal(registry.encode(known).site("x"), cells.site("x"))


def test_spaces_at_the_ends_never_count():
    plain, spaced = make_adata(), make_adata()
    for key in ("drug", "line"):
        odd = np.arange(len(plain)) % 2 == 1
        spaced.obs[key] = np.where(odd, " " + plain.obs[key].astype(str) + "\u00a0", plain.obs[key])
    spaced.obs["split"] = "train "
    schema = make_schema(split_key="split", control=" control")
    registry = register(spaced, schema)[0]
    assert registry.conditions == register(plain, make_schema())[0].conditions
    assert registry.encode_covariates({"line": " u"})["x"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "pair",
    [("HeLa", "hela"), ("CD4 T", "CD4T"), ("CD4_T", "CD4 T"), ("IL-2", "IL\u20132"),
     ("caf\u00e9", "cafe\u0301"), ("10 \u00b5M", "10 \u03bcM"), ("1.0", "1"), ("A", "\uff21"),
     ("u", "u\u200b"), ("x\u22121", "x-1")],
)  # fmt: skip
def test_look_alikes_are_named(pair):
    assert look_alikes(["other", *pair]) == [list(pair)]
    for key in ("line", "drug"):
        adata = make_adata(treatments=("control", "A", "B"))
        names = dict(zip(sorted(set(adata.obs[key]) - {"control"}), pair, strict=True))
        adata.obs[key] = adata.obs[key].replace(names)
        with pytest.warns(UserWarning, match="look alike") as caught:
            register(adata, make_schema())
        message = str(only(caught, "look alike").message)
        assert f"obs column '{key}'" in message
        assert " and ".join(map(ascii, sorted(pair))) in message
    assert did_you_mean(pair[0], ["else", pair[1]]) == f" Did you mean {pair[1]!a}?"


def test_mend_of_look_alikes_mends():
    adata = make_adata(lines=("u", "U", "v"))
    with pytest.warns(UserWarning, match="look alike") as caught:
        register(adata, make_schema())
    exec(str(only(caught, "look alike").message).split("rename them: ")[1], {"adata": adata})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(register(adata, make_schema())[0].covariates["line"]) == 2


def test_labels_that_differ_are_no_look_alikes():
    assert look_alikes(["A", "B", "A1", "A-1", "A+1", "10", "1", "0.1", "alpha", "\u03b1"]) == []


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("(+)-JQ1", ["(+)-JQ1"]),
        ("(+)-JQ1+Vorinostat", ["(+)-JQ1", "Vorinostat"]),
        ("ENMD-2076 L-(+)-Tartaric acid", ["ENMD-2076 L-(+)-Tartaric acid"]),
        ("C[N+](C)(C)CC + (\u00b1)-B", ["C[N+](C)(C)CC", "(\u00b1)-B"]),
        ("a{x+[y+z)]}+b", ["a{x+[y+z)]}", "b"]),
        ("A(+B", ["A(", "B"]),
        ("A)+(B", ["A)", "(B"]),
        ("A+", ["A", ""]),
    ],
)
def test_a_separator_in_brackets_is_part_of_a_name(label, parts):
    assert split_parts(label, "+") == parts
    assert split_parts(label, None) == [label]


def test_a_separator_may_be_made_of_brackets():
    assert split_parts("A(+)B", "(+)") == ["A", "B"]
    assert [is_balanced(name) for name in ("a(b)", "a(", ")a(", "[(])", "")] == [
        True, False, False, False, True
    ]  # fmt: skip


def test_drugs_with_a_plus_in_their_names():
    adata = make_adata(treatments=("DMSO", "(+)-JQ1", "C[N+](C)C", "(+)-JQ1+C[N+](C)C"))
    registry = register(adata, make_schema(control="DMSO"))[0]
    assert registry.agents == ("(+)-JQ1", "C[N+](C)C")
    assert registry.encode_treatment("C[N+](C)C + (+)-JQ1").tolist() == [1, 1]


def test_a_broken_bracket_is_asked_about():
    adata = make_adata(treatments=("control", "A", "B(x+y"))
    with pytest.raises(SchemaError, match=r"'B\(x\+y' reads as a combination of .*'B\(x' never"):
        register(adata, make_schema())
    assert register(adata, make_schema(separator=None))[0].agents == ("A", "B(x+y")
    alone = make_adata(treatments=("control", "B(x", "y", "B(x+y"))
    assert register(alone, make_schema())[0].agents == ("B(x", "y")


def test_parts_that_occur_nowhere_else_are_a_warning():
    adata = make_adata(treatments=("control", "A", "Na+/K+ ATPase"))
    with pytest.warns(UserWarning, match="such as '/K', 'ATPase', 'Na', occur in no other label"):
        register(adata, make_schema())


def test_several_controls_are_one():
    adata = make_adata(treatments=("DMSO", "PBS", "A", "A+PBS", "B"))
    schema = make_schema(control=["DMSO", "PBS"])
    assert (schema.control, schema.other_controls) == ("DMSO", ("PBS",))
    registry, cells = register(adata, schema)
    assert registry.treatments == ("DMSO", "A", "B")
    untreated = adata.obs["drug"].isin(["DMSO", "PBS"]).to_numpy()
    np.testing.assert_array_equal(cells.site("t").sum(dim=1) == 0, untreated)
    assert registry.canonical("PBS") == "DMSO"
    assert Registry.from_json_dict(registry.to_json_dict()) == registry
    with pytest.raises(SchemaError, match="other_controls 'PBS' without control"):
        make_schema(control=None, other_controls=["PBS"])
    with pytest.warns(UserWarning, match=r"'PBS' looks like .* pass other_controls=\['PBS'\]"):
        register(adata, make_schema(control="DMSO"))


@pytest.mark.parametrize("control", [[], "", ["DMSO", " "], np.nan])
def test_a_control_without_a_name(control):
    with pytest.raises(SchemaError, match="control is .*expected a label of untreated cells"):
        make_schema(control=control)


def _published():
    """Columns as GEARS and CPA publish them: A+ctrl, and a 1 for the dose of everything."""
    adata = make_adata(treatments=("ctrl", "A+ctrl", "ctrl+B", "A+B"))
    adata.obs["dose_val"] = ["+".join("1" * len(d.split("+"))) for d in adata.obs["drug"]]
    return adata, make_schema(control="ctrl", dose_key="dose_val")


def test_gears_and_cpa_columns_work_as_published():
    adata, schema = _published()
    registry, cells = register(adata, schema)
    assert registry.agents == ("A", "B")
    assert registry.treatments == ("ctrl", "A", "A+B", "B")
    rows = {"ctrl": [0, 0], "A+ctrl": [1, 0], "ctrl+B": [0, 1], "A+B": [1, 1]}
    np.testing.assert_array_equal(cells.site("t"), [rows[drug] for drug in adata.obs["drug"]])
    again = Registry.from_json_dict(registry.to_json_dict())
    assert again.encode_treatment("A+ctrl", "1+1").tolist() == [1, 0]
    assert again.encode_treatment("ctrl", 1).tolist() == again.encode_treatment("ctrl").tolist()
    controls = adata[adata.obs["drug"] == "ctrl"].copy()
    assert (again.encode(controls).site("t") == 0).all()
    with pytest.raises(SchemaError, match="the control 'ctrl' has the dose 2"):
        again.encode_treatment("A+ctrl", "1+2")


def test_a_dose_of_some_controls_only_is_a_mistake():
    adata, schema = _published()
    cell = adata.obs_names[adata.obs["drug"] == "ctrl"][0]
    adata.obs.loc[cell, "dose_val"] = "0"
    with pytest.raises(SchemaError, match="the control 'ctrl' has the dose 1"):
        register(adata, schema)
