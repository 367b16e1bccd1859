import numpy as np
import pytest

from pyro_fcr.simulation import LEAKS, FCRDesign, simulate

SMALL = {"n_cells": 4_000, "n_contexts": 3, "n_treatments": 3}


def codes(adata):
    truth = adata.uns["truth"]
    t = np.searchsorted(truth["treatments"], adata.obs["treatment"])
    x = np.searchsorted(truth["contexts"], adata.obs["context"])
    return t, x


def test_the_same_seed_gives_the_same_cells():
    first, again, other = (simulate(FCRDesign(n_cells=200), seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.X, again.X)
    assert not np.array_equal(first.X, other.X)


@pytest.mark.parametrize("site", ["z_x", "z_tx", "z_t"])
def test_latents_follow_their_priors(site):
    adata = simulate(FCRDesign(**SMALL), seed=0)
    t, x = codes(adata)
    truth = adata.uns["truth"]
    noise = (adata.obsm[site] - truth[f"{site}_mean"][t, x]) / truth[f"{site}_scale"][t, x]
    assert np.abs(noise.mean(axis=0)).max() < 0.07
    assert np.abs(noise.std(axis=0) - 1).max() < 0.05


def test_centred_interactions_sum_to_zero_and_controls_have_none():
    truth = simulate(FCRDesign(**SMALL), seed=0).uns["truth"]
    assert np.abs(truth["z_tx_mean"].mean(axis=1)).max() < 1e-12
    assert not truth["z_tx_mean"][0].any()
    free = simulate(FCRDesign(**SMALL, centred=False), seed=0).uns["truth"]
    assert np.abs(free["z_tx_mean"][1:].mean(axis=1)).max() > 0.1


@pytest.mark.parametrize("leak", LEAKS, ids="|".join)
def test_a_planted_leak_has_its_size(leak):
    design = {"scale_shift": 0.0, "mean_shift": 0.0, "imbalance": 0.0, **SMALL}
    shares = []
    for size in (0.0, 0.3):
        adata = simulate(FCRDesign(**design, leaks={leak: size}), seed=0)
        t, x = codes(adata)
        cause = {"t": np.eye(3)[t], "x": np.eye(3)[x], "z_tx": adata.obsm["z_tx"]}[leak[1]]
        stratum = x if leak[0] == "z_x" else t
        columns = np.concatenate([cause * (stratum == s)[:, None] for s in range(3)], axis=1)
        columns = np.c_[columns, np.eye(3)[stratum]]
        z = adata.obsm[leak[0]]
        rest = z - columns @ np.linalg.lstsq(columns, z, rcond=None)[0]
        shares.append(1 - rest.var() / z.var())
    assert shares[0] < 0.02
    assert shares[1] == pytest.approx(0.3, abs=0.05)


def test_counts_have_the_depth_and_lose_what_drops_out():
    design = {**SMALL, "likelihood": "nb", "n_genes": 100, "depth": 1_000.0}
    whole, lossy = (simulate(FCRDesign(**design, dropout=d), seed=0) for d in (0.0, 0.5))
    assert np.median(np.asarray(whole.X.sum(axis=1))) == pytest.approx(1_000, rel=0.1)
    assert lossy.X.sum() / whole.X.sum() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal(whole.X.data, whole.X.data.round())


def test_batches_shift_means_of_cells_that_are_alike_otherwise():
    adata = simulate(FCRDesign(**SMALL, n_batches=2, batch_effect=2.0), seed=0)
    means = [
        adata.layers["mean"][adata.obs["batch"] == b].mean(axis=0) for b in ("batch1", "batch2")
    ]
    assert np.abs(means[0] - means[1]).mean() > 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaks": {("z_t", "t"): 0.1}}, "is none of"),
        ({"leaks": {("z_t", "x"): 1.0}}, "no share of variance"),
        ({"mixing": "deep"}, "wanted joint or additive"),
        ({"n_genes": 7}, "cannot hold 8 latents"),
        ({"n_contexts": 1}, "n_contexts is 1"),
    ],
)
def test_an_impossible_design_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FCRDesign(**change)
