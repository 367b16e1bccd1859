"""Draws are streamed: the same whatever the memory, seeded, and never kept."""

import dataclasses
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SCHEMA, simulate
from edits import EDITS
from scipy import sparse
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_fcr import FCR, Architecture, QueryError, Schema, SchemaError, draws
from pyro_fcr.data import register
from pyro_fcr.distributions import NegativeBinomial
from pyro_fcr.draws import responder, sinks
from pyro_fcr.draws.sinks import Moments, Quantiles
from pyro_fcr.queries import Output, answers, support, targets
from pyro_fcr.queries import ask as module
from pyro_fcr.queries.targets import Query

SMALL = Architecture(n_x=3, n_t=2, n_tx=2, n_hidden=16)
N_GENES = 12


def dosed(n_cells=400):
    adata = simulate(n_cells, n_genes=N_GENES)
    amount = np.choose(np.arange(n_cells) % 3, [0.1, 1.0, 10.0])
    control = adata.obs["drug"] == "control"
    adata.obs["dose"] = np.where(control, 0.0, np.where(adata.obs["drug"] == "drug2", 5.0, amount))
    return adata


DOSED = dataclasses.replace(SCHEMA, dose_key="dose")


@pytest.fixture(scope="module")
def fcr(device):
    torch.manual_seed(0)
    return FCR(simulate(400, n_genes=N_GENES), SCHEMA, architecture=SMALL).to(device)


