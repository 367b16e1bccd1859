"""What is learnt from a data set, how queries are encoded, and how cells are split."""

import json
from dataclasses import FrozenInstanceError

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from data_helpers import make_adata, make_schema

from pyro_fcr.data import Registry, Schema, register, split_cells

DOSES = {"control": 0, "A": 0.5, "B": 3, "A+B": "1+30"}


def _dosed():
    """`A` at 0.5 and 1, `B` at 3 and 30, as text, which combinations need."""
    adata = make_adata()
    adata.obs["dose"] = adata.obs["drug"].map(DOSES).astype(str)
    return adata


@pytest.mark.parametrize("keys", ["line", ["line"], ("line",)])
def test_covariate_keys_become_a_tuple(keys):
    schema = Schema(treatment_key="drug", control="control", covariate_keys=keys)
    assert schema.covariate_keys == ("line",)
    assert schema == make_schema(min_cells=5)
    with pytest.raises(FrozenInstanceError):
        schema.control = "DMSO"


def test_schema_takes_keywords_only():
    with pytest.raises(TypeError):
        Schema("drug", "control", "line")


def has(registry, treatment, dose, levels):
    """Whether the registry has a condition of six cells."""
    asked = (treatment, dose, levels, 6)
    found = [(c.treatment, c.dose, c.covariates, c.n_cells) for c in registry.conditions]
    return asked in found


def test_registry_holds_what_the_data_have():
    adata = make_adata()
    registry = register(adata, make_schema())[0]
    assert registry.genes == ("g0", "g1", "g2", "g3", "g4")
    assert registry.agents == ("A", "B")
    assert registry.covariates == {"line": ("u", "v")}
    assert registry.doses == {}
    assert registry.treatments == ("control", "A", "A+B", "B")
    assert registry.widths == {"x": 2, "t": 2, "y": 5}
    assert registry.target_sum == np.median(adata.X.sum(axis=1))
    assert has(registry, "A+B", (), {"line": "v"})
    assert len(registry.conditions) == 8


def test_conditions_of_the_prior_share_one_control():
    adata = make_adata()
    assert register(adata, make_schema())[0].n_prior_conditions == 3 * 2 + 1
    treated = adata[adata.obs["drug"] != "control"].copy()
    assert register(treated, make_schema(control=None))[0].n_prior_conditions == 3 * 2


def test_conditions_differ_by_dose():
    adata = _dosed()
    adata.obs.loc[(adata.obs["drug"] == "A") & (adata.obs["line"] == "u"), "dose"] = "1"
    registry = register(adata, make_schema(dose_key="dose"))[0]
    assert has(registry, "A", (1.0,), {"line": "u"})
    assert has(registry, "A", (0.5,), {"line": "v"})
    assert has(registry, "A+B", (1.0, 30.0), {"line": "v"})
    assert has(registry, "control", (), {"line": "v"})


def test_doses_of_a_label_count_together():
    adata = _dosed()
    adata.obs.loc[(adata.obs["drug"] == "A") & (adata.obs["line"] == "u"), "dose"] = "1"
    registry = register(adata, make_schema(dose_key="dose", min_cells=12))[0]
    assert [each.n_cells for each in registry.conditions if each.treatment == "A"] == [6, 6]


@pytest.mark.parametrize("dose_key", [None, "dose"])
def test_json_round_trip(dose_key):
    adata = _dosed()
    registry = register(adata, make_schema(dose_key=dose_key))[0]
    plain = registry.to_json_dict()
    text = json.dumps(plain, allow_nan=False)
    assert json.loads(text) == plain
    again = Registry.from_json_dict(json.loads(text))
    assert again == registry
    assert again.schema == registry.schema
    np.testing.assert_array_equal(again.encode(adata).site("t"), registry.encode(adata).site("t"))
    assert again.is_extrapolated("A", {"line": "u"}, dose=0.5 if dose_key else None) is False


@pytest.mark.parametrize("label", ["A+B", "B+A", " B + A ", "A+control+B"])
def test_order_and_control_do_not_change_a_combination(label):
    registry = register(make_adata(), make_schema())[0]
    assert registry.canonical(label) == "A+B"
    assert registry.encode_treatment(label).tolist() == [1, 1]
    assert not registry.is_extrapolated(label, {"line": "u"})


