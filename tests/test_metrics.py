"""Response scores, baselines and clusters, against numbers worked out another way."""

import dataclasses
import json
import math
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from pyro_fcr.data import Schema, SchemaError
from pyro_fcr.data.pairs import Pair, read_layout
from pyro_fcr.data.scenarios import Scenario, unseen_pairs
from pyro_fcr.data.treatments import parse_agents
from pyro_fcr.metrics import (
    BASELINES,
    Prediction,
    cluster_agreement,
    dimension_use,
    log_values,
    nan_to_null,
    only_in_use,
    profile,
    response_table,
    umap,
)
from pyro_fcr.metrics.baselines import additive, training_means
from pyro_fcr.metrics.scores import change_scores

GBM = Path(__file__).resolve().parents[2] / "shared" / "data" / "gbm_panobinostat.h5ad"
SCHEMA = Schema(treatment_key="drug", control="none", covariate_keys="line")
NAMES = ("pearson_delta_de100", "mse_delta", "cosine_logfc")


def mean_log1p(counts):
    return profile(log_values(counts), "mean_log1p")


def scored(predicted, real):
    n_genes = len(real)
    predicted, real = np.asarray(predicted, float), np.asarray(real, float)
    even = np.full(n_genes, 1 / n_genes)
    found = change_scores(predicted, real, reference=np.zeros(n_genes), weights=even)
    return {name: float(found[name]) for name in NAMES}


def counts(seed=0, shape=(40, 12)):
    return np.random.default_rng(seed).poisson(3.0, shape).astype(np.float32)


