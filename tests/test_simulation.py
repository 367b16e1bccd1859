import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_fcr.simulation import (
    LEAKS,
    EffectDesign,
    FCRDesign,
    RandomInteractions,
    simulate,
    simulate_from_controls,
)

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


@pytest.mark.parametrize("rank", [1, 2])
def test_contexts_differ_in_so_many_ways_in_what_they_make_of_a_treatment(rank):
    design = FCRDesign(n_cells=200, n_contexts=6, n_treatments=6, interaction_rank=rank)
    truth = simulate(design, seed=0).uns["truth"]
    for values in (truth["z_tx_mean"], np.log(truth["z_tx_scale"])):
        assert np.abs(values.mean(axis=1)).max() < 1e-12
        assert not values[0].any()
        by_context = values.swapaxes(0, 1).reshape(6, -1)
        assert np.linalg.matrix_rank(by_context, tol=1e-8) == rank
    free = simulate(FCRDesign(n_cells=200), seed=0).uns["truth"]["z_tx_mean"]
    assert np.linalg.matrix_rank(free.swapaxes(0, 1).reshape(6, -1), tol=1e-8) == 5


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
        ({"leaks": {("z_t", "t"): 0.1}}, r"Unknown leak \('z_t', 't'\); expected"),
        ({"leaks": {("z_t", "x"): 1.0}}, "leaks: expected shares .* got 1.0"),
        ({"mixing": "deep"}, "Unknown mixing 'deep'; expected joint or additive"),
        ({"n_genes": 7}, "cannot hold 8 latents"),
        ({"n_contexts": 1}, "n_contexts is 1"),
        ({"interaction_rank": 6}, "interaction_rank is 6; expected fewer than the 6 contexts"),
        ({"interactions": {("drug9", "line1"): {}}}, "Unknown treatment 'drug9'.*Did you mean"),
        ({"interactions": {("control", "line1"): {}}}, "Unknown treatment 'control'"),
        ({"interactions": {("drug1", "line7"): {}}}, "Unknown context 'line7'.*'line6'"),
        ({"interactions": {("drug1", "line1"): {"gene61": 1.0}}}, "Unknown gene 'gene61'"),
        ({"interactions": {("drug1", "line1"): {"gene1": np.nan}}}, "expected a finite number"),
        ({"interactions": RandomInteractions(n_pairs=31)}, "31 pairs of 30"),
        ({"interactions": RandomInteractions(n_genes=61)}, "61 genes of 60"),
    ],
)
def test_an_impossible_design_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FCRDesign(**change)


@pytest.mark.parametrize("likelihood", ["normal", "nb"])
def test_a_planted_interaction_moves_its_genes_in_its_pair_alone(likelihood):
    planted = {("drug1", "line2"): {"gene3": 1.2, "gene5": -0.7}}
    plain = simulate(FCRDesign(**SMALL, likelihood=likelihood), seed=3)
    moved = simulate(FCRDesign(**SMALL, likelihood=likelihood, interactions=planted), seed=3)
    change = pd.DataFrame(
        moved.layers["mean"] - plain.layers["mean"], plain.obs_names, plain.var_names
    )
    pair = (plain.obs["treatment"] == "drug1") & (plain.obs["context"] == "line2")
    assert pair.sum() > 100
    assert np.allclose(change.loc[pair, ["gene3", "gene5"]], [1.2, -0.7], atol=1e-5)
    change.loc[pair, ["gene3", "gene5"]] = 0.0
    assert not change.to_numpy().any()
    assert np.array_equal(plain.obsm["z_tx"], moved.obsm["z_tx"])
    table = pd.DataFrame(moved.uns["truth"]["interactions"])
    assert table.to_numpy().tolist() == [
        ["drug1", "line2", "gene3", 1.2],
        ["drug1", "line2", "gene5", -0.7],
    ]
    assert not len(plain.uns["truth"]["interactions"]["gene"])