@pytest.mark.parametrize(
    ("label", "canonical", "row"),
    [
        ("A", "A", [1, 0]),
        ("control+B", "B", [0, 1]),
        ("B+control", "B", [0, 1]),
        ("control", "control", [0, 0]),
        ("control+control", "control", [0, 0]),
    ],
)
def test_single_agents_and_control(label, canonical, row):
    registry = register(make_adata(), make_schema())[0]
    assert registry.canonical(label) == canonical
    row_of_label = registry.encode_treatment(label)
    assert row_of_label.dtype == np.float32
    assert row_of_label.tolist() == row


def test_spellings_in_the_data_are_merged():
    adata = make_adata()
    respelt = adata.copy()
    drug = adata.obs["drug"].astype(str).to_numpy()
    odd = np.arange(len(adata)) % 2 == 1
    drug[(drug == "A+B") & odd] = "B+A"
    drug[(drug == "A") & odd] = "control+A"
    respelt.obs["drug"] = drug
    assert register(respelt, make_schema())[0] == register(adata, make_schema())[0]


def test_separator_may_be_another_or_none():
    adata = make_adata()
    adata.obs["drug"] = adata.obs["drug"].str.replace("+", " & ", regex=False)
    assert register(adata, make_schema(separator="&"))[0].agents == ("A", "B")
    registry = register(adata, make_schema(separator=None))[0]
    assert registry.agents == ("A", "A & B", "B")
    assert registry.encode_treatment("A & B").tolist() == [0, 1, 0]


def test_control_with_a_separator_in_its_name():
    adata = make_adata()
    adata.obs["drug"] = adata.obs["drug"].replace("control", "DMSO+PBS")
    registry = register(adata, make_schema(control="DMSO+PBS"))[0]
    assert registry.agents == ("A", "B")


def test_without_control_every_label_is_an_agent():
    adata = make_adata(treatments=("A", "B", "C"))
    registry = register(adata, make_schema(control=None))[0]
    assert registry.agents == ("A", "B", "C")
    assert registry.encode(adata).site("t").sum(dim=1).tolist() == [1.0] * len(adata)


def test_labels_need_not_be_text():
    adata = make_adata()
    adata.obs["donor"] = np.arange(len(adata)) % 2
    adata.obs["drug"] = pd.Categorical(
        adata.obs["drug"], categories=["never", "control", "A", "B", "A+B"]
    )
    registry = register(adata, make_schema(covariate_keys="donor"))[0]
    assert registry.covariates == {"donor": ("0", "1")}
    assert registry.agents == ("A", "B")
    assert registry.encode_covariates({"donor": 1})["x"].tolist() == [0, 1]
    text = adata.copy()
    text.obs = adata.obs.astype(str).astype(object)
    np.testing.assert_array_equal(registry.encode(adata).site("t"), registry.encode(text).site("t"))


def test_dose_scale():
    registry = register(_dosed(), make_schema(dose_key="dose"))[0]
    assert registry.doses == {"A": (0.5, 1.0), "B": (3.0, 30.0)}
    for dose, share in [(1, 1), (0.5, np.log(2) / np.log(3)), (2, np.log(5) / np.log(3))]:
        np.testing.assert_allclose(registry.encode_treatment("A", dose), [share, 0], rtol=1e-6)
    low = np.log(2) / np.log(11)
    np.testing.assert_allclose(registry.encode_treatment("B", 3), [0, low], rtol=1e-6)
    np.testing.assert_allclose(registry.encode_treatment("A+B", "1+3"), [1, low], rtol=1e-6)
    assert registry.encode_treatment("control", 0).tolist() == [0, 0]
    assert registry.encode_treatment("control").tolist() == [0, 0]


@pytest.mark.parametrize(
    ("label", "dose"),
    [
        ("A+B", "1+30"),
        ("B+A", "30+1"),
        ("B+A", " 30 + 1 "),
        ("B+A", (30, 1)),
        ("A+B", "1e+0+3e+1"),
        ("A+control+B", "1+0+30"),
        ("A+control+B", "1++30"),
    ],
)
def test_doses_follow_the_parts_of_the_label(label, dose):
    registry = register(_dosed(), make_schema(dose_key="dose"))[0]
    np.testing.assert_allclose(registry.encode_treatment(label, dose), [1, 1])
    assert not registry.is_extrapolated(label, {"line": "u"}, dose=dose)