@pytest.mark.parametrize("to_matrix", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_mean_log1p_is_scanpys(to_matrix):
    raw = counts()
    cells = ad.AnnData(raw.copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    given = to_matrix(raw)
    np.testing.assert_allclose(mean_log1p(given), cells.X.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(
        given.toarray() if sparse.issparse(given) else given, raw, "input changed"
    )


def test_mean_log1p_by_hand_with_an_empty_cell():
    raw = np.array([[1.0, 3.0], [0.0, 0.0]])
    expected = np.array([math.log(2501), math.log(7501)]) / 2
    np.testing.assert_allclose(mean_log1p(raw), expected)
    np.testing.assert_allclose(mean_log1p(sparse.csr_matrix(raw)), expected)


def test_entries_stored_twice_count_as_their_sum():
    twice = sparse.csr_matrix(([1.0, 2.0, 1.0], [0, 0, 1], [0, 3]), shape=(1, 2))
    np.testing.assert_allclose(mean_log1p(twice), np.log([7501, 2501]))
    assert twice.nnz == 3, "input changed"


@pytest.mark.parametrize("bad", [[[1.0, -1.0]], [[1.0, np.nan]], [1.0, 2.0], np.empty((0, 3))])
def test_mean_log1p_refuses_what_is_no_count_matrix(bad):
    with pytest.raises(ValueError, match="counts must be"):
        mean_log1p(np.array(bad))


def test_scores_by_numpy():
    rng = np.random.default_rng(1)
    real = rng.normal(size=300)
    predicted = real + rng.normal(size=300)
    scores = scored(predicted, real)
    top = np.argsort(np.abs(real))[-100:]
    assert scores == pytest.approx(
        {
            "pearson_delta_de100": np.corrcoef(predicted[top], real[top])[0, 1],
            "mse_delta": ((predicted - real) ** 2).mean(),
            "cosine_logfc": predicted @ real / np.sqrt((predicted**2).sum() * (real**2).sum()),
        }
    )
    everywhere = np.corrcoef(predicted, real)[0, 1]
    assert abs(scores["pearson_delta_de100"] - everywhere) > 0.01


def test_scores_by_hand():
    expected = {"pearson_delta_de100": -1.0, "mse_delta": 2.5, "cosine_logfc": 0.0}
    assert scored([1.0, 0.0], [0.0, 2.0]) == pytest.approx(expected)


def test_no_change_has_an_error_but_no_direction():
    scores = scored(np.zeros(5), np.arange(5.0))
    assert scores["mse_delta"] == 6.0
    assert math.isnan(scores["pearson_delta_de100"])
    assert math.isnan(scores["cosine_logfc"])
    assert json.loads(json.dumps(nan_to_null(scores), allow_nan=False)) == {
        "pearson_delta_de100": None,
        "mse_delta": 6.0,
        "cosine_logfc": None,
    }


def test_a_constant_change_has_no_correlation_but_a_direction():
    scores = scored(np.full(4, 0.1), np.array([1.0, 2.0, 3.0, 4.0]))
    assert math.isnan(scores["pearson_delta_de100"])
    assert scores["cosine_logfc"] == pytest.approx(10 / (2 * math.sqrt(30)))


@pytest.mark.parametrize("change", [[np.nan, 1.0, 2.0], np.zeros((2, 2)), 0.0])
def test_what_is_no_change_of_every_gene_is_no_prediction(change):
    with pytest.raises(ValueError, match="must be a vector of finite numbers"):
        Prediction({"mean_log1p": np.array(change)})


def test_noise_ceiling_rises_with_the_cells_and_repeats():
    rng = np.random.default_rng(2)
    rates = rng.gamma(2.0, 2.0, 30)
    effect = np.exp(rng.normal(0, 0.5, 30))

    def ceiling(n, seed=0):
        design = [(line, drug) for line in ("l1", "l2") for drug in ("none", "a")]
        arms = [rng.poisson(rates * (effect if d == "a" else 1), (n, 30)) for _, d in design]
        return table(arms, design, n, seed)

    def table(arms, design, n, seed):
        obs = pd.DataFrame(np.repeat(design, n, axis=0), columns=["line", "drug"])
        adata = ad.AnnData(np.vstack(arms).astype(float), obs=obs.set_axis(map(str, obs.index)))
        scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
        frame = response_table(adata, SCHEMA, [(scenario, {})], n_draws=5, seed=seed).frame
        frame = frame.query("method == 'noise_ceiling' and scale == 'mean_log1p'")
        return frame.set_index("metric")["value"].to_dict()

    scores = {n: ceiling(n) for n in (12, 800)}
    assert scores[800]["pearson_delta_de100"] > 0.97 > scores[12]["pearson_delta_de100"]
    assert scores[800]["mse_delta"] < scores[12]["mse_delta"] / 10

    design = [("l1", "none"), ("l1", "a"), ("l2", "none"), ("l2", "a")]
    arms = [counts(seed, (40, 30)) for seed in range(3, 7)]
    assert table(arms, design, 40, 5) == table(arms, design, 40, 5)
    assert table(arms, design, 40, 5) != table(arms, design, 40, 6)
    few = pd.DataFrame([*design, *design[1:]], columns=["line", "drug"])
    assert unseen_pairs(few, SCHEMA).left_out["'a' in l1"] == (
        "its context l1 has fewer than 4 control cells"
    )


def cells(conditions, n_genes=25, depth=400.0, seed=0, interaction=None):
    """Counts with log rates = gene + line + drugs (+ one interaction), all with own effects."""
    rng = np.random.default_rng(seed)
    names = sorted({line for line, _, _ in conditions})
    agents = sorted({a for _, drug, _ in conditions for a in parse_agents(drug, SCHEMA)})
    # Effects that leave the library size alone, so that they stay additive after normalisation.
    effects = {name: paired(rng, n_genes, 0.5) for name in names + agents}
    matrix, obs = [], []
    for line, drug, n in conditions:
        log_rate = np.log(depth) + effects[line]
        for agent in parse_agents(drug, SCHEMA):
            log_rate = log_rate + effects[agent]
        if (line, drug) == interaction:
            log_rate = log_rate + 3 * paired(rng, n_genes, 0.5)
        matrix.append(rng.poisson(np.exp(log_rate), (n, n_genes)))
        obs += [(line, drug)] * n
    frame = pd.DataFrame(obs, columns=["line", "drug"], index=[str(i) for i in range(len(obs))])
    return ad.AnnData(sparse.csr_matrix(np.vstack(matrix), dtype=np.float32), obs=frame)


def paired(rng, n_genes, scale):
    """Log effects whose rates add up to nearly the same total."""
    effect = rng.normal(0, scale, n_genes)
    return effect - np.log(np.exp(effect).mean())


GRID = [
    ("l1", "none", 60),
    ("l1", "a", 50),
    ("l1", "b", 40),
    ("l2", "none", 90),
    ("l2", "a", 30),
    ("l2", "b", 80),
    ("l2", "a+b", 50),
]


def hold_out(adata, line, drug):
    """Training cells and the real change of one condition."""
    held = ((adata.obs.line == line) & (adata.obs.drug == drug)).to_numpy()
    control = ((adata.obs.line == line) & (adata.obs.drug == "none")).to_numpy()
    return adata[~held], mean_log1p(adata[held].X) - mean_log1p(adata[control].X)


def means_of(adata, schema=SCHEMA):
    layout, every = read_layout(adata.obs, schema), np.ones(adata.n_obs, dtype=bool)
    return training_means(log_values(adata.X), layout, every, scale="mean_log1p")


def predict(training, line, drug):
    means, agents = means_of(training), parse_agents(drug, SCHEMA)
    return {name: each.predict(means, agents, (line,)) for name, each in BASELINES.items()}


def test_additive_is_least_squares_on_the_cells():
    training, _ = hold_out(cells(GRID), "l1", "b")
    log = sc.pp.log1p(sc.pp.normalize_total(training.copy(), target_sum=1e4, copy=True), copy=True)
    line, drug = training.obs.line, training.obs.drug
    design = np.column_stack(
        [np.ones(len(line)), line == "l2", drug.isin(["a", "a+b"]), drug.isin(["b", "a+b"])]
    ).astype(float)
    coefficients = np.linalg.lstsq(design, log.X.toarray().astype(float), rcond=None)[0]
    np.testing.assert_allclose(predict(training, "l1", "b")["additive"], coefficients[3], atol=1e-5)


def test_additive_finds_an_unseen_combination_in_additive_data():
    grid = [*GRID, ("l1", "a+b", 60)]
    training, real = hold_out(cells(grid), "l1", "a+b")
    scores = scored(predict(training, "l1", "a+b")["additive"], real)
    assert scores["pearson_delta_de100"] > 0.97
    assert scores["mse_delta"] < 0.06 * np.mean(real**2)


def test_an_interaction_is_out_of_reach_of_every_baseline():
    training, real = hold_out(cells(GRID, interaction=("l1", "b")), "l1", "b")
    defined = {n: d for n, d in predict(training, "l1", "b").items() if np.isfinite(d).all()}
    assert set(defined) == set(BASELINES) - {"condition_mean"}
    for delta in defined.values():
        assert scored(delta, real)["mse_delta"] > 0.2 * np.mean(real**2)


def test_treatment_mean_shift_weighs_contexts_the_same():
    adata = cells([*GRID, ("l3", "none", 20), ("l3", "b", 200)])
    training, _ = hold_out(adata, "l1", "b")
    shifts = [hold_out(adata, line, "b")[1] for line in ("l2", "l3")]
    predicted = predict(training, "l1", "b")
    np.testing.assert_allclose(
        predicted["treatment_mean_shift"], (shifts[0] + shifts[1]) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(predicted["control_mean"], np.zeros(25))


def test_what_the_training_data_do_not_determine_is_nan():
    only_once = [("l1", "none", 20), ("l1", "a", 20), ("l2", "none", 20)]
    unseen = predict(cells(only_once), "l1", "c")
    assert np.isnan(unseen["treatment_mean_shift"]).all()
    assert np.isnan(unseen["additive"]).all()
    # b always comes with line l3, where no control tells the two apart.
    confounded = cells([*only_once, ("l3", "b", 20)])
    assert np.isnan(predict(confounded, "l1", "b")["additive"]).all()
    # a+b without a or b alone: their sum is determined, though neither effect is.
    together = predict(cells([*only_once[:1], ("l2", "none", 20), ("l2", "a+b", 20)]), "l1", "b+a")
    assert np.isfinite(together["additive"]).all()


def heldout(adata, pair):
    """A scenario that tests one cell of a pair and leaves its other cells in training."""
    layout = read_layout(adata.obs, SCHEMA)
    test = np.arange(adata.n_obs) == np.flatnonzero(layout.codes == layout.pairs.index(pair))[0]
    return Scenario("unseen pair", (pair,), ~test, test)


@pytest.mark.parametrize("drug", ["a+b", "b+a", "a + b"])
def test_cells_of_the_held_out_condition_are_refused(drug):
    adata = cells(GRID)
    adata.obs["drug"] = adata.obs["drug"].replace("a+b", drug)
    scenario = heldout(adata, Pair("a+b", ("l2",)))
    with pytest.raises(ValueError, match=r"49 training cells are of 'a\+b' in l2"):
        response_table(adata, SCHEMA, [(scenario, {})])


def test_errors_name_what_is_wrong():
    adata = cells(GRID)
    scenario = heldout(adata, Pair("a", ("l1",)))
    misspelt = dataclasses.replace(scenario, pairs=(Pair("a", ("L1",)),))
    with pytest.raises(ValueError, match="'a' in l1, which is not held out"):
        response_table(adata, SCHEMA, [(misspelt, {})])
    made = unseen_pairs(adata.obs, SCHEMA).made
    assert "none" not in {pair.treatment for each in made for pair in each.pairs}
    with pytest.raises(SchemaError, match="'batch' is not a column"):
        read_layout(adata.obs, dataclasses.replace(SCHEMA, treatment_key="batch"))
    adata.obs.loc["3", "line"] = None
    with pytest.raises(SchemaError, match=r"'line': 1 of 400 cells have no label"):
        response_table(adata, SCHEMA, [(scenario, {})])


def test_condition_means_use_the_layer_and_join_orders_of_a_combination():
    adata = cells([("l1", "none", 5), ("l1", "a+b", 6), ("l1", "b+a", 7)])
    means = means_of(adata)
    order = np.argsort([len(parts) for parts in means.treatments])
    assert [means.treatments[i] for i in order] == [(), ("a", "b")]
    assert means.n_cells[order].tolist() == [5, 13]
    np.testing.assert_allclose(means.means[order[1]], mean_log1p(adata.X[5:]))

    adata = cells(GRID)
    judged = [(unseen_pairs(adata.obs, SCHEMA).made[0], {})]
    plain = response_table(adata, SCHEMA, judged, n_draws=5)
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X * 0
    layer = response_table(adata, dataclasses.replace(SCHEMA, layer="raw"), judged, n_draws=5)
    pd.testing.assert_frame_equal(plain.frame, layer.frame)


def test_baselines_on_glioblastoma():
    if not GBM.exists():
        pytest.skip(f"{GBM.name} is not beside the checkout")
    adata = ad.read_h5ad(GBM)
    schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    pair = Pair("panobinostat", ("PW030",))
    scenario = next(s for s in unseen_pairs(adata.obs, schema).made if pair in s.pairs)
    table = response_table(adata, schema, [(scenario, {})], n_draws=5)
    own = table.frame.query("scale == 'mean_log1p'").set_index(["method", "metric"])["value"]
    deltas = table.changes["mean_log1p"].droplevel(["scenario", "treatment", "context"])
    real = deltas.loc["real"].to_numpy()
    control = (adata.obs.treatment == "control") & (adata.obs.patient == "PW030")
    expected = mean_log1p(adata[scenario.test].X) - mean_log1p(adata[control].X)
    np.testing.assert_allclose(real, expected)

    # One treatment, as many cells in each group: without interaction, the two are the same.
    np.testing.assert_allclose(
        deltas.loc["additive"], deltas.loc["treatment_mean_shift"], atol=1e-8
    )
    # The mean over halves of the controls has their noise, too.
    assert own["control_mean", "mse_delta"] == pytest.approx(np.mean(real**2), rel=0.01)
    assert own["control_mean", "mse_delta"] > np.mean(real**2)
    ceiling, fit = own["noise_ceiling"], own["additive"]
    assert ceiling["mse_delta"] < fit["mse_delta"] < np.mean(real**2)
    assert 0.7 < fit["pearson_delta_de100"] < ceiling["pearson_delta_de100"]
    with pytest.raises(ValueError, match="500 test cells are among the training cells"):
        dataclasses.replace(scenario, train=np.ones(adata.n_obs, dtype=bool))


def test_additive_takes_condition_means_of_two_covariates():
    adata = cells(GRID)
    adata.obs["day"] = np.where(np.arange(adata.n_obs) % 2, "d1", "d2")
    both = dataclasses.replace(SCHEMA, covariate_keys=("line", "day"))
    means, one = means_of(adata, both), means_of(adata)
    assert {len(context) for context in means.contexts} == {2}
    # The day has no effect, so a fit that knows of it says the same but for noise.
    effects = additive(means, ("b",), ("l1", "d1")), additive(one, ("b",), ("l1",))
    np.testing.assert_allclose(*effects, atol=0.01)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    x = np.repeat(["l1", "l2", "l3"], 60)
    t = np.tile(["none", "drug"], 90)
    latents = {
        "z_x": 8 * np.eye(3)[np.repeat(range(3), 60)] + rng.normal(size=(180, 3)),
        "z_t": 9 * np.tile([[0.0, 0.0], [1.0, 1.0]], (90, 1)) + rng.normal(size=(180, 2)),
    }
    return latents, pd.DataFrame({"x": x, "t": t, "xt": np.char.add(x, t)})


def scores(table):
    return table.set_index(["block", "label", "metric"])["value"]


def test_clusters_agree_with_the_label_that_a_block_holds(blobs):
    latents, labels = blobs
    found = scores(cluster_agreement(latents, labels, resolution=0.1))
    for metric in ("nmi", "ari"):
        assert found["z_x", "x", metric] == pytest.approx(1.0)
        assert found["z_t", "t", metric] == pytest.approx(1.0)
        assert found["z_x", "t", metric] < 0.05
        assert found["z_t", "x", metric] < 0.05
    assert found["z_x", "xt", "nmi"] == pytest.approx(2 * np.log(3) / (np.log(3) + np.log(6)))
    joined_by_x, joined_by_both, pairs = 3 * 60 * 59 / 2, 6 * 30 * 29 / 2, 180 * 179 / 2
    chance = joined_by_x * joined_by_both / pairs
    ari = (joined_by_both - chance) / ((joined_by_x + joined_by_both) / 2 - chance)
    assert found["z_x", "xt", "ari"] == pytest.approx(ari)


def test_clusters_repeat_and_are_those_of_scanpy(blobs):
    latents, labels = blobs
    first = cluster_agreement(latents, labels, seed=3)
    pd.testing.assert_frame_equal(first, cluster_agreement(latents, dict(labels.items()), seed=3))

    plain = ad.AnnData(latents["z_x"].astype(np.float32))
    sc.pp.neighbors(plain, use_rep="X", random_state=3)
    sc.tl.leiden(plain, flavor="igraph", n_iterations=2, directed=False, random_state=3)
    table = pd.crosstab(plain.obs["leiden"].to_numpy(), labels["x"]).to_numpy() / 180
    rows, columns = table.sum(1), table.sum(0)
    filled = table > 0
    mutual = (table * np.log(table / np.outer(rows, columns), where=filled, out=table * 0)).sum()
    entropies = -(rows @ np.log(rows)) - columns @ np.log(columns)
    assert scores(first)["z_x", "x", "nmi"] == pytest.approx(2 * mutual / entropies)


def test_clusters_of_many_cells_are_of_a_draw_of_them(blobs):
    latents, labels = blobs
    few = cluster_agreement(latents, labels, max_cells=60, seed=1)
    rows = np.sort(np.random.default_rng(1).choice(180, 60, replace=False))
    chosen = {block: latent[rows] for block, latent in latents.items()}
    pd.testing.assert_frame_equal(few, cluster_agreement(chosen, labels.iloc[rows], seed=1))


def test_clusters_need_one_label_per_cell(blobs):
    latents, labels = blobs
    with pytest.raises(ValueError, match=r"one row per cell.*'x': 179"):
        cluster_agreement(latents, {"x": labels["x"][1:]})


def test_neighbours_of_more_cells_than_scanpy_searches_exactly():
    latent = np.random.default_rng(0).normal(size=(8200, 2))
    latent[4100:] += 20
    found = cluster_agreement({"z": latent}, {"half": np.arange(8200) // 4100}, resolution=0.001)
    assert found["value"].min() > 0.99


def test_umap_repeats_and_keeps_groups_apart(blobs):
    latents, labels = blobs
    picture = umap(latents["z_t"], seed=0)
    assert picture.shape == (180, 2)
    np.testing.assert_array_equal(picture, umap(latents["z_t"], seed=0))
    centres = np.array([picture[labels["t"] == t].mean(0) for t in ("none", "drug")])
    assert np.linalg.norm(centres[0] - centres[1]) > picture[labels["t"] == "none"].std(0).max()


def test_dimensions_in_use_are_those_of_which_cells_are_known():
    rng = np.random.default_rng(0)
    means = {"z_x": rng.normal(size=(500, 3)) * [2.0, 1e-3, 0.2], "z_t": np.zeros((500, 2))}
    variances = {"z_x": np.full((500, 3), 0.5), "z_t": np.ones((500, 2))}
    use = dimension_use(means, variances)
    assert use["block"].tolist() == ["z_x"] * 3 + ["z_t"] * 2
    assert use["dimension"].tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_allclose(use["share"], [4 / 4.5, 0.0, 0.04 / 0.54, 0.0, 0.0], atol=0.01)
    assert use["in_use"].tolist() == [True, False, True, False, False]
    kept = only_in_use(means, use)
    np.testing.assert_array_equal(kept["z_x"], means["z_x"][:, [0, 2]])
    assert kept["z_t"].shape[1] >= 1
