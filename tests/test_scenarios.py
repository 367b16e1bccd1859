"""What is held out, what stays, and leaks planted to be found."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_fcr.data import Schema, split_cells
from pyro_fcr.data.pairs import Pair, read_layout
from pyro_fcr.data.scenarios import (
    Scenario,
    random_cells,
    unseen_contexts,
    unseen_pairs,
    unseen_treatments,
)

SCHEMA = Schema(treatment_key="drug", control="none", covariate_keys="line")
SIZES = {
    ("u", "none"): 6,
    ("u", "a"): 5,
    ("u", "b"): 4,
    ("v", "none"): 6,
    ("v", "a"): 5,
    ("v", "b+a"): 5,
    ("v", "only"): 4,
    ("w", "a"): 3,  # a context without controls
}


@pytest.fixture
def adata():
    obs = pd.DataFrame(
        [key for key, n in SIZES.items() for _ in range(n)], columns=["line", "drug"]
    )
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = np.random.default_rng(0).poisson(4.0, (len(obs), 20))
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs)


def rows(adata, line, drug):
    return ((adata.obs.line == line) & (adata.obs.drug == drug)).to_numpy()


def moved(scenario, cells, *, train):
    """The scenario with cells put into training, or into test."""
    masks = {"train": scenario.train & ~cells, "test": scenario.test & ~cells}
    masks["train" if train else "test"] |= cells
    return dataclasses.replace(scenario, **masks)


def test_each_pair_in_turn_with_reasons_for_the_others(adata):
    found = unseen_pairs(adata.obs, SCHEMA)
    assert [s.pairs for s in found.made] == [(Pair("a", ("u",)),), (Pair("a", ("v",)),)]
    for scenario, line in zip(found.made, "uv", strict=True):
        np.testing.assert_array_equal(scenario.test, rows(adata, line, "a"))
        np.testing.assert_array_equal(scenario.train, ~scenario.test)
        scenario.check(adata, SCHEMA)
    assert found.left_out == {
        "'a' in w": "its context w has fewer than 4 control cells",
        "'a+b' in v": "no other context has 'a+b'",
        "'b' in u": "no other context has 'b'",
        "'only' in v": "no other context has 'only'",
    }


def test_each_treatment_in_turn_needs_its_agents(adata):
    found = unseen_treatments(adata.obs, SCHEMA)
    names = [s.pairs[0].treatment for s in found.made]
    assert names == ["a", "a+b", "b"]
    first = found.made[0]
    assert not (first.train & (adata.obs.drug == "a")).any(), "training saw the treatment somewhere"
    assert {pair.context for pair in first.pairs} == {("u",), ("v",)}
    assert set(first.labels[rows(adata, "w", "a")]) == {"left out"}
    assert "features" in found.left_out["'only' in v"]
    described = dataclasses.replace(
        SCHEMA, treatment_features={"only": [1.0], "a": [0.5], "b": [0.0]}
    )
    assert "only" in [s.pairs[0].treatment for s in unseen_treatments(adata.obs, described).made]
    for scenario in found.made:
        scenario.check(adata, SCHEMA)


def test_each_context_in_turn_keeps_its_controls(adata):
    found = unseen_contexts(adata.obs, SCHEMA)
    scenario = next(s for s in found.made if s.pairs[0].context == ("v",))
    inside = (adata.obs.line == "v").to_numpy()
    np.testing.assert_array_equal(scenario.train[inside], rows(adata, "v", "none")[inside])
    assert scenario.pairs == (Pair("a", ("v",)),)
    assert set(scenario.labels[rows(adata, "v", "only")]) == {"left out"}
    assert "'only' in v" in found.left_out
    scenario.check(adata, SCHEMA)


def test_random_cells_come_from_every_judged_pair_and_repeat(adata):
    scenario = random_cells(adata.obs, SCHEMA, share=0.4, seed=1).made[0]
    share = {key: int(scenario.test[rows(adata, *key)].sum()) for key in SIZES}
    assert share == {
        ("u", "none"): 2, ("u", "a"): 2, ("u", "b"): 2, ("v", "none"): 2, ("v", "a"): 2,
        ("v", "b+a"): 2, ("v", "only"): 2, ("w", "a"): 0,
    }  # fmt: skip
    scenario.check(adata, SCHEMA)
    again = random_cells(adata.obs, SCHEMA, share=0.4, seed=1).made[0]
    other = random_cells(adata.obs, SCHEMA, share=0.4, seed=2).made[0]
    np.testing.assert_array_equal(scenario.test, again.test)
    assert (scenario.test != other.test).any()
    assert random_cells(adata.obs, SCHEMA, share=0.05).made == ()
    with pytest.raises(ValueError, match="share is 1"):
        random_cells(adata.obs, SCHEMA, share=1)


def test_labels_are_a_split_column(adata):
    scenario = unseen_treatments(adata.obs, SCHEMA).made[0]
    adata.obs["split"] = scenario.labels
    split = split_cells(
        adata.obs, dataclasses.replace(SCHEMA, split_key="split"), heldout_fraction=0
    )
    np.testing.assert_array_equal(split.train, np.flatnonzero(scenario.train))


def test_doses_of_a_treatment_go_together(adata):
    adata.obs["dose"] = np.where(adata.obs.drug == "none", 0.0, 1.0 + np.arange(adata.n_obs) % 2)
    dosed = dataclasses.replace(SCHEMA, dose_key="dose")
    scenario = unseen_pairs(adata.obs, dosed).made[0]
    np.testing.assert_array_equal(scenario.test, rows(adata, "u", "a"))
    assert len(read_layout(adata.obs, dosed).pairs) == len(SIZES)


def test_masks_that_share_cells_are_refused_at_once(adata):
    scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
    with pytest.raises(ValueError, match="5 test cells are among the training cells"):
        dataclasses.replace(scenario, train=np.ones_like(scenario.train))
    with pytest.raises(ValueError, match="no cell in test"):
        dataclasses.replace(scenario, test=np.zeros_like(scenario.test))
    with pytest.raises(ValueError, match="boolean masks"):
        dataclasses.replace(scenario, test=scenario.test.astype(int))
    with pytest.raises(ValueError, match="boolean masks"):
        dataclasses.replace(scenario, test=scenario.test[1:])


@pytest.mark.parametrize(
    ("make", "cells", "message"),
    [
        (unseen_pairs, ("u", "a"), "1 training cells are of 'a' in u"),
        (unseen_treatments, ("w", "a"), "1 training cells are of 'a' in w"),
        (unseen_contexts, ("u", "b"), "1 training cells are of 'b' in u"),
    ],
)
def test_a_cell_of_what_is_held_out_in_training_is_found(adata, make, cells, message):
    scenario = make(adata.obs, SCHEMA).made[0]
    one = rows(adata, *cells) & (np.arange(adata.n_obs) == np.flatnonzero(rows(adata, *cells))[0])
    with pytest.raises(ValueError, match=message):
        moved(scenario, one, train=True).check(adata, SCHEMA)


def test_wrong_test_cells_and_missing_controls_are_found(adata):
    scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
    with pytest.raises(ValueError, match="test cells of 'b' in u, which is not held out"):
        moved(scenario, rows(adata, "u", "b"), train=False).check(adata, SCHEMA)
    no_controls = dataclasses.replace(scenario, train=scenario.train & ~rows(adata, "u", "none"))
    with pytest.raises(ValueError, match="no control cells of u are in training"):
        no_controls.check(adata, SCHEMA)
    extra = dataclasses.replace(scenario, pairs=(*scenario.pairs, Pair("b", ("u",))))
    with pytest.raises(ValueError, match="no test cells of 'b' in u"):
        extra.check(adata, SCHEMA)
    with pytest.raises(ValueError, match=r"made for 38 cells, but adata has 37"):
        scenario.check(adata[1:], SCHEMA)


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_cell_on_both_sides_is_found(adata, dense):
    scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
    test, train = np.flatnonzero(scenario.test)[1], np.flatnonzero(scenario.train)[-1]
    counts = adata.X.toarray()
    counts[train] = counts[test]
    adata.X = counts if dense else sparse.csr_matrix(counts)
    pair = f"'{adata.obs_names[test]}' = '{adata.obs_names[train]}'"
    with pytest.raises(ValueError, match=rf"1 test cells have the expression .*{pair}"):
        scenario.check(adata, SCHEMA)
    counts[:, 9:] = 0  # nine genes are too few to know a cell by
    adata.X = counts
    scenario.check(adata, SCHEMA)


def test_the_layer_is_looked_at_and_names_that_come_twice(adata):
    scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
    test, train = np.flatnonzero(scenario.test)[0], np.flatnonzero(scenario.train)[0]
    raw = adata.X.toarray()
    raw[train] = raw[test]
    adata.layers["raw"] = raw
    scenario.check(adata, SCHEMA)
    with pytest.raises(ValueError, match="duplicates leak"):
        scenario.check(adata, dataclasses.replace(SCHEMA, layer="raw"))
    names = adata.obs_names.to_numpy().copy()
    names[train] = names[test]
    adata.obs_names = names
    with pytest.raises(ValueError, match=f"1 cell names .* such as '{names[test]}'"):
        scenario.check(adata, SCHEMA)


def test_without_control_there_is_no_response(adata):
    with pytest.raises(ValueError, match=r"schema\.control is None"):
        unseen_pairs(adata.obs, dataclasses.replace(SCHEMA, control=None))


def test_names_say_what_is_held_out():
    masks = np.array([True, False]), np.array([False, True])
    pairs = tuple(Pair("a", (line, "d1")) for line in "uvwxy")
    name = Scenario("unseen treatment", pairs, *masks).name
    assert name == "unseen treatment: 'a' in u / d1, 'a' in v / d1, 'a' in w / d1, ... (5 in all)"


def test_a_share_of_the_controls_of_what_is_asked_is_held_out_too(adata):
    first, second = unseen_pairs(adata.obs, SCHEMA, controls=0.5, seed=3).made
    control = rows(adata, "u", "none")
    assert (first.test & control).sum() == (first.train & control).sum() == 3
    assert first.train[rows(adata, "v", "none")].all()
    assert not (second.test & control).any()
    first.check(adata, SCHEMA)
    other = unseen_pairs(adata.obs, SCHEMA, controls=0.5, seed=4).made[0]
    assert (other.test != first.test).any()
    with pytest.raises(ValueError, match="controls is 1; expected a share"):
        unseen_pairs(adata.obs, SCHEMA, controls=1)
