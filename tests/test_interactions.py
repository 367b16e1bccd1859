import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_programs

from pyro_fcr import FCR, Architecture, QueryError, Schema, SchemaError
from pyro_fcr.data import register
from pyro_fcr.discovery import interactions as module
from pyro_fcr.discovery.interactions import rank_interactions
from pyro_fcr.discovery.refits import CrossFit, bootstrap, cross_fit, deal_halves
from pyro_fcr.simulation import InteractionDesign, simulate_interactions

SCHEMA = Schema(treatment_key="treatment", control="control", covariate_keys="context")
SMALL = Architecture(n_x=3, n_t=2, n_tx=2, n_hidden=16)
PLANTED = InteractionDesign(
    n_cells=1500, n_genes=60, n_contexts=3, n_treatments=2, n_interacting=1, n_drivers=8, effect=1.0
)


def halved(adata, seed=0, schema=SCHEMA):
    """A cross-fit whose models were not trained: a test must keep its level with these, too."""
    fcr = FCR(adata, schema, architecture=Architecture(n_x=3, n_t=2, n_tx=1, n_hidden=16))
    return cross_fit(fcr, seed=seed, max_epochs=1, batch_size=512)


def untrained(adata, schema=SCHEMA):
    """Rank by cells alone: the model is not fitted, and its expectations are of no use."""
    fcr = FCR(adata, schema, architecture=Architecture(n_x=3, n_t=2, n_tx=1, n_hidden=16))
    return by_halves(fcr, None)


def by_halves(fcr, replicate_key):
    return rank_interactions(CrossFit((fcr, fcr), *deal_halves(fcr, replicate_key, 0)), n_cells=20)


@pytest.fixture(scope="module")
def planted():
    return simulate_interactions(PLANTED, seed=3)


@pytest.fixture(scope="module")
def cross(planted):
    fcr = FCR(planted, SCHEMA, architecture=SMALL)
    return cross_fit(fcr, max_epochs=20, batch_size=128)


@pytest.fixture(scope="module")
def ranked(cross):
    return rank_interactions(cross)


def test_the_planted_pair_comes_first_and_its_genes_are_found(planted, ranked):
    truth = planted.uns["interactions"]
    first = ranked.pairs.iloc[0]
    assert (first["treatment"], first["context"]) == tuple(truth[["treatment", "context"]].iloc[0])
    assert first["qvalue"] < 1e-6
    assert (ranked.pairs["qvalue"].iloc[1:] > 0.01).all()
    drivers = ranked.drivers(first["treatment"], first["context"])
    found = set(drivers["gene"][drivers["qvalue"] <= 0.1])
    assert len(found & set(truth["gene"])) >= 6
    assert len(found - set(truth["gene"])) <= 1
    merged = drivers.merge(truth, on="gene")
    assert np.corrcoef(merged["estimate"], merged["log_fold_change"])[0, 1] > 0.95
    assert (np.abs(merged["estimate"] - merged["log_fold_change"]) < 0.5).all()


def test_genes_of_pairs_that_were_not_found_are_not_claimed(cross, ranked):
    chosen = ranked.pairs.loc[ranked.pairs["qvalue"] <= 0.1, ["treatment", "context"]]
    pairs = set(chosen.itertuples(index=False, name=None))
    assert 0 < len(pairs) < len(ranked.pairs)
    for pair, genes in ranked.genes.groupby(["treatment", "context"]):
        assert (genes["qvalue"].min() == 1.0) == (pair not in pairs)
    assert (rank_interactions(cross, level=1e-300).genes["qvalue"] == 1.0).all()  # no pair at all


def test_intervals_are_of_what_the_cells_show_and_of_the_level(cross):
    half, most = (rank_interactions(cross, level=level).genes for level in (0.5, 0.05))
    for genes in (half, most):
        middle = (genes["lower"] + genes["upper"]) / 2
        np.testing.assert_allclose(middle, genes["observed"], atol=1e-9)
    assert (most["lower"] < half["lower"]).all()
    ratio = (most["upper"] - most["lower"]) / (half["upper"] - half["lower"])
    assert 2.8 < ratio.median() < 3.4  # 1.96 / 0.674, and a little more of t