def test_one_number_is_the_dose_of_each_part():
    registry = register(_dosed(), make_schema(dose_key="dose"))[0]
    row = registry.encode_treatment("A+B", 3)
    np.testing.assert_array_equal(row, registry.encode_treatment("A+B", "3+3"))
    np.testing.assert_array_equal(
        registry.encode_treatment("A+control", 0.5), registry.encode_treatment("A", "0.5")
    )


def test_doses_in_the_data_follow_the_labels():
    adata = _dosed()
    cells = register(adata, make_schema(dose_key="dose"))[1]
    low_a, low_b = np.log(2) / np.log(3), np.log(2) / np.log(11)
    expected = {"control": (0, 0), "A": (low_a, 0), "B": (0, low_b), "A+B": (1, 1)}
    rows = np.array([expected[drug] for drug in adata.obs["drug"]])
    np.testing.assert_allclose(cells.site("t"), rows, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "category", "string", "object"])
def test_any_type_of_dose_column(dtype):
    adata = make_adata()
    adata.obs["dose"] = adata.obs["drug"].map({"control": 0, "A": 0.2, "B": 0.2, "A+B": 0.2})
    adata.obs["dose"] = adata.obs["dose"].astype(dtype)
    registry = register(adata, make_schema(dose_key="dose"))[0]
    assert registry.doses == {"A": (0.2, 0.2), "B": (0.2, 0.2)}
    assert registry.encode(adata).site("t").unique().tolist() == [0, 1]
    assert registry.encode_treatment("A").tolist() == [1, 0]
    assert not registry.is_extrapolated("A", {"line": "u"}, dose=np.float32(0.2))


@pytest.mark.parametrize("nothing", [np.nan, None, "", "nan", 0, "0"])
def test_control_has_no_dose(nothing):
    adata = make_adata()
    doses = [nothing if drug == "control" else 1.0 for drug in adata.obs["drug"]]
    adata.obs["dose"] = pd.Series(doses, index=adata.obs_names, dtype=object)
    registry = register(adata, make_schema(dose_key="dose"))[0]
    assert registry.doses == {"A": (1, 1), "B": (1, 1)}
    assert registry.encode(adata).n_levels["t"] == 4


def test_extrapolation_is_a_pair_or_a_dose_not_seen():
    adata = _dosed()
    adata = adata[~((adata.obs["drug"] == "B") & (adata.obs["line"] == "v"))].copy()
    registry = register(adata, make_schema(dose_key="dose"))[0]
    assert not registry.is_extrapolated("B", {"line": "u"}, dose=3)
    assert registry.is_extrapolated("B", {"line": "v"}, dose=3)
    assert registry.is_extrapolated("B", {"line": "u"}, dose=31)
    assert registry.is_extrapolated("B", {"line": "u"}, dose=2.9)
    assert not registry.is_extrapolated("B", {"line": "u"}, dose=10)
    assert not registry.is_extrapolated("control", {"line": "v"})


def test_unseen_combination_of_known_agents_is_encoded():
    adata = make_adata(treatments=("control", "A", "B", "C", "A+B"))
    registry = register(adata[adata.obs["drug"] != "A+B"].copy(), make_schema())[0]
    assert registry.encode_treatment("C+A").tolist() == [1, 0, 1]
    assert registry.is_extrapolated("A+C", {"line": "u"})
    assert registry.encode(adata).site("t").max(dim=0).values.tolist() == [1, 1, 1]


def test_only_training_cells_count():
    adata = _dosed()
    test = (adata.obs["drug"] == "A+B").to_numpy()
    adata.obs["split"] = np.where(test, "test", "train")
    adata.obs.iloc[np.flatnonzero(~test)[:3], adata.obs.columns.get_loc("split")] = "valid"
    adata.X[test] *= 100
    registry = register(adata, make_schema(dose_key="dose", split_key="split"))[0]
    assert registry.doses == {"A": (0.5, 0.5), "B": (3, 3)}
    assert registry.treatments == ("control", "A", "B")
    assert sum(each.n_cells for each in registry.conditions) == (~test).sum()
    assert registry.target_sum == np.median(adata.X[~test].sum(axis=1))
    assert registry.is_extrapolated("A+B", {"line": "u"}, dose="0.5+3")
    assert len(registry.encode(adata)) == len(adata)


