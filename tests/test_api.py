import copy
import json
import signal
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from conftest import NO_PENALTIES, SCHEMA, make_programs, simulate
from pyro import poutine
from safetensors.torch import load_file

from pyro_fcr import FCR, Architecture, QueryError, Schema, SchemaError
from pyro_fcr.data import Registry, register
from pyro_fcr.saving import Saved, read_model, write_model

# A training too short to be aligned: the blocks of an additive decoder stay apart all the same.
QUICK = {"decoder": "additive", "dropout": 0.0}
NEAR = 0.8  # correlations of responses: .87 to .92 over seeds; with another treatment's .21 to .33
SHORT = Architecture(n_x=4, n_t=3, n_tx=2, n_hidden=32, **QUICK)


@pytest.fixture(scope="module")
def fitted(adata, device):
    fcr = FCR(adata, SCHEMA, architecture=SHORT)
    plan = {"batch_size": 128, "learning_rate": 3e-3, "progress": False, "device": device}
    fcr.fit(max_epochs=40, weights=NO_PENALTIES, **plan)
    return fcr


def delta(counts, reference):
    def mean_log1p(x):
        x = x.toarray() if hasattr(x, "toarray") else x
        return np.log1p(1e3 * x / x.sum(axis=1, keepdims=True)).mean(axis=0)

    return mean_log1p(counts) - mean_log1p(reference)


def test_latents_have_one_row_per_cell_and_do_not_touch_the_data(fitted, adata):
    before = adata.copy()
    z_tx = fitted.get_latent_representation("z_tx")
    assert z_tx.shape == (adata.n_obs, 2)
    assert np.isfinite(z_tx).all()
    assert list(adata.obsm) == list(before.obsm) == []
    copied = adata.copy()
    fitted.add_latents_to(copied, encoding="labelled")
    assert sorted(copied.obsm) == ["X_fcr_z_t", "X_fcr_z_tx", "X_fcr_z_x"]
    np.testing.assert_array_equal(copied.obsm["X_fcr_z_tx"], z_tx)
    assert copied.uns["fcr"]["encoding"] == "labelled"
    with pytest.raises(ValueError, match="Unknown block 'z_y'.*z_x, z_tx, z_t"):
        fitted.get_latent_representation("z_y")


def test_latents_are_label_blind_unless_asked_for(fitted, adata):
    cells = adata.copy()
    fitted.add_latents_to(cells)
    blind = fitted.label_blind_latents()
    np.testing.assert_array_equal(cells.obsm["X_fcr_z_t"], blind["z_t"])
    assert cells.uns["fcr"]["encoding"] == "label-blind"
    same = fitted.get_latent_representation("z_t", encoding="label-blind")
    np.testing.assert_array_equal(same, blind["z_t"])
    with pytest.raises(ValueError, match="Unknown encoding 'blind'; expected label-blind or lab"):
        fitted.add_latents_to(cells, encoding="blind")


def test_dimensions_that_are_not_in_use_can_be_left_out(fitted, adata, monkeypatch):
    use = fitted.dimension_use().assign(in_use=True)
    use.loc[(use["block"] == "z_x") & (use["dimension"] == 1), ["share", "in_use"]] = 0.0, False
    name = "pyro_fcr.queries.representations.dimension_use"
    monkeypatch.setattr(name, lambda *_: use)
    whole = fitted.get_latent_representation("z_x")
    kept = np.delete(whole, 1, axis=1)
    for some in (None, adata[:30].copy()):  # whatever the cells, the dimensions are the model's
        left = fitted.get_latent_representation("z_x", some, only_in_use=True)
        np.testing.assert_allclose(left, kept[: len(left)], atol=1e-5)
    cells = adata.copy()
    fitted.add_latents_to(cells, encoding="labelled", only_in_use=True)
    np.testing.assert_array_equal(cells.obsm["X_fcr_z_x"], kept)
    assert 1 not in cells.uns["fcr"]["in_use"]["z_x"]
    fitted.add_latents_to(cells)
    assert cells.obsm["X_fcr_z_x"].shape == whole.shape


