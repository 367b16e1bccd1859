"""A model owns its cells: edits of an AnnData in place do not reach them, and are noticed."""

import logging
import pickle

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from cli_helpers import succeed
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, api
from pyro_fcr.data import SchemaError, checks, encoding, ownership, register
from pyro_fcr.data.stored import StoredMatrix
from pyro_fcr.training import batches

PLAN = {"align_at": None, "max_epochs": 2, "batch_size": 64, "progress": False, "device": "cpu"}
BLOCKS = ("z_x", "z_tx", "z_t")


def subset(adata):
    adata._inplace_subset_obs(np.arange(adata.n_obs) % 3 != 0)


def reorder(adata):
    adata._inplace_subset_obs(np.random.default_rng(1).permutation(adata.n_obs))


def relabel(adata):
    adata.obs["drug"] = np.roll(adata.obs["drug"].to_numpy(), 1)


def normalise(adata):
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)


def drop_column(adata):
    del adata.obs["drug"]


EDITS = [subset, reorder, relabel, normalise, drop_column]


@pytest.fixture
def adata():
    return simulate(300, 12)


@pytest.fixture(scope="module")
def untouched():
    fcr = FCR(simulate(300, 12), SCHEMA)
    fcr.fit(**PLAN)
    return fcr


def latents(fcr, adata=None):
    names = fcr.source(adata).obs_names
    return {b: pd.DataFrame(fcr.get_latent_representation(b, adata), names) for b in BLOCKS}


def assert_same_latents(found, wanted):
    for block, table in found.items():
        np.testing.assert_allclose(table, wanted[block].loc[table.index], atol=1e-5)


@pytest.mark.parametrize("edit", EDITS)
def test_edits_before_a_fit_do_not_reach_it(adata, untouched, edit, tmp_path):
    fcr = FCR(adata, SCHEMA)
    edit(adata)
    history = fcr.fit(**PLAN)
    assert history["heldout/elbo"].equals(untouched.history["heldout/elbo"])
    assert_same_latents(latents(fcr), latents(untouched))
    fcr.save(tmp_path / "model")
    named = FCR.load(tmp_path / "model")._named_split
    assert named.equals(untouched._split_by_name())


@pytest.mark.parametrize("edit", EDITS)
def test_edits_after_a_fit_do_not_reach_the_models_own_cells(adata, untouched, edit, tmp_path):
    fcr = FCR(adata, SCHEMA)
    fcr.fit(**PLAN)
    before = fcr.counterfactual(treatment="drug1", seed=3)
    edit(adata)
    assert_same_latents(latents(fcr), latents(untouched))
    after = fcr.counterfactual(treatment="drug1", seed=3)
    assert after.obs.equals(before.obs)
    assert (after.X != before.X).nnz == 0
    split = pd.Index(fcr.obs_names)[fcr.split.heldout]
    assert set(split) == set(untouched.obs_names[untouched.split.heldout])
    fcr.save(tmp_path / "model")
    assert FCR.load(tmp_path / "model")._named_split.equals(untouched._split_by_name())


@pytest.mark.parametrize("edit", [subset, reorder])
def test_cells_that_are_passed_get_their_own_latents_whatever_their_order(adata, edit, caplog):
    fcr = FCR(adata, SCHEMA)
    fcr.fit(**PLAN)
    own = latents(fcr)
    edit(adata)
    fcr.add_latents_to(adata, encoding="labelled")
    assert_same_latents(
        {b: pd.DataFrame(adata.obsm[f"X_fcr_{b}"], adata.obs_names) for b in BLOCKS}, own
    )
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    split = fcr.split_of(adata)
    assert set(adata.obs_names[split.train]) <= set(fcr.obs_names[fcr.split.train])


def test_new_labels_of_known_cells_count_and_are_named(adata, caplog):
    fcr = FCR(adata, SCHEMA)
    own = latents(fcr)
    relabel(adata)
    moved = adata.obs_names[adata.obs["drug"] != fcr.source(None).obs["drug"]]
    found = latents(fcr, adata)
    (said,) = {r.getMessage() for r in caplog.records if r.levelno == logging.WARNING}
    assert f"{len(moved)} of 300 cells" in said
    assert "other values of t" in said
    assert repr(str(moved[0])) in said
    assert not np.allclose(found["z_t"], own["z_t"].loc[found["z_t"].index])