@pytest.fixture(scope="module")
def with_doses(device):
    torch.manual_seed(0)
    fcr = FCR(dosed(), DOSED, architecture=SMALL).to(device)
    with torch.no_grad():
        # Without training, too, doses make a difference, and the guide's z_x are all alike.
        fcr.model.z_t.loc.weight.mul_(5.0)
        fcr.guide.z_x.head.bias[:3] += 20.0
        fcr.model.y.heads[0].weight.mul_(4.0)
    return fcr


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 cells, of which the 400 are seven."""
    monkeypatch.setattr(responder, "_VALUES_PER_BLOCK", 64 * N_GENES)
    monkeypatch.setattr(answers, "_VALUES_PER_PIECE", 1000)


def dense(values):
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def layers(adata):
    return sorted(name for name in adata.layers if name is not None)  # anndata 0.13 lists X


def same(one, two):
    assert layers(one) == layers(two)
    np.testing.assert_array_equal(dense(one.X), dense(two.X))
    for name in layers(one):
        np.testing.assert_array_equal(one.layers[name], two.layers[name])


# sinks


def fed(sink, draws):
    for values in draws:
        sink.update(torch.from_numpy(values))
    return {name: value.numpy() for name, value in sink.result().items()}


def test_moments_are_those_of_all_draws():
    draws = 1e4 + np.random.default_rng(0).normal(size=(300, 4, 3)).astype(np.float32)
    found = fed(Moments(), draws)
    np.testing.assert_allclose(found["mean"], draws.mean(axis=0, dtype=float), rtol=1e-7)
    np.testing.assert_allclose(found["sd"], draws.std(axis=0, dtype=float), rtol=1e-5)
    assert (fed(Moments(), draws[:1])["sd"] == 0).all()


@pytest.mark.parametrize("n_draws", [1, 7, 128])
def test_quantiles_of_few_draws_are_exact(n_draws):
    draws = np.random.default_rng(0).normal(size=(n_draws, 4, 3)).astype(np.float32)
    found = fed(Quantiles((0.05, 0.5, 0.975), size=128), draws)
    assert list(found) == ["q05", "q50", "q97.5"]
    expected = np.quantile(draws, (0.05, 0.5, 0.975), axis=0)
    np.testing.assert_allclose(np.stack(list(found.values())), expected, atol=1e-6)


@pytest.mark.parametrize("order", ["random", "sorted"])
def test_quantiles_of_many_draws_keep_their_rank_in_little_memory(order):
    draws = np.random.default_rng(0).normal(size=(20_000, 5, 1)).astype(np.float32)
    draws = np.sort(draws, axis=0) if order == "sorted" else draws
    sink = Quantiles((0.05, 0.5, 0.95), size=128)
    found = fed(sink, draws)
    for probability, values in zip((0.05, 0.5, 0.95), found.values(), strict=True):
        rank = (draws < values).mean(axis=0)
        assert np.abs(rank - probability).max() < 0.012
    kept = sum(buffer.rows.numel() for buffer in sink._levels)
    assert 4 * kept <= sink.bytes_per_value(20_000) * 5
    assert kept < 5 * 128 * 10


def test_compacted_quantiles_weigh_values_as_often_as_they_stand_for_draws():
    # 0 .. 9 in buffers of 4: compacted to 0, 2 and 5, 7 of weight two, then 8, 9 of weight one
    found = fed(Quantiles((0.0, 0.5, 1.0), size=4), np.arange(10.0).reshape(10, 1, 1))
    weighted = [0, 0, 2, 2, 5, 5, 7, 7, 8, 9]
    assert [v.item() for v in found.values()] == [0.0, np.median(weighted), 9.0]


# draws


@pytest.mark.parametrize("form", ["draws", "mean", "summary"])
def test_answers_do_not_change_with_the_memory(fcr, form, small_blocks):
    ask = {"treatment": "drug1", "n_draws": 5, "seed": 3}
    state = torch.get_rng_state()
    whole = fcr.counterfactual(**ask, output=form)
    same(whole, fcr.counterfactual(**ask, output=Output(form, memory=10_000)))
    same(whole, fcr.counterfactual(**ask, output=form))
    assert torch.equal(state, torch.get_rng_state())
    other = fcr.counterfactual(**{**ask, "seed": 4}, output=form)
    assert not np.array_equal(dense(whole.X), dense(other.X))


def test_blocks_of_cells_have_their_own_seeds(fcr, small_blocks):
    whole = fcr.counterfactual(treatment="drug1", output="mean")
    first = fcr.counterfactual(fcr.source(None)[:128].copy(), treatment="drug1", output="mean")
    np.testing.assert_array_equal(whole.X[:128], first.X)
    new = fcr.predict("drug1", covariates={"line": "line0"}, n_cells=128, output="mean").X
    assert not np.isclose(new[:64], new[64:]).all(axis=1).any()
    seeds = {draws.block_seed(seed, number) for seed in range(-5, 5) for number in range(50)}
    assert len(seeds) == 500


def test_latent_spread_has_no_noise_of_counting_and_draws_none(fcr, monkeypatch):
    ask = {"treatment": "drug1", "n_draws": 50}
    noisy = fcr.counterfactual(**ask, output=Output("summary", uncertainty="observation"))
    assert noisy.uns["pyro_fcr"]["uncertainty"] == "observation"
    assert (dense(noisy.layers["q95"]) % 1 < 1).all()
    monkeypatch.setattr(NegativeBinomial, "sample", lambda *_: pytest.fail("a count was drawn"))
    latent = fcr.counterfactual(**ask, output=Output("summary", quantiles=(0.5,)))
    assert layers(latent) == ["q50", "sd"]
    assert (latent.layers["sd"] < noisy.layers["sd"]).mean() > 0.99
    np.testing.assert_allclose(latent.X.mean(axis=0), noisy.X.mean(axis=0), rtol=0.05)


def test_a_summary_is_of_the_draws(fcr):
    ask = {"treatment": "drug1", "n_draws": 40, "seed": 1}
    draws = dense(fcr.counterfactual(**ask).X).reshape(400, 40, N_GENES)
    found = fcr.counterfactual(**ask, output=Output("summary", uncertainty="observation"))
    np.testing.assert_allclose(found.X, draws.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.layers["sd"], draws.std(axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.layers["q05"], np.quantile(draws, 0.05, axis=1), rtol=1e-5)


def test_the_guide_runs_once_where_its_draws_do_not_depend_on_one_another(fcr):
    runs = []
    handle = fcr.guide.register_forward_pre_hook(lambda *_: runs.append(1))
    moments = Moments()
    batch = fcr.registry.encode(fcr.source(None)).batch(np.arange(30), device=fcr.device)
    drawer = draws.Responder(fcr.model, fcr.guide, hold=("z_x",))
    drawer.feed(batch, expected=[moments], n_draws=30)
    handle.remove()
    assert len(runs) == 3  # reading the graph takes two runs
    assert (moments.result()["sd"] > 0).all()  # and z_x is drawn each time


def test_a_guide_whose_draws_depend_on_one_another_runs_for_every_draw():
    edit = EDITS["g_bayesian"]  # an autoguide draws the shared latent from an auxiliary one
    adata = edit.data()
    model, guide = edit.build(register(adata, edit.schema)[0])
    batch = register(adata, edit.schema)[1].batch(np.arange(30))
    draws.Responder(model, guide, hold=("log_dispersion",)).feed(batch)  # autoguides start
    seen = []
    handle = model.y.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[-1].clone()))
    draws.Responder(model, guide, hold=("log_dispersion",)).feed(batch, n_draws=3)
    handle.remove()
    assert not torch.equal(seen[-1], seen[-2])


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is open and still live."""

    def __init__(self):
        super().__init__()
        self.live = self.most = 0
        self.known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        if storage not in self.known:
            self.known[storage] = True
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, n_bytes):
        self.live -= n_bytes