def test_latents_of_new_cells_with_genes_in_another_order(fitted, adata):
    some = adata[:50, ::-1].copy()
    np.testing.assert_allclose(
        fitted.get_latent_representation("z_x", some),
        fitted.get_latent_representation("z_x")[:50],
        atol=1e-5,
    )


def test_elbo_is_of_the_held_out_cells(fitted, adata):
    best = fitted.history["heldout/elbo"][fitted.history.attrs["best_epoch"]]
    assert fitted.elbo() == pytest.approx(best, abs=0.3)
    assert fitted.elbo(adata[fitted.split.heldout].copy()) == pytest.approx(best, abs=0.3)
    shuffled = adata.copy()
    shuffled.X = shuffled.X[np.random.default_rng(0).permutation(adata.n_obs)]
    assert fitted.elbo(shuffled) < best - 5


def test_counterfactual_predicts_the_response(fitted, adata):
    line, drug = adata.obs["line"] == "line1", adata.obs["drug"]
    control, real = adata[line & (drug == "control")], adata[line & (drug == "drug1")]
    predicted = fitted.counterfactual(control, treatment="drug1", seed=1)
    correlation = np.corrcoef(delta(predicted.X, control.X), delta(real.X, control.X))[0, 1]
    assert correlation > NEAR
    other = fitted.counterfactual(control, treatment="drug2", seed=1)
    wrong = np.corrcoef(delta(other.X, control.X), delta(real.X, control.X))[0, 1]
    assert wrong < correlation - 0.2


def test_counterfactual_states_source_target_and_what_was_held(fitted, adata):
    control = adata[adata.obs["drug"] == "control"].copy()
    before = control.copy()
    predicted = fitted.counterfactual(control, treatment="drug2")
    assert list(predicted.obs_names) == list(control.obs_names)
    assert list(predicted.var_names) == list(control.var_names)
    assert set(predicted.obs["drug"]) == {"drug2"}
    assert list(predicted.obs["source_drug"]) == list(control.obs["drug"])
    assert list(predicted.obs["line"]) == list(control.obs["line"])
    assert predicted.uns["pyro_fcr"]["held"] == ["z_x"]
    assert predicted.uns["pyro_fcr"]["treatment"] == "drug2"
    pd.testing.assert_frame_equal(control.obs, before.obs)
    library = np.asarray(control.X.sum(axis=1)).ravel()
    mean = fitted.counterfactual(control, treatment="drug2", output="mean", n_draws=4)
    np.testing.assert_allclose(mean.X.sum(axis=1), library, rtol=1e-4)  # cells keep their size
    assert (mean.layers["sd"] > 0).all()


def test_counterfactual_is_seeded_and_leaves_the_random_state_alone(fitted, adata):
    state = torch.get_rng_state()
    one, two, three = (
        fitted.counterfactual(adata[:40].copy(), treatment="drug1", seed=s).X.toarray()
        for s in (5, 5, 6)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)
    assert torch.equal(state, torch.get_rng_state())


def test_draws_are_rows(fitted, adata):
    predicted = fitted.counterfactual(adata[:7].copy(), treatment="drug1", n_draws=3)
    assert predicted.shape == (21, adata.n_vars)
    assert list(predicted.obs["draw"][:4]) == [0, 1, 2, 0]
    assert predicted.obs_names[4] == f"{adata.obs_names[1]}-draw1"
    assert predicted.obs_names.is_unique


def test_another_context_holds_what_the_context_does_not_cause(fitted, adata):
    source = adata[adata.obs["line"] == "line0"].copy()
    predicted = fitted.counterfactual(source, covariates={"line": "line2"})
    assert predicted.uns["pyro_fcr"]["held"] == ["z_t"]
    assert set(predicted.obs["line"]) == {"line2"}
    assert list(predicted.obs["drug"]) == list(source.obs["drug"])