def _crossed(sizes):
    pairs = [(t, line) for (t, line), n in sizes.items() for _ in range(n)]
    return pd.DataFrame(pairs, columns=["drug", "line"])


def test_split_is_drawn_evenly_over_the_conditions():
    sizes = {("control", "u"): 100, ("A", "u"): 33, ("A", "v"): 7, ("B", "v"): 1, ("B", "u"): 2}
    obs = _crossed(sizes).sample(frac=1, random_state=0)
    split = split_cells(obs, make_schema(), heldout_fraction=0.2)
    assert sorted([*split.train, *split.heldout]) == list(range(len(obs)))
    assert split.train.dtype == split.heldout.dtype == np.int64
    assert (np.diff(split.train) > 0).all()
    drawn = obs.iloc[split.heldout].groupby(["drug", "line"]).size()
    for pair, n in sizes.items():
        assert abs(drawn.get(pair, 0) - 0.2 * n) < 1
    assert ("B", "v") not in drawn.index


def test_small_conditions_give_their_share_together():
    obs = _crossed({(f"drug{i}", "u"): 4 for i in range(100)})
    split = split_cells(obs, make_schema(control=None), heldout_fraction=0.1)
    assert len(split.heldout) == 40
    assert obs.iloc[split.train]["drug"].nunique() == 100


@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_every_condition_keeps_a_training_cell(fraction):
    obs = _crossed({("control", "u"): 2, ("A", "u"): 3, ("A", "v"): 1})
    split = split_cells(obs, make_schema(), heldout_fraction=fraction)
    assert len(obs.iloc[split.train].drop_duplicates()) == 3


def test_doses_are_conditions_of_the_split():
    obs = _crossed({("control", "u"): 10, ("A", "u"): 60})
    obs["dose"] = [0] * 10 + [1] * 50 + [10] * 10
    split = split_cells(obs, make_schema(dose_key="dose"), heldout_fraction=0.1)
    assert obs.iloc[split.heldout].groupby("dose").size().to_dict() == {0: 1, 1: 5, 10: 1}


def test_split_follows_the_seed():
    obs = make_adata().obs
    one, same, other = (split_cells(obs, make_schema(), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.heldout, same.heldout)
    assert not np.array_equal(one.heldout, other.heldout)


def test_nothing_held_out():
    obs = make_adata().obs
    split = split_cells(obs, make_schema(), heldout_fraction=0)
    assert len(split.heldout) == 0
    np.testing.assert_array_equal(split.train, np.arange(len(obs)))


def test_labelled_split_is_taken_as_it_is():
    obs = make_adata().obs
    obs["split"] = np.resize(["train", "valid", "test", "ood"], len(obs))
    split = split_cells(obs, make_schema(split_key="split"), heldout_fraction=0.5)
    np.testing.assert_array_equal(split.train, np.arange(0, len(obs), 4))
    np.testing.assert_array_equal(split.heldout, np.arange(1, len(obs), 4))


@pytest.mark.parametrize("words", [("train", "val"), ("Training", "Validation"), ("TRAIN ", "Val")])
def test_words_for_the_parts_of_a_split(words):
    obs = make_adata().obs
    obs["split"] = np.resize([*words, "test"], len(obs))
    split = split_cells(obs, make_schema(split_key="split"))
    np.testing.assert_array_equal(split.train, np.arange(0, len(obs), 3))
    np.testing.assert_array_equal(split.heldout, np.arange(1, len(obs), 3))


def test_heldout_is_drawn_from_train_without_valid():
    obs = make_adata().obs
    obs["split"] = np.resize(["train", "train", "test"], len(obs))
    split = split_cells(obs, make_schema(split_key="split"), heldout_fraction=0.25)
    assert len(split.heldout) == 8
    used = sorted([*split.train, *split.heldout])
    np.testing.assert_array_equal(used, np.flatnonzero(obs["split"] == "train"))


def test_a_view_registers_like_its_copy():
    adata = make_adata()
    view = adata[adata.obs["line"] == "u", ["g1", "g0"]]
    registry = register(view, make_schema())[0]
    assert registry == register(view.copy(), make_schema())[0]
    assert registry.genes == ("g1", "g0")
    assert isinstance(view, ad.AnnData)
    assert view.is_view