def peak(fcr, n_draws, output):
    with LiveBytes() as memory:
        fcr.counterfactual(treatment="drug1", n_draws=n_draws, output=output)
    return memory.most


def test_nothing_grows_with_the_draws(fcr):
    assert peak(fcr, 100, "mean") < 1.05 * peak(fcr, 10, "mean")
    # A buffer of 128 more for twice the draws.
    assert peak(fcr, 520, "summary") < 1.8 * peak(fcr, 130, "summary")
    assert peak(fcr, 100, "draws") > 5 * peak(fcr, 10, "draws")  # the ruler measures


@pytest.mark.parametrize("sort", ["numpy's", "torch's"])  # the latter, with its order, on CUDA
def test_the_bound_of_memory_holds(fcr, monkeypatch, sort):
    if sort == "torch's":
        monkeypatch.setattr(sinks, "_sorted", lambda rows: rows.sort(dim=-1).values)
    free = peak(fcr, 128, "summary")
    bound = 2**19
    assert free > 4 * bound
    assert peak(fcr, 128, Output("summary", memory=bound)) < bound + peak(fcr, 1, "mean")


# files


@pytest.mark.parametrize("name", ["answer.h5ad", "answer.zarr"])
@pytest.mark.parametrize("form", ["draws", "summary"])
def test_a_stored_answer_is_the_one_in_memory(fcr, tmp_path, name, form, small_blocks):
    ask = {"treatment": "drug1", "n_draws": 3}
    expected = fcr.counterfactual(**ask, output=form)
    path = tmp_path / name
    lazy = fcr.counterfactual(**ask, output=Output(form, store=path))
    assert not isinstance(lazy.X, np.ndarray)
    assert not sparse.issparse(lazy.X)
    read = (ad.read_h5ad if path.suffix == ".h5ad" else ad.read_zarr)(path)
    for answer in (lazy.to_memory(), read):
        same(expected, answer)
        assert type(answer.X) is type(expected.X)
        assert answer.X.dtype == expected.X.dtype
        assert list(answer.var_names) == list(expected.var_names)
        pd.testing.assert_frame_equal(answer.obs, expected.obs, check_categorical=False)
        assert set(answer.uns["pyro_fcr"]) == set(expected.uns["pyro_fcr"])
        assert list(answer.uns["pyro_fcr"]["held"]) == ["z_x"]
    np.testing.assert_array_equal(dense(lazy[70:73].X), dense(expected[70:73].X))
    if path.suffix == ".h5ad":
        backed = ad.read_h5ad(path, backed="r")
        np.testing.assert_array_equal(dense(backed[:5].X), dense(expected[:5].X))
    with pytest.raises(FileExistsError, match=r"is there already\. Give store= another path"):
        fcr.counterfactual(**ask, output=Output(form, store=path))
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["answer.h5ad", "answer.zarr"])
def test_an_answer_that_fails_leaves_nothing(fcr, tmp_path, name, small_blocks, monkeypatch):
    parts, read_part = [], module.read_part

    def fail(*args, **kwargs):
        parts.append(1)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return read_part(*args, **kwargs)

    monkeypatch.setattr(module, "read_part", fail)
    with pytest.raises(KeyboardInterrupt):
        fcr.counterfactual(treatment="drug1", output=Output("mean", store=tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_there_are_not_are_refused(fcr, tmp_path):
    for output, message in [
        ("median", "Unknown output 'median'; expected draws, mean or summary."),
        (lambda: Output("mean", uncertainty="counts"), "'counts'; expected latent or observation"),
        (lambda: Output("summary", quantiles=(5,)), "quantiles is 5; expected a number from 0"),
        (lambda: Output(store="a.csv"), r"'a\.csv' must end in \.h5ad or \.zarr"),
    ]:
        with pytest.raises(QueryError, match=message):
            fcr.counterfactual(treatment="drug1", output=output() if callable(output) else output)
    with pytest.raises(QueryError, match="n_draws is 0"):
        fcr.counterfactual(treatment="drug1", n_draws=0)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        fcr.predict("drug9", covariates={}, output=Output(store=tmp_path / "a.zarr"))


def test_what_memory_cannot_hold_is_refused_before_it_is_made(fcr, monkeypatch):
    level = {key: levels[0] for key, levels in fcr.registry.covariates.items()}
    for ask in (
        lambda: fcr.predict("drug1", covariates=level, n_cells=10**13),
        lambda: fcr.counterfactual(treatment="drug1", n_draws=10**13),
        lambda: fcr.posterior_predictive(n_draws=10**13),
    ):
        with pytest.raises(QueryError, match="draws each take more than .* GB of memory"):
            ask()
    monkeypatch.setattr(targets, "free_memory", lambda: 100_000)
    for output in ("mean", Output("draws", store="unused.h5ad")):
        Query(treatment="drug1", output=output).check_room(100, 10)
    with pytest.raises(QueryError, match="100 cells with 1 draws"):
        Query(treatment="drug1", output="mean").check_room(100, 1000)


# what is held, what is asked


def test_the_target_s_own_cells_do_not_reach_a_counterfactual(fcr):
    drug = fcr.source(None).obs["drug"].to_numpy()
    at = np.flatnonzero(drug == "drug1")
    permuted = fcr.source(None).copy()
    permuted.X[at] = fcr.source(None).X[np.roll(at, 7)]
    assert not np.array_equal(permuted.X, fcr.source(None).X)
    other = FCR(permuted, SCHEMA, model=fcr.model, guide=fcr.guide)
    control, treated = drug == "control", drug == "drug1"
    one, two = (
        m.counterfactual(m.source(None)[control].copy(), treatment="drug1", n_draws=2).X.toarray()
        for m in (fcr, other)
    )
    np.testing.assert_array_equal(one, two)
    # Nor beside the target's own cells, which are drawn in the same blocks.
    one, two = (
        m.counterfactual(treatment="drug1", n_draws=2, output="mean").X for m in (fcr, other)
    )
    np.testing.assert_array_equal(one[control], two[control])
    assert not np.isclose(one[treated], two[treated]).all(axis=1).any()


def test_library_sizes_are_the_cells_own_or_set(fcr):
    own = np.asarray(fcr.source(None).X.sum(axis=1)).ravel()
    sizes = np.linspace(10, 90, 400)
    for library, expected in [("own", own), (250.0, 250.0), (sizes, sizes)]:
        ask = {"output": "mean", "library": library}
        for answer in (
            fcr.counterfactual(treatment="drug1", **ask),
            fcr.posterior_predictive(**ask),
        ):
            np.testing.assert_allclose(answer.X.sum(axis=1), expected, rtol=1e-4)
    with pytest.raises(QueryError, match=r"shape \(3,\); expected a number or one for each of 400"):
        fcr.counterfactual(treatment="drug1", library=[1, 2, 3])
    with pytest.raises(QueryError, match="must be positive"):
        fcr.counterfactual(treatment="drug1", library=0)


def test_depth_is_that_of_the_condition_where_it_is_asked_for():
    adata = simulate(400, n_genes=N_GENES)
    # drug1 halves the depth, line1 has three times that of the others; drug1 in line1 is not seen.
    factor = np.where(adata.obs["drug"] == "drug1", 0.5, 1.0)
    factor *= np.where(adata.obs["line"] == "line1", 3.0, 1.0)
    adata.X = np.round(np.full(adata.shape, 40.0) * factor[:, None])
    seen = ~((adata.obs["drug"] == "drug1") & (adata.obs["line"] == "line1")).to_numpy()
    fcr = FCR(adata[seen].copy(), SCHEMA, architecture=SMALL)
    depth = 40.0 * N_GENES
    for drug, line, expected in [
        ("control", "line0", 1.0), ("drug1", "line0", 0.5), ("drug1", "line1", 1.5),
    ]:  # fmt: skip
        ask = {"covariates": {"line": line}, "n_cells": 5, "output": "mean"}
        new = fcr.predict(drug, **ask)
        np.testing.assert_allclose(new.X.sum(axis=1), expected * depth, rtol=1e-3)
        assert new.uns["pyro_fcr"]["library"] == "target"
    source = adata[(adata.obs["line"] == "line1") & (adata.obs["drug"] == "control")].copy()
    source.X[::2] *= 2  # cells keep what sets them apart
    own = source.X.sum(axis=1)
    for library, ratio in [("own", 1.0), ("target", 0.5)]:
        answer = fcr.counterfactual(source, treatment="drug1", library=library, output="mean")
        np.testing.assert_allclose(answer.X.sum(axis=1), ratio * own, rtol=1e-3)
        assert answer.uns["pyro_fcr"]["library"] == library
    for ask in ({"library": "cells"}, {"library": "target", "n_draws": 0}):
        with pytest.raises(QueryError):
            fcr.counterfactual(source, treatment="drug1", **ask)
    with pytest.raises(QueryError, match="expected 'target', a number"):
        fcr.predict("drug1", covariates={"line": "line1"}, library="own")


def test_a_posterior_predictive_draws_all_latents_from_the_guide(fcr):
    some = fcr.source(None)[:50].copy()
    own = [fcr.get_latent_representation(block, some) for block in ("z_x", "z_tx", "z_t")]
    seen = []
    handle = fcr.model.y.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:3]))
    answer = fcr.posterior_predictive(some, n_draws=200, output="mean")
    handle.remove()
    for i, expected in enumerate(own):
        drawn = torch.stack([latents[i] for latents in seen]).mean(dim=0).cpu().numpy()
        np.testing.assert_allclose(drawn, expected, atol=0.35)
    assert answer.uns["pyro_fcr"]["held"] == ["z_x", "z_tx", "z_t"]
    assert list(answer.obs["drug"]) == list(some.obs["drug"])
    assert (answer.obs["support"] == 1).all()