def test_a_counterfactual_cannot_be_a_reconstruction(fitted, adata):
    some = adata[:10].copy()
    with pytest.raises(QueryError, match="no target: give treatment="):
        fitted.counterfactual(some)
    for held in ("z_t", "z_tx"):
        with pytest.raises(QueryError, match=f"hold: {held} is caused by t, .*can be held: z_x"):
            fitted.counterfactual(some, treatment="drug1", hold=["z_x", held])
    with pytest.raises(QueryError, match="unknown latent 'z_q'"):
        fitted.counterfactual(some, treatment="drug1", hold=["z_q"])


def test_expression_of_the_target_condition_does_not_reach_a_counterfactual(fitted, adata):
    """With nothing held, the source's expression must not matter but for its library size."""
    some = adata[:20].copy()
    scrambled = some.copy()
    scrambled.X = some.X[:, ::-1].copy()
    one, two = (
        fitted.counterfactual(a, treatment="drug1", hold=[], output="mean").X
        for a in (some, scrambled)
    )
    np.testing.assert_array_equal(one, two)
    held = fitted.counterfactual(scrambled, treatment="drug1", output="mean").X
    assert not np.allclose(held, one)


def test_unknown_levels_are_refused_with_the_known_ones(fitted, adata):
    with pytest.raises(SchemaError, match=r"drug9.*drug1"):
        fitted.counterfactual(adata[:5].copy(), treatment="drug9")
    with pytest.raises(SchemaError, match=r"line7.*line0"):
        fitted.predict("drug1", covariates={"line": "line7"})
    with pytest.raises(QueryError, match=r"Unknown covariates.*'lin'.*line"):
        fitted.predict("drug1", covariates={"lin": "line0"})
    with pytest.raises(QueryError, match="does not know doses"):
        fitted.predict("drug1", covariates={"line": "line0"}, dose=1.0)


def test_predict_draws_new_cells_of_a_condition(fitted, adata):
    predicted = fitted.predict("drug1", covariates={"line": "line1"}, n_cells=400)
    line, drug = adata.obs["line"] == "line1", adata.obs["drug"]
    control = adata[line & (drug == "control")]
    real = adata[line & (drug == "drug1")]
    assert np.corrcoef(delta(predicted.X, control.X), delta(real.X, control.X))[0, 1] > NEAR
    assert set(predicted.obs["drug"]) == {"drug1"}
    assert not predicted.obs["extrapolated"].any()
    sized = fitted.predict(
        "drug1", covariates={"line": "line1"}, n_cells=3, library=[10.0, 20.0, 30.0], output="mean"
    )
    np.testing.assert_allclose(sized.X.sum(axis=1), [10, 20, 30], rtol=1e-4)


def test_pairs_never_seen_are_answered_and_marked():
    adata = simulate(900)
    unseen = (adata.obs["line"] == "line2") & (adata.obs["drug"] == "drug1")
    fcr = FCR(adata[~unseen].copy(), SCHEMA, architecture=Architecture(n_tx=2, n_hidden=16))
    fcr.fit(max_epochs=3, progress=False)
    control = adata[adata.obs["drug"] == "control"].copy()
    predicted = fcr.counterfactual(control, treatment="drug1")
    expected = predicted.obs["line"] == "line2"
    assert expected.any()
    np.testing.assert_array_equal(predicted.obs["extrapolated"], expected)
    assert np.isfinite(predicted.X.toarray()).all()


def test_doses_are_interpolated_and_extrapolation_is_marked():
    adata = simulate(900, n_t=1)
    treated = adata.obs["drug"] == "drug1"
    adata.obs["dose"] = np.where(treated, np.where(np.arange(900) % 2, 0.1, 10.0), 0.0)
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line", dose_key="dose")
    fcr = FCR(adata, schema, architecture=Architecture(n_tx=1, n_hidden=16))
    fcr.fit(max_epochs=3, progress=False)
    control = adata[~treated].copy()
    for dose, outside in [(1.0, False), (100.0, True)]:
        predicted = fcr.counterfactual(control, treatment="drug1", dose=dose)
        assert set(predicted.obs["dose"]) == {dose}
        assert predicted.obs["extrapolated"].all() == outside
    with pytest.raises(SchemaError, match=r"no dose is given for 'drug1'.*0\.1 to 10"):
        fcr.counterfactual(control, treatment="drug1")