def test_a_planted_interaction_is_seen_in_the_counts():
    planted = {("drug1", "line2"): {"gene3": 1.2}}
    design = {**SMALL, "likelihood": "nb", "imbalance": 0.0, "dispersion": 100.0}
    sums = []
    for interactions in ({}, planted):
        cells = simulate(FCRDesign(**design, interactions=interactions), seed=3)
        pair = (cells.obs["treatment"] == "drug1") & (cells.obs["context"] == "line2")
        sums.append(cells[pair].to_df().sum())
    rest = sums[0].drop("gene3").sum() / sums[1].drop("gene3").sum()  # the totals stay
    assert np.log(sums[1]["gene3"] / sums[0]["gene3"] * rest) == pytest.approx(1.2, abs=0.1)


def test_random_interactions_are_as_many_as_wanted_and_follow_the_seed():
    wanted = RandomInteractions(n_pairs=4, n_genes=7, effect=0.3)
    first, again, other = (
        pd.DataFrame(simulate(FCRDesign(**SMALL, interactions=wanted), seed=s).uns["truth"]
                     ["interactions"]) for s in (1, 1, 2)
    )  # fmt: skip
    assert first.equals(again)
    assert not first.equals(other)
    assert first.groupby(["treatment", "context"])["gene"].nunique().tolist() == [7] * 4
    assert set(first["log_fold_change"]) == {-0.3, 0.3}
    bare, moved = (simulate(FCRDesign(**SMALL, interactions=i), seed=1) for i in ({}, wanted))
    assert np.array_equal(bare.obsm["z_t"], moved.obsm["z_t"])
    assert ((bare.layers["mean"] != moved.layers["mean"]).any(axis=1)).mean() < 0.8
    with pytest.raises(ValueError, match="n_pairs is -1"):
        RandomInteractions(n_pairs=-1)


@pytest.fixture(scope="module")
def controls():
    """Cells of two contexts whose genes go up and down together."""
    rng = np.random.default_rng(0)
    line = rng.integers(2, size=6_000)
    rate = np.exp(rng.normal(2.0, 0.5, (2, 8))[line] + 0.5 * rng.normal(size=(6_000, 1)))
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    obs = pd.DataFrame({"line": np.array(["HeLa", "K562"])[line], "is_control": True})
    obs.index = [f"c{i}" for i in range(6_000)]
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(8)]))


EFFECTS = {"drug1": {"G0": 0.8, "G1": -0.6}, "drug2": {"G1": 0.4}}
INTERACTIONS = {("drug1", "K562"): {"G0": -1.0, "G2": 0.9}}
THINNED = EffectDesign(n_treatments=3, effects=EFFECTS, interactions=INTERACTIONS)


def thin(controls, design=THINNED, **settings):
    return simulate_from_controls(controls, design, context_key="line", **settings)


def test_thinned_counts_are_whole_and_never_more_than_the_real_ones(controls):
    before = controls.X.copy()
    cells = thin(controls)
    assert (before != controls.X).nnz == 0
    lost = (cells.layers["original"] - cells.X).toarray()
    assert (before != cells.layers["original"]).nnz == 0
    assert lost.min() == 0
    assert np.array_equal(cells.X.data, cells.X.data.round())
    assert lost[:, :3].sum(axis=0).min() > 1_000
    assert not lost[:, 3:].any()  # genes without effects are those of the real cells
    assert cells.uns["truth"]["kept"] == pytest.approx(1 - lost.sum() / before.sum())
    assert list(cells.obs) == ["treatment", "line"]
    assert (cells.obs["line"] == controls.obs["line"]).all()


@pytest.mark.parametrize(
    ("pair", "wanted"),
    [
        (("drug1", "HeLa"), [0.8, -0.6, 0.0]),
        (("drug1", "K562"), [-0.2, -0.6, 0.9]),
        (("drug2", "HeLa"), [0.0, 0.4, 0.0]),
        (("drug2", "K562"), [0.0, 0.4, 0.0]),
    ],
)
def test_thinning_realises_the_fold_changes(controls, pair, wanted):
    cells = thin(controls, seed=5)
    means = cells.to_df().groupby([cells.obs["treatment"], cells.obs["line"]]).mean()
    found = np.log(means.loc[pair] / means.loc[("control", pair[1])])
    assert np.abs(found[:3] - wanted).max() < 0.1
    truth = cells.uns["truth"]
    t, x = list(truth["treatments"]).index(pair[0]), list(truth["contexts"]).index(pair[1])
    assert np.allclose(truth["log_fold_change"][t, x, :3], wanted)