def test_intervals_hold_rare_interactions_as_often_as_all_other_effects():
    design = InteractionDesign(
        n_cells=2400, n_genes=100, n_contexts=4, n_treatments=3, n_interacting=3, n_drivers=10
    )
    inside = []
    for seed in range(3):
        adata = simulate_interactions(design, seed=seed)
        planted = adata.uns["interactions"].merge(untrained(adata).genes)
        truth = planted["log_fold_change"]
        inside += list((planted["lower"] <= truth) & (truth <= planted["upper"]))
    assert len(inside) == 3 * 30
    assert np.mean(inside) > 0.8  # of intervals at 90 %


def test_without_interactions_the_level_is_kept_even_by_models_that_were_not_trained():
    z = []
    for seed in range(4):
        design = InteractionDesign(n_cells=1200, n_genes=50, n_contexts=4, n_interacting=0)
        z += list(untrained(simulate_interactions(design, seed=seed)).pairs["z"])
    z = np.array(z)
    assert len(z) == 4 * 20
    assert abs(z.mean()) < 0.25
    assert 0.5 < z.std() < 1.1
    assert (z > 1.645).mean() < 0.08


def test_a_direction_knows_nothing_of_the_cells_that_it_is_read_on(planted):
    """Whatever the second half's cells are, the first half's fit and direction are the same."""
    other, cross = planted.copy(), halved(planted)
    second = np.flatnonzero(cross.half == 1)
    order = np.arange(other.n_obs)
    order[second] = np.random.default_rng(0).permutation(second)
    other.X = other.X[order]
    again = halved(other)
    np.testing.assert_array_equal(again.half, cross.half)
    for name, value in cross.members[0].model.state_dict().items():
        assert torch.equal(value, again.members[0].model.state_dict()[name]), name
    changed = [
        not torch.equal(v, again.members[1].model.state_dict()[k])
        for k, v in cross.members[1].model.state_dict().items()
    ]
    assert any(changed)
    directions = [
        module._Halves(c).treatments(n_cells=20, seed=0)[0].contrast(0, half=1)
        for c in (cross, again)
    ]
    np.testing.assert_array_equal(*directions)


def test_the_context_that_differs_is_named_not_the_others(planted, ranked):
    """Against the mean of three contexts, all three of the treatment would stand out."""
    truth = planted.uns["interactions"].iloc[0]
    others = ranked.pairs[
        (ranked.pairs["treatment"] == truth["treatment"])
        & (ranked.pairs["context"] != truth["context"])
    ]
    assert len(others) == 2
    assert (others["pvalue"] > 0.01).all()


def test_the_rest_is_left_as_it_was(planted, cross):
    state, before = torch.get_rng_state(), planted.copy()
    one, two = rank_interactions(cross), rank_interactions(cross)
    pd.testing.assert_frame_equal(one.genes, two.genes)
    assert torch.equal(state, torch.get_rng_state())
    pd.testing.assert_frame_equal(planted.obs, before.obs)


def test_replicates_stay_whole_and_judge():
    design = InteractionDesign(
        n_cells=1600, n_genes=40, n_contexts=2, n_treatments=1, n_interacting=0,
        n_replicates=6, replicate_effect=0.4,
    )  # fmt: skip
    z = {True: [], False: []}
    for seed in range(5):
        adata = simulate_interactions(design, seed=seed)
        adata.obs["replicate"] = adata.obs["replicate"].str.cat(adata.obs["treatment"])
        fcr = FCR(adata, SCHEMA, architecture=Architecture(n_tx=1, n_hidden=16))
        for key in ("replicate", None):
            z[key is not None] += list(by_halves(fcr, key).pairs["z"])
    cross = cross_fit(fcr, replicate_key="replicate", max_epochs=1, batch_size=512)
    halves = pd.Series(cross.half).groupby(adata.obs["replicate"].to_numpy()).nunique()
    assert (halves == 1).all()
    assert np.mean(np.array(z[True]) > 1.645) < 0.15
    assert np.mean(np.array(z[False]) > 1.645) > 0.3  # cells of a replicate are not independent


def test_doses_are_arms_of_their_own(planted):
    adata = planted.copy()
    treated = adata.obs["treatment"] == "drug1"
    adata.obs["dose"] = np.where(treated, np.where(np.arange(adata.n_obs) % 2, 0.1, 10.0), 1.0)
    adata.obs.loc[adata.obs["treatment"] == "control", "dose"] = 0.0
    schema = Schema(
        treatment_key="treatment", control="control", covariate_keys="context", dose_key="dose"
    )
    pairs = untrained(adata, schema=schema).pairs
    arms = pairs[["treatment", "dose"]].drop_duplicates().itertuples(index=False, name=None)
    assert set(arms) == {("drug1", "0.1"), ("drug1", "10"), ("drug2", "1")}