def test_saved_model_is_the_same_without_its_data(fitted, adata, tmp_path):
    folder = fitted.save(tmp_path / "model")
    files = ["README.md", "history.csv", "model.json", "split.csv.gz", "weights.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == files
    pyro.clear_param_store()
    loaded = FCR.load(folder)
    for mine, theirs in ((fitted.model, loaded.model), (fitted.guide, loaded.guide)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value.cpu(), theirs.state_dict()[name])
    some = adata[:30].copy()
    np.testing.assert_array_equal(  # on one device, whose bits are its own
        loaded.to(fitted.device).counterfactual(some, treatment="drug1").X.toarray(),
        fitted.counterfactual(some, treatment="drug1").X.toarray(),
    )
    with pytest.raises(ValueError, match=r"loaded without data: pass adata="):
        loaded.get_latent_representation("z_x")
    assert loaded.registry == fitted.registry
    assert list(loaded.history["train/kl_z_x"]) == pytest.approx(
        list(fitted.history["train/kl_z_x"])
    )


def test_a_saved_model_knows_its_cells_by_name(fitted, adata, tmp_path):
    folder = fitted.save(tmp_path / "model")
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)[: adata.n_obs - 100]].copy()
    loaded = FCR.load(folder)
    found = loaded.split_of(shuffled)
    for mine, theirs in (
        (fitted.split.train, found.train),
        (fitted.split.heldout, found.heldout),
    ):
        present = set(adata.obs_names[mine]) & set(shuffled.obs_names)
        assert set(shuffled.obs_names[theirs]) == present
        assert len(present) > 0
    again = FCR.load(loaded.save(tmp_path / "again"))
    assert list(again.split_of(shuffled).train) == list(found.train)
    assert fitted.split_of() is fitted.split
    bytes_of = [(tmp_path / name / "split.csv.gz").read_bytes() for name in ("model", "again")]
    assert bytes_of[0] == bytes_of[1]


def test_cells_of_another_name_and_models_of_earlier_versions_are_refused(fitted, adata, tmp_path):
    folder = fitted.save(tmp_path / "model")
    renamed = adata.copy()
    renamed.obs_names = [f"other{i}" for i in range(adata.n_obs)]
    with pytest.raises(ValueError, match=r"None of the 1200 cells, such as 'other0'"):
        FCR.load(folder).split_of(renamed)
    write_model(tmp_path / "earlier", replace(read_model(folder), split=None))
    earlier = FCR.load(tmp_path / "earlier")
    assert earlier.get_latent_representation("z_x", adata[:5].copy()).shape[0] == 5
    with pytest.raises(ValueError, match=r"saved by an earlier version. Pass split="):
        earlier.split_of(adata)