def test_new_counts_of_known_cells_count_and_are_named(adata, caplog):
    fcr = FCR(adata, SCHEMA)
    adata.X[17] += 1
    fcr.get_latent_representation("z_x", adata)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "1 of 300 cells" in said
    assert "expression, first 'cell17'" in said


def test_cells_of_other_names_are_no_change(adata, caplog):
    fcr = FCR(adata, SCHEMA)
    other = simulate(50, 12, seed=5)
    other.obs_names = [f"new{i}" for i in range(50)]
    fcr.get_latent_representation("z_x", other)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_normalised_cells_are_refused_with_the_way_out(adata):
    fcr = FCR(adata, SCHEMA)
    normalise(adata)
    with pytest.raises(
        SchemaError, match="log-normalised.*keeps a copy of its own cells: leave out"
    ):
        fcr.add_latents_to(adata)
    assert not adata.obsm


@pytest.mark.parametrize(
    ("edit", "named"),
    [(subset, "100 gone"), (relabel, "with another 'drug'"), (drop_column, "gone")],
)
def test_a_fit_says_that_the_object_has_changed_since(adata, edit, named, caplog):
    fcr = FCR(adata, SCHEMA)
    edit(adata)
    fcr.fit(**PLAN)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert named in said
    assert "300 cells as they were then" in said


def test_edits_of_columns_that_the_schema_does_not_name_are_silent(adata, caplog):
    fcr = FCR(adata, SCHEMA)
    adata.obs["leiden"] = "0"
    adata.obsm["X_pca"] = np.zeros((300, 2))
    fcr.fit(**PLAN)
    fcr.add_latents_to(adata)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_model_does_not_write_into_the_data_nor_share_memory_with_them(adata):
    before = adata.copy()
    fcr = FCR(adata, SCHEMA)
    fcr.fit(**PLAN)
    fcr.counterfactual(treatment="drug1")
    assert adata.obs.equals(before.obs)
    assert np.array_equal(adata.X, before.X)
    assert not np.shares_memory(adata.X, fcr.source(None).X)


def test_data_given_to_load_are_copied_too(adata, tmp_path):
    FCR(adata, SCHEMA).save(tmp_path / "model")
    fcr = FCR.load(tmp_path / "model", adata=adata)
    wanted = latents(FCR.load(tmp_path / "model", adata=adata))
    subset(adata)
    assert len(fcr.obs_names) == 300
    assert_same_latents(latents(fcr), wanted)


def test_a_model_can_be_pickled(adata):
    fcr = FCR(adata, SCHEMA)
    again = pickle.loads(pickle.dumps(fcr))
    assert_same_latents(latents(again), latents(fcr))


# a second fit


def state(fcr):
    return torch.cat([p.detach().flatten() for p in fcr.model.parameters()])


def test_a_second_fit_starts_anew(adata, caplog):
    caplog.set_level(logging.INFO)
    fcr, fresh = FCR(adata, SCHEMA), FCR(adata, SCHEMA)
    fcr.fit(**PLAN, seed=5)
    history = fcr.fit(**PLAN, seed=1)
    wanted = fresh.fit(**PLAN, seed=1)
    assert torch.equal(state(fcr), state(fresh))
    assert history["heldout/elbo"].equals(wanted["heldout/elbo"])
    assert any("fit(warm_start=True) would go on" in r.getMessage() for r in caplog.records)
    assert history.attrs["start"] == "anew from initial parameters"
    assert "anew from initial parameters" in repr(fcr)
    assert wanted.attrs["start"] == "from initial parameters"