def test_thinning_loses_no_more_than_it_must(controls):
    """The condition of the largest fold change keeps all; the others lose against it."""
    cells = thin(controls)
    best = (cells.obs["treatment"] == "drug1") & (cells.obs["line"] == "HeLa")
    lost = (cells.layers["original"] - cells.X).toarray()
    assert not lost[best, 0].any()
    assert lost[~best, 0].any()


def test_thinning_leaves_contexts_as_different_as_they_were(controls):
    cells = thin(controls)
    drug2 = (cells.obs["treatment"] == "drug2").to_numpy()
    lines = [drug2 & (cells.obs["line"] == line).to_numpy() for line in ("HeLa", "K562")]
    differences = []
    for counts in (cells.layers["original"], cells.X):
        one, other = (np.asarray(counts[rows].mean(axis=0)) for rows in lines)
        differences.append(np.log(one / other))
    assert np.abs(differences[0] - differences[1]).max() < 0.1


def test_drawn_effects_are_as_the_design_says(controls):
    design = EffectDesign(
        n_treatments=4,
        affected=0.5,
        interactions=RandomInteractions(n_pairs=2, n_genes=3, effect=0.4),
    )
    one, same, other = (thin(controls, design, seed=s) for s in (1, 1, 2))
    assert (one.X != same.X).nnz == 0
    assert (one.X != other.X).nnz > 0
    truth = one.uns["truth"]
    rest = truth["log_fold_change"] - truth["treatment_effects"][:, None]
    assert (rest != 0).sum() == len(truth["interactions"]["gene"]) == 6
    assert not truth["log_fold_change"][0].any()
    assert 0 < (truth["treatment_effects"] != 0).sum() < 3 * 8
    assert sorted(one.obs["treatment"].unique()) == ["control", "drug1", "drug2", "drug3"]


def test_a_cell_is_never_left_without_counts(controls):
    poor = ad.AnnData(
        sparse.csr_matrix(np.eye(8, dtype=np.float32)[np.arange(80) % 8]),
        obs=controls.obs[:80],
        var=controls.var,
    )
    gone = EffectDesign(
        n_treatments=2, effects={"drug1": dict.fromkeys(poor.var_names, -9.0)}, interactions={}
    )
    assert (thin(poor, gone).X.sum(axis=1) == 1).all()


def test_both_simulators_give_cells_that_can_be_written(controls, tmp_path):
    graph = simulate(FCRDesign(n_cells=200, leaks={("z_x", "t"): 0.2}))
    for number, cells in enumerate((graph, thin(controls))):
        cells.write_h5ad(tmp_path / f"{number}.h5ad")
        again = ad.read_h5ad(tmp_path / f"{number}.h5ad")
        old, new = (pd.DataFrame(c.uns["truth"]["interactions"]) for c in (cells, again))
        assert new.to_numpy().tolist() == old[list(new)].to_numpy().tolist()


def _with(controls, change):
    cells = controls[:50].copy()
    return change(cells) or cells


@pytest.mark.parametrize(
    ("change", "design", "message"),
    [
        (lambda c: setattr(c, "X", c.X * 0.5), THINNED, "expected raw counts"),
        (lambda c: c.X.data.__setitem__(3, np.nan), THINNED, "found nan.*finite"),
        (lambda c: c.obs.rename(columns={"line": "lime"}, inplace=True), THINNED, "not a column"),
        (lambda c: setattr(c, "var_names", ["G0"] * 8), THINNED, "repeated names"),
        (None, EffectDesign(effects={"drug9": {}}, interactions={}), "Unknown treatment 'drug9'"),
        (None, EffectDesign(effects={"drug1": {"G9": 1.0}}, interactions={}), "Unknown gene 'G9'"),
        (None, EffectDesign(interactions={("drug1", "Hela"): {}}), "Did you mean 'HeLa'"),
        (None, EffectDesign(), "20 genes of 8"),
    ],
)
def test_what_cannot_be_thinned_is_refused(controls, change, design, message):
    cells = _with(controls, change or (lambda c: None))
    with pytest.raises(ValueError, match=message):
        thin(cells, design)


@pytest.mark.parametrize(
    ("field", "value"), [("n_treatments", 1), ("affected", 1.5), ("main_effect", -1.0)]
)
def test_an_impossible_effect_design_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        EffectDesign(**{field: value})