def test_predict_sums_a_condition_up(fcr):
    ask = {"covariates": {"line": "line1"}, "seed": 2}
    one = fcr.predict("drug1", **ask, n_cells=1, n_draws=1500, output="summary")
    assert one.shape == (1, N_GENES)
    cells = fcr.predict("drug1", **ask, n_cells=4000, output="mean").X
    np.testing.assert_allclose(one.X[0], cells.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(one.layers["q95"][0], np.quantile(cells, 0.95, axis=0), rtol=0.2)


def test_unknown_levels_are_listed_by_every_query(with_doses):
    foreign = with_doses.source(None)[:5].copy()
    foreign.obs["line"] = "line7"
    message = r"'line7'.*'line0', 'line1', 'line2'"
    target = {"treatment": "drug1", "dose": 1.0, "covariates": {"line": "line7"}}
    for answer in (
        lambda: with_doses.counterfactual(**target),
        lambda: with_doses.predict(**target),
        lambda: with_doses.posterior_predictive(foreign),
        lambda: with_doses.dose_response("drug1", cells={"line": "line7"}),
        lambda: with_doses.dose_response("drug1", cells=foreign),
        lambda: support(with_doses.registry, "drug1", {"line": "line7"}, dose=1.0),
    ):
        with pytest.raises(SchemaError, match=message):
            answer()


def test_an_unseen_treatment_with_features_is_answered_and_marked():
    edit = EDITS["i_features"]
    fcr = FCR(edit.data(), edit.schema, architecture=SMALL)
    for treatment, seen in [("drug3", False), ("drug1", True)]:
        for answer in (
            fcr.counterfactual(treatment=treatment, output="mean"),
            fcr.predict(treatment, covariates={"line": "line0"}, output="mean", n_cells=3),
        ):
            assert np.isfinite(answer.X).all()
            assert answer.obs["extrapolated"].eq(not seen).all()
            assert answer.obs["support"].eq(1 if seen else 1 / 3).all()


# support


def test_support_falls_from_a_seen_pair_to_an_unseen_one_to_nothing():
    adata = dosed()
    drug, line = adata.obs["drug"], adata.obs["line"]
    registry = register(adata[(line != "line2") | (drug == "control")].copy(), DOSED)[0]

    def score(treatment, line, dose):
        return support(registry, treatment, {"line": line}, dose=dose)

    assert score("drug1", "line0", 1.0) == 1
    assert score("control", "line2", 0.0) == 1
    # two of three lines had the drug, one of three treatments was seen in the line
    assert score("drug1", "line2", 1.0) == pytest.approx((2 / 3 + 1 / 3) / 3)
    assert score("drug1", "line0", 40.0) == pytest.approx(0.25)
    assert score("drug1", "line0", 0.01) == pytest.approx(0.1)
    assert score("drug1+drug2", "line0", 5.0) == pytest.approx((2 / 3 + 1) / 3)
    assert score("drug1+drug2", "line2", 5.0) < score("drug1+drug2", "line0", 5.0)


# dose-response curves


def test_curves_are_those_of_the_conditions(with_doses):
    curve = with_doses.dose_response("drug1", n_draws=2000, seed=1)
    assert list(curve.columns) == [
        "treatment", "line", "dose", "gene", "estimate", "lower", "upper", "extrapolated", "support"
    ]  # fmt: skip
    assert len(curve) == 3 * 9 * N_GENES
    np.testing.assert_allclose(np.unique(curve["dose"])[[0, 1, -1]], [0, 0.1, 10])
    assert curve.loc[curve["dose"] == 0, "estimate"].eq(0).all()
    assert not curve["extrapolated"].any()
    share = {}
    for drug, dose in [("control", 0.0), ("drug1", 10.0)]:
        ask = {"covariates": {"line": "line1"}, "dose": dose, "n_cells": 2000, "library": 1.0}
        share[drug] = with_doses.predict(drug, **ask, output="mean").X
    at = curve[(curve["line"] == "line1") & np.isclose(curve["dose"], 10)]
    change = np.log(share["drug1"] / share["control"].mean(axis=0))
    expected = np.log(share["drug1"].mean(axis=0) / share["control"].mean(axis=0))
    np.testing.assert_allclose(at["estimate"], expected, atol=0.15)
    assert np.abs(at["estimate"]).max() > 0.3
    inside = (change >= at["lower"].to_numpy()) & (change <= at["upper"].to_numpy())
    np.testing.assert_allclose(inside.mean(axis=0), 0.9, atol=0.03)


def test_curves_of_given_cells_hold_what_they_keep(with_doses):
    control = with_doses.source(None)[with_doses.source(None).obs["drug"] == "control"].copy()
    ask = {"doses": [1.0, 100.0], "genes": ["gene3"], "n_draws": 1000}
    curve = with_doses.dose_response("drug1", cells=control, **ask)
    assert set(curve["line"]) == {"line0", "line1", "line2"}
    assert curve["gene"].eq("gene3").all()
    assert list(curve["extrapolated"]) == [False, False, True] * 3
    assert curve["support"].to_numpy()[2] == pytest.approx(0.1)
    assert (curve["lower"] < curve["upper"]).all()
    source = control[control.obs["line"] == "line0"].copy()
    latent = Output("draws", uncertainty="latent")
    treated, untreated = (
        with_doses.counterfactual(
            source, treatment=t, dose=d, library=1.0, output=latent, n_draws=20
        ).X[:, 3]
        for t, d in [("drug1", 1.0), ("control", 0.0)]
    )
    change = np.log(treated / untreated.mean())
    assert curve["estimate"][1] == pytest.approx(
        np.log(treated.mean() / untreated.mean()), abs=0.15
    )
    assert curve["lower"][1] == pytest.approx(np.quantile(change, 0.05), abs=0.15)
    assert curve["upper"][1] == pytest.approx(np.quantile(change, 0.95), abs=0.15)
    again = with_doses.dose_response("drug1", cells=control, **ask)
    pd.testing.assert_frame_equal(curve, again)


def test_curves_of_log1p_data_are_differences():
    adata = dosed()
    adata.X = np.log1p(1e3 * adata.X / adata.X.sum(axis=1, keepdims=True))
    schema = dataclasses.replace(DOSED, expression="log1p")
    fcr = FCR(adata, schema, architecture=dataclasses.replace(SMALL, likelihood="normal"))
    curve = fcr.dose_response("drug1", cells={"line": "line0"}, doses=[10.0], n_draws=2000)
    means = [
        fcr.predict(t, covariates={"line": "line0"}, dose=d, n_cells=2000, output="mean").X.mean(0)
        for t, d in [("control", 0.0), ("drug1", 10.0)]
    ]
    np.testing.assert_allclose(curve["estimate"][N_GENES:], means[1] - means[0], atol=0.08)


def test_curves_without_a_range_say_what_is_missing(fcr, with_doses):
    for model, treatment, more, message in [
        (fcr, "drug1", {}, "its schema has no dose_key"),
        (with_doses, "drug2", {}, r"'drug2' has the one trained dose 5, no range; give doses="),
        (with_doses, "control", {}, "'control' is the control"),
        (with_doses, "drug1+drug2", {}, "combination; give doses="),
        (with_doses, "drug1", {"doses": [-1.0]}, r"doses is -1\.0; expected a number of 0"),
        (with_doses, "drug1", {"doses": [0.0]}, "none of them is above 0"),
        (with_doses, "drug1", {"genes": ["gene99"]}, "Unknown gene 'gene99'."),
        (with_doses, "drug1", {"level": 95}, "level is 95"),
        (with_doses, "drug1", {"n_draws": 0}, "n_draws is 0"),
    ]:
        with pytest.raises(QueryError, match=message):
            model.dose_response(treatment, **more)
    both = with_doses.dose_response("drug1+drug2", doses=[5.0], cells={"line": "line0"})
    assert both["extrapolated"].iloc[-1]
    assert both["support"].iloc[-1] == pytest.approx(2 / 3)
    with pytest.raises(SchemaError, match=r"'drug9'.*'drug1', 'drug2'"):
        with_doses.dose_response("drug9")


def test_without_controls_dose_zero_is_extrapolated():
    adata = dosed()
    adata = adata[adata.obs["drug"] != "control"].copy()
    schema = Schema(treatment_key="drug", control=None, covariate_keys="line", dose_key="dose")
    fcr = FCR(adata, schema, architecture=SMALL)
    curve = fcr.dose_response("drug1", cells={"line": "line0"}, n_draws=20)
    np.testing.assert_array_equal(curve["extrapolated"], curve["dose"] == 0)


def test_answers_stand_in_the_layer_that_the_schema_reads():
    adata = simulate(200, n_genes=12)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    schema = dataclasses.replace(SCHEMA, layer="counts")
    fcr = FCR(adata, schema, architecture=SMALL)
    predicted = fcr.counterfactual(adata[:30].copy(), treatment="drug1")
    np.testing.assert_array_equal(predicted.layers["counts"].toarray(), predicted.X.toarray())
    assert fcr.get_latent_representation("z_x", predicted).shape == (30, 3)  # can be read again