def test_log1p_data_are_compared_on_their_own_scale(planted):
    adata = planted.copy()
    counts = adata.X.toarray()
    adata.X = np.log1p(1e3 * counts / counts.sum(axis=1, keepdims=True))
    schema = Schema(
        treatment_key="treatment", control="control", covariate_keys="context", expression="log1p"
    )
    fcr = FCR(adata, schema, architecture=Architecture(n_tx=2, n_hidden=16, likelihood="normal"))
    table = rank_interactions(cross_fit(fcr, max_epochs=1)).genes
    first = table.iloc[0]
    gene = list(adata.var_names).index(first["gene"])
    assert np.isfinite(table["observed"]).all()
    values = {
        (t, x): adata.X[((adata.obs["treatment"] == t) & (adata.obs["context"] == x)), gene].mean()
        for t in (first["treatment"], "control")
        for x in ("line1", "line2", "line3")
    }
    effect = {x: values[first["treatment"], x] - values["control", x] for _, x in values}
    gap = [effect[first["context"]] - effect[x] for x in effect if x != first["context"]]
    assert min(gap) - 0.1 < first["observed"] < max(gap) + 0.1


def test_what_cannot_be_compared_is_refused_with_the_reason(planted, tmp_path):
    treated = planted[planted.obs["treatment"] != "control"].copy()
    schema = Schema(treatment_key="treatment", control=None, covariate_keys="context")
    with pytest.raises(QueryError, match="the schema names no control"):
        halved(treated, schema=schema)
    single = planted[planted.obs["context"] == "line1"].copy()
    with pytest.raises(QueryError, match="No treatment was seen in two contexts"):
        halved(single)
    with pytest.raises(QueryError, match="level is 10; expected a number between 0 and 1"):
        rank_interactions(halved(planted), level=10)
    planted = planted.copy()
    planted.obs["donor"] = np.where(np.arange(planted.n_obs) % 2, "d1", "d2")
    fcr = FCR(planted, SCHEMA, architecture=SMALL)
    with pytest.raises(
        SchemaError, match=r"has 1 and 1 replicates \('donor'\).*two in each"
    ) as few:
        cross_fit(fcr, replicate_key="donor", max_epochs=1)
    assert "leave out" not in str(few.value)  # cells of a donor are no replicates
    with pytest.raises(SchemaError, match="'donors' is not a column of adata.obs"):
        cross_fit(fcr, replicate_key="donors", max_epochs=1)
    with pytest.raises(ValueError, match="n_refits is 1; expected a whole number of 2 or more"):
        bootstrap(fcr, 1)
    loaded = FCR.load(fcr.save(tmp_path / "model"))
    with pytest.raises(ValueError, match="loaded without data: pass adata="):
        cross_fit(loaded, max_epochs=1)


def test_control_in_one_context_only_leaves_another_treatment_to_compare_with(planted):
    control, line = planted.obs["treatment"] == "control", planted.obs["context"] == "line1"
    adata = planted[~control | line].copy()
    message = r"'control' are line1. 'drug1' can be .* Schema\(control='drug1'\)"
    uncontrolled = pytest.warns(UserWarning, match="without control cells")
    with uncontrolled, pytest.raises(QueryError, match=message):
        halved(adata)
    schema = Schema(treatment_key="treatment", control="drug1", covariate_keys="context")
    with pytest.warns(UserWarning, match="'control' looks like a label of untreated cells"):
        pairs = untrained(adata, schema=schema).pairs
    assert set(pairs["treatment"]) == {"drug2"}
    assert (pairs["qvalue"] <= 0.1).any()


def test_one_cell_that_holds_most_of_a_gene_makes_no_pair():
    design = InteractionDesign(n_cells=1500, n_genes=60, n_contexts=4, n_interacting=0)
    adata = simulate_interactions(design, seed=1)
    counts = adata.X.toarray()
    gene = counts.mean(axis=0).argmin()
    for line in ("line1", "line3"):
        rows = np.flatnonzero((adata.obs["context"] == line) & (adata.obs["treatment"] == "drug1"))
        counts[rows[0], gene] = 33 * (1 + counts[rows, gene].sum())
    adata.X = counts
    found = untrained(adata)
    assert (found.pairs["qvalue"] > 0.1).all()
    own = found.genes[found.genes["gene"] == f"gene{gene + 1}"]
    assert len(own) >= 8
    assert (own["pvalue"] > 0.05).all()