def test_a_warm_start_goes_on_and_keeps_the_split(adata):
    fcr = FCR(adata, SCHEMA)
    fcr.fit(**PLAN, seed=0)
    split, before = fcr.split, state(fcr)
    still = {**PLAN, "max_epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    history = fcr.fit(**still, seed=1, warm_start=True)
    assert torch.allclose(state(fcr), before, atol=1e-6)
    assert np.array_equal(fcr.split.train, split.train)
    assert np.array_equal(fcr.split.heldout, split.heldout)
    assert history.attrs["start"] == "went on from 2 epochs"
    with pytest.raises(ValueError, match="leave out split="):
        fcr.fit(**still, warm_start=True, split=split)


def test_a_fit_that_is_refused_changes_nothing_and_one_that_failed_is_started_anew(
    adata, monkeypatch
):
    fcr, fresh = FCR(adata, SCHEMA), FCR(adata, SCHEMA)
    history, before = fcr.fit(**PLAN), state(fcr)
    with pytest.raises(ValueError, match="heldout_fraction"):
        fcr.fit(**PLAN, heldout_fraction=2.0)
    assert torch.equal(state(fcr), before)
    assert fcr.history is history
    with monkeypatch.context() as broken:
        broken.setattr(api, "fit", fail_after_changes)
        with pytest.raises(RuntimeError, match="in the middle"):
            fcr.fit(**PLAN, seed=1)
    assert fcr.history is None
    fcr.fit(**PLAN, seed=2)
    fresh.fit(**PLAN, seed=2)
    assert torch.equal(state(fcr), state(fresh))


def fail_after_changes(objective, *_, **__):
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1.0)
    raise RuntimeError("in the middle")


def test_a_loaded_model_goes_on_with_its_split_by_name(adata, tmp_path):
    fcr = FCR(adata, SCHEMA)
    fcr.fit(**PLAN)
    fcr.save(tmp_path / "model")
    trained = set(fcr.obs_names[fcr.split.train])
    reorder(adata)
    again = FCR.load(tmp_path / "model", adata=adata)
    again.fit(**PLAN, warm_start=True)
    assert set(again.obs_names[again.split.train]) == trained


# one look at the matrix


def test_the_matrix_is_read_once_and_checked_once(adata, monkeypatch):
    seen = counted(monkeypatch)
    FCR(adata, SCHEMA)
    assert seen == {"read_matrix": 1, "check_values": 1, "check_cells_expressed": 1}
    seen.clear()
    register(adata, SCHEMA)
    assert seen == {"read_matrix": 1, "check_values": 1, "check_cells_expressed": 1}


def test_the_command_fit_reads_the_matrix_once_and_checks_it_once(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    seen = counted(monkeypatch)
    succeed("fit", tmp_path / "cells.h5ad", "--treatment-key", "drug", "--control", "control",
            "--covariate-key", "line", "--out", tmp_path / "model", "--max-epochs", 1)  # fmt: skip
    assert seen == {"blocks": 1, "check_values": 1, "check_cells_expressed": 1}


def test_no_question_about_the_own_cells_reads_them_again(untouched, monkeypatch):
    seen = counted(monkeypatch)
    untouched.counterfactual(treatment="drug1")
    untouched.get_latent_representation("z_x")
    untouched.elbo()
    untouched.dimension_use()
    assert seen == {}


def test_sums_over_counts_are_made_for_training_only(adata, monkeypatch):
    made = []
    monkeypatch.setattr(batches, "Summaries", lambda *_, **__: made.append(1))
    fcr = FCR(adata, SCHEMA)
    fcr.counterfactual(treatment="drug1")
    fcr.get_latent_representation("z_x")
    assert made == []


def counted(monkeypatch):
    """Count calls of what reads and checks the matrix, wherever it is called from."""
    seen = {}

    def counting(name, function):
        def call(*args, **kwargs):
            seen[name] = seen.get(name, 0) + 1
            return function(*args, **kwargs)

        return call

    for module in (encoding, ownership):
        monkeypatch.setattr(module, "read_matrix", counting("read_matrix", module.read_matrix))
    reading = counting("blocks", StoredMatrix.blocks)
    monkeypatch.setattr(StoredMatrix, "blocks", reading)
    for name in ("check_values", "check_cells_expressed"):
        monkeypatch.setattr(checks, name, counting(name, getattr(checks, name)))
    return seen