def test_saved_files_hold_no_pickled_code(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    weights = load_file(folder / "weights.safetensors")
    states = {"model": fitted.model.state_dict(), "guide": fitted.guide.state_dict()}
    assert set(weights) == {f"{name}.{key}" for name, each in states.items() for key in each}
    record = json.loads((folder / "model.json").read_text())
    assert Registry.from_json_dict(record["registry"]) == fitted.registry


def test_state_that_shares_memory_is_saved_and_state_that_is_no_tensor_is_refused(tmp_path):
    table = torch.arange(6.0).reshape(2, 3)
    states = {"model": {"a": table, "b": table, "a.t": table.T}, "guide": {"row": table[1]}}
    write_model(tmp_path / "model", Saved({}, states, None, None))
    found = read_model(tmp_path / "model").weights
    assert {name: set(state) for name, state in found.items()} == {
        "model": {"a", "b", "a.t"},
        "guide": {"row"},
    }
    for name, state in states.items():
        assert all(torch.equal(found[name][key], value) for key, value in state.items())
    states["guide"] = {"prior._extra_state": 3}
    with pytest.raises(TypeError, match=r"state 'guide\.prior\._extra_state' is of type int"):
        write_model(tmp_path / "other", Saved({}, states, None, None))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_overwritten(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted.save(folder)
    fitted.save(folder, overwrite=True)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds no model, so it is not replaced"):
        fitted.save(foreign, overwrite=True)
    assert (foreign / "chapter.txt").read_text() == "years of work"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(FileNotFoundError, match="thesis holds no model.json"):
        FCR.load(foreign)


def test_own_programs_are_saved_and_loaded(adata, tmp_path):
    registry = register(adata, SCHEMA)[0]
    batch = registry.encode(adata).batch(np.arange(8))
    model, guide = make_programs(batch)
    fcr = FCR(adata, SCHEMA, model=model, guide=guide)
    fcr.fit(max_epochs=1, progress=False)
    folder = fcr.save(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"pyro_fcr\.model\.Model.*pass load\(\.\.\., model=, guide=\)"
    ):
        FCR.load(folder)
    fresh = make_programs(batch)
    loaded = FCR.load(folder, adata=adata, model=fresh[0], guide=fresh[1])
    np.testing.assert_array_equal(
        loaded.get_latent_representation("z_t"), fcr.get_latent_representation("z_t")
    )
    with pytest.raises(ValueError, match="both, or neither"):
        FCR(adata, SCHEMA, model=model)


def test_conditions_are_counted_against_the_theory(adata, caplog):
    # 3 lines x 2 drugs, and all controls as one: 7 conditions identify 3 dimensions.
    assert FCR(adata, SCHEMA).architecture.n_tx == 3
    fcr = FCR(adata, SCHEMA, architecture=Architecture(n_tx=4, n_hidden=8))
    message = r"z_tx has 4 dimensions.*asks for 9 distinct.*have 7.*not identifiable; 3 dim"
    with pytest.warns(UserWarning, match=message):
        fcr.fit(max_epochs=1, progress=False)


def test_likelihood_must_fit_the_scale(adata):
    with pytest.raises(ValueError, match="'normal' is for expression='log1p', the schema says"):
        FCR(adata, SCHEMA, architecture=Architecture(likelihood="normal"))
    with pytest.raises(
        ValueError, match="Unknown likelihood 'poisson'; expected nb, zinb or normal"
    ):
        Architecture(likelihood="poisson")


def test_log_normalised_data_take_the_normal_likelihood(adata):
    logged = adata.copy()
    logged.X = np.log1p(1e3 * adata.X / adata.X.sum(axis=1, keepdims=True))
    schema = Schema(
        treatment_key="drug", control="control", covariate_keys="line", expression="log1p"
    )
    fcr = FCR(logged, schema, architecture=Architecture(**QUICK))
    fcr.fit(max_epochs=60, learning_rate=3e-3, weights=NO_PENALTIES, progress=False)
    line, drug = adata.obs["line"] == "line1", adata.obs["drug"]
    control, real = (logged[line & (drug == d)] for d in ("control", "drug1"))
    predicted = fcr.counterfactual(control.copy(), treatment="drug1", output="mean")
    change = predicted.X.mean(axis=0) - control.X.mean(axis=0)
    assert np.corrcoef(change, real.X.mean(axis=0) - control.X.mean(axis=0))[0, 1] > NEAR


def test_several_covariates_and_combinations():
    adata = simulate(1200, n_t=3)
    both = adata.obs["drug"] == "drug3"
    adata.obs.loc[both, "drug"] = "drug1+drug2"
    adata.obs["donor"] = np.where(np.arange(1200) % 2, "d1", "d2")
    schema = Schema(treatment_key="drug", control="control", covariate_keys=("line", "donor"))
    fcr = FCR(adata, schema, architecture=Architecture(n_tx=2, n_hidden=16))
    fcr.fit(max_epochs=2, progress=False)
    assert fcr.registry.agents == ("drug1", "drug2")
    predicted = fcr.counterfactual(
        adata[:9].copy(), treatment="drug2+drug1", covariates={"donor": "d2"}, hold=[]
    )
    assert set(predicted.obs["donor"]) == {"d2"}
    assert list(predicted.obs["source_line"]) == list(predicted.obs["line"])


def test_paths_are_read(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    fcr = FCR(tmp_path / "cells.h5ad", SCHEMA, architecture=Architecture(n_tx=1, n_hidden=8))
    fcr.fit(max_epochs=1, progress=False)
    assert isinstance(fcr.source(None), ad.AnnData)
    assert fcr.get_latent_representation("z_x", tmp_path / "cells.h5ad").shape[0] == adata.n_obs


def test_a_run_is_resumed_by_another_session(adata, tmp_path):
    small = Architecture(n_tx=2, n_hidden=8)
    settings = {"max_epochs": 4, "progress": False, "checkpoint_every": 2}
    whole = FCR(adata, SCHEMA, architecture=small)
    whole.fit(**settings)
    half = FCR(adata, SCHEMA, architecture=small)
    with pytest.warns(UserWarning, match="Interrupted"):
        _interrupted_fit(half, tmp_path / "run.pt", settings)
    again = FCR(adata, SCHEMA, architecture=small, seed=8)
    again.fit(resume=tmp_path / "run.pt", **settings)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def _interrupted_fit(fcr, checkpoint, settings):
    """Press Ctrl-C in the third epoch."""
    seen = []

    def interrupt(*_):
        seen.append(torch.is_grad_enabled())
        if sum(seen) == 9:
            signal.raise_signal(signal.SIGINT)

    handle = fcr.model.y.register_forward_pre_hook(interrupt)
    fcr.fit(checkpoint=checkpoint, **settings)
    handle.remove()


def _within(values, groups):
    frame = pd.DataFrame(np.asarray(values))
    return (frame - frame.groupby(np.asarray(groups)).transform("mean")).to_numpy().ravel()


def test_held_latents_are_those_of_the_cells(fitted, adata):
    seen = []
    assert fitted.graph.blocks == ("z_x", "z_tx", "z_t")  # read before the decoder is listened to
    handle = fitted.model.y.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].cpu())
    )
    some = adata[:300].copy()
    fitted.counterfactual(some, treatment="drug1", n_draws=8)
    fitted.counterfactual(some, treatment="drug1", hold=[], n_draws=8)
    handle.remove()
    own = _within(fitted.get_latent_representation("z_x", some), some.obs["line"])
    drawn = torch.cat(seen).reshape(2, -1, 300, seen[0].shape[-1]).mean(dim=1)
    held, redrawn = (np.corrcoef(own, _within(z, some.obs["line"]))[0, 1] for z in drawn)
    assert held > 0.4  # draws: mean and noise
    assert abs(redrawn) < 0.12


def test_a_dimension_at_its_prior_is_not_in_use(fitted, adata):
    fcr = copy.deepcopy(fitted)
    head = fcr.guide.z_x.head
    with torch.no_grad():
        for row in (1, 4 + 1):  # location and scale of the second dimension, the same for all cells
            head.weight[row], head.bias[row] = 0.0, 0.3
    found = fcr.dimension_use(adata).set_index(["block", "dimension"])
    assert found.loc[("z_x", 1), "share"] == pytest.approx(0.0, abs=1e-6)
    assert not found.loc[("z_x", 1), "in_use"]
    assert found.loc[("z_x", 0), "in_use"]
    means = fcr.get_latent_representation("z_x", adata)
    batch = fcr.registry.encode(adata).batch(np.arange(adata.n_obs), device=fcr.device)
    with torch.no_grad():
        variance = poutine.trace(fcr.guide).get_trace(batch).nodes["z_x"]["fn"].variance
    known, unknown = means.var(axis=0), variance.mean(axis=0).cpu().numpy()
    np.testing.assert_allclose(found.loc["z_x", "share"], known / (known + unknown), rtol=1e-4)