def test_where_two_of_five_contexts_differ_and_groups_are_uneven_the_others_are_not_called():
    names = {("drug1", "line2"): 0, ("drug1", "line4"): 30}
    called = []
    for seed in range(4):
        design = InteractionDesign(
            n_cells=4000, n_genes=100, n_contexts=5, n_treatments=2, n_interacting=0
        )
        adata = simulate_interactions(design, seed=seed)
        rng, counts = np.random.default_rng(seed), adata.X.toarray()
        for (drug, line), first in names.items():
            rows = (adata.obs["treatment"] == drug) & (adata.obs["context"] == line)
            block = counts[np.ix_(rows, np.arange(first, first + 20))]
            counts[np.ix_(rows, np.arange(first, first + 20))] = rng.binomial(
                block.astype(int), 0.5
            )
        adata.X = counts
        share = adata.obs["context"].map({"line1": 0.15, "line3": 0.5}).fillna(1.0)
        adata = adata[rng.random(adata.n_obs) < share].copy()
        missing = (adata.obs["treatment"] == "drug2") & (adata.obs["context"] == "line5")
        pairs = untrained(adata[~missing].copy()).pairs
        assert len(pairs) == 9
        own = pairs[(pairs["treatment"] == "drug1") & (pairs["context"] == "line1")]["reference"]
        assert set(own.item().split("; ")) == {"line3", "line5"}
        found = pairs.loc[pairs["qvalue"] <= 0.1, ["treatment", "context"]]
        called += list(found.itertuples(index=False, name=None))
    assert sum(pair in names for pair in called) == 8
    assert sum(pair not in names for pair in called) <= 1


def test_pairs_without_a_gene_of_enough_counts_are_listed_without_evidence(planted):
    found = rank_interactions(halved(planted), min_expressing=10**9)
    assert (found.pairs["n_genes"] == 0).all()
    assert (found.pairs["z"] == 0).all()
    assert (found.pairs["pvalue_genes"] == 1).all()
    assert not (found.pairs["qvalue"] <= 0.1).any()
    assert len(found.genes) == 0


def test_cells_that_the_split_leaves_out_are_in_no_half(planted):
    adata = planted.copy()
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 5 == 0, "test", "train")
    schema = Schema(
        treatment_key="treatment", control="control", covariate_keys="context", split_key="split"
    )
    cross = halved(adata, schema=schema)
    assert ((cross.half == -1) == (adata.obs["split"] == "test")).all()
    used = np.concatenate([np.r_[m.split.train, m.split.heldout] for m in cross.members])
    assert sorted(used) == list(np.flatnonzero(cross.half >= 0))


def test_refits_start_anew_and_draw_with_replacement(planted):
    fcr = FCR(planted, SCHEMA, architecture=SMALL)
    state = {k: v.clone() for k, v in fcr.model.state_dict().items()}
    one, two = bootstrap(fcr, 2, max_epochs=1, batch_size=512)
    assert all(torch.equal(v, fcr.model.state_dict()[k]) for k, v in state.items())
    assert fcr.history is None
    assert not torch.equal(one.model.z_x.loc.weight, two.model.z_x.loc.weight)
    assert len(np.unique(one.split.train)) < 0.75 * len(one.split.train)
    assert not np.intersect1d(one.split.train, one.split.heldout).size
    conditions = planted.obs["treatment"].str.cat(planted.obs["context"])
    sizes = conditions.iloc[one.split.train].value_counts().sort_index()
    assert (sizes >= 0.85 * conditions.value_counts().sort_index()).all()


def test_own_programs_need_a_way_to_be_made_anew(planted):
    batch = register(planted, SCHEMA)[1].batch(np.arange(8))
    model, guide = make_programs(batch)
    fcr = FCR(planted, SCHEMA, model=model, guide=guide)
    with pytest.raises(ValueError, match="pass programs=, a function"):
        cross_fit(fcr, max_epochs=1)
    cross = cross_fit(fcr, programs=lambda: make_programs(batch), max_epochs=1, batch_size=512)
    assert isinstance(cross, CrossFit)
    assert len(rank_interactions(cross).pairs) == 6
