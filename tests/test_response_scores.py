"""Scores of predicted responses, baselines and intervals, against numbers worked out by hand."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.linear_model import Ridge

from pyro_fcr.data import Schema
from pyro_fcr.data.pairs import Pair, read_layout
from pyro_fcr.data.scenarios import random_cells, unseen_pairs, unseen_treatments
from pyro_fcr.metrics.baselines import (
    BASELINES,
    Baseline,
    ConditionMeans,
    baseline,
    context_mean_shift,
    ridge,
    training_means,
)
from pyro_fcr.metrics.profiles import (
    Prediction,
    bootstrap_weights,
    half_weights,
    log_values,
    predicted_cells,
    profile,
    t_statistics,
)
from pyro_fcr.metrics.response_table import ResponseTable, headline, interval, response_table
from pyro_fcr.metrics.scores import (
    SCORES,
    change_scores,
    discrimination,
    e_distance,
    gene_weights,
)

SCHEMA = Schema(
    treatment_key="drug", control="none", covariate_keys="line", expression="log1p", min_cells=2
)


def log_cells(n=6, *, interaction=0.0, noise=0.0, seed=0, n_genes=20):
    """Log1p values: 1 + line + drug, one pair with something of its own; or noise alone."""
    rng = np.random.default_rng(seed)
    effects = {name: rng.normal(size=n_genes) for name in ("u", "v", "w", "a", "b", "c")}
    effects["none"] = np.zeros(n_genes)
    own = rng.normal(size=n_genes)
    design = list(itertools.product("uvw", ("none", "a", "b", "c")))
    means = [
        4 + effects[line] + effects[drug] + interaction * own * ((line, drug) == ("u", "a"))
        for line, drug in design
    ]
    values = np.repeat(means, n, axis=0)
    obs = pd.DataFrame(np.repeat(design, n, axis=0), columns=["line", "drug"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return ad.AnnData(values + noise * rng.normal(size=values.shape), obs=obs)


@pytest.mark.parametrize("to_matrix", [np.asarray, sparse.csr_matrix])
def test_profiles_by_hand(to_matrix):
    counts = to_matrix(np.array([[1.0, 3.0], [4.0, 0.0]]))
    values = log_values(counts)
    scaled = np.array([[2500.0, 7500.0], [10000.0, 0.0]])
    np.testing.assert_allclose(profile(values, "mean_log1p"), np.log1p(scaled).mean(axis=0))
    np.testing.assert_allclose(profile(values, "log1p_mean"), np.log1p(scaled.mean(axis=0)))
    weights = np.array([[0.5, 0.5], [1.0, 0.0]])
    for scale, first in (("mean_log1p", profile(values, "mean_log1p")),
                         ("log1p_mean", profile(values, "log1p_mean"))):  # fmt: skip
        given = profile(values, scale, weights=weights)
        np.testing.assert_allclose(given, [first, np.log1p(scaled[0])])
    kept = log_values(counts, expression="log1p")
    np.testing.assert_allclose(profile(kept, "mean_log1p"), [2.5, 1.5])
    with pytest.raises(ValueError, match="not finite"):
        log_values(to_matrix(np.array([[np.inf, 1.0]])), expression="log1p")


def test_depth_is_a_response_on_the_one_scale_and_hardly_on_the_other():
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 1.0, 200)
    rate = rate / rate.sum()
    deep, shallow = (rng.poisson(rate * depth, (4000, 200)) for depth in (2000, 200))
    shift = {
        scale: profile(log_values(shallow), scale) - profile(log_values(deep), scale)
        for scale in ("mean_log1p", "log1p_mean")
    }
    assert np.abs(shift["log1p_mean"]).mean() < 0.05 * np.abs(shift["mean_log1p"]).mean()


def test_weights_of_draws_and_halves():
    rng = np.random.default_rng(0)
    weights = bootstrap_weights(5, 2000, rng=rng)
    assert weights.shape == (2001, 5)
    np.testing.assert_allclose(weights[0], 0.2)
    # Multinomial shares have the variance p (1 - p) / n.
    np.testing.assert_allclose(weights[1:].var(axis=0), 0.2 * 0.8 / 5, rtol=0.1)
    first, second = half_weights(5, 50, rng=rng)
    assert ((first > 0).sum(axis=1) == 2).all()
    assert ((first > 0) != (second > 0)).all()
    np.testing.assert_allclose(second.sum(axis=1), 1.0)
    assert len(np.unique(first > 0, axis=0)) == 10, "splits are not random"
    with pytest.raises(ValueError, match="1 cell"):
        half_weights(1, 3, rng=rng)


@pytest.mark.parametrize("to_matrix", [np.asarray, sparse.csr_matrix])
def test_t_statistics_are_welchs(to_matrix):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, (9, 4)), rng.normal(0, 3, (30, 4))
    a[:, 3] = b[:, 3] = 0
    expected = stats.ttest_ind(a[:, :3], b[:, :3], equal_var=False).statistic
    np.testing.assert_allclose(t_statistics(to_matrix(a), to_matrix(b)), [*expected, 0.0])


def test_gene_weights_by_hand():
    np.testing.assert_allclose(gene_weights([-5.0, 1.0, 3.0]), [0.8, 0.0, 0.2])
    np.testing.assert_allclose(gene_weights([2.0, -2.0]), [0.5, 0.5])


def test_change_scores_row_by_row():
    rng = np.random.default_rng(1)
    real, predicted, reference = rng.normal(size=(4, 150)), *rng.normal(size=(2, 150))
    weights = gene_weights(rng.normal(size=150))
    found = change_scores(predicted, real, reference=reference, weights=weights)
    top = np.argsort(np.abs(real[0]))[-100:]
    for row, truth in enumerate(real):
        expected = {
            "cosine_logfc": predicted @ truth / np.sqrt((predicted**2).sum() * (truth**2).sum()),
            "pearson_delta": np.corrcoef(predicted, truth)[0, 1],
            "pearson_delta_de100": np.corrcoef(predicted[top], truth[top])[0, 1],
            "pearson_vs_treated": np.corrcoef(predicted - reference, truth - reference)[0, 1],
            "mse_delta": ((predicted - truth) ** 2).mean(),
            "wmse_delta": (weights * (predicted - truth) ** 2).sum(),
        }
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)
    assert set(found) | {"discrimination", "e_distance"} == set(SCORES)


def test_what_has_no_direction_has_no_correlation():
    rng = np.random.default_rng(0)
    real, reference = rng.normal(size=(3, 40)), rng.normal(size=40)
    weights = np.full(40, 1 / 40)
    none = change_scores(np.zeros(40), real, reference=reference, weights=weights)
    for name in ("cosine_logfc", "pearson_delta", "pearson_delta_de100"):
        assert np.isnan(none[name]).all()
    assert np.isfinite(none["pearson_vs_treated"]).all()
    nearly = reference * (1 + 1e-15)  # as an additive fit equals the mean shift, but for rounding
    shared = change_scores(nearly, real, reference=reference, weights=weights)
    assert np.isnan(shared["pearson_vs_treated"]).all()
    assert np.isfinite(shared["pearson_delta"]).all()


def test_the_shared_response_flatters_all_but_the_score_against_treated():
    rng = np.random.default_rng(0)
    shared = 3 * rng.normal(size=60)
    real = shared + 0.5 * rng.normal(size=60)
    wrong = shared + 0.5 * rng.normal(size=60)
    found = change_scores(wrong, real, reference=shared, weights=np.full(60, 1 / 60))
    assert found["pearson_delta"] > 0.95
    assert abs(found["pearson_vs_treated"]) < 0.3


def test_discrimination_by_hand():
    real = np.array([[1.0, 0.0], [0.0, 5.0]])
    others = np.array([[[0.0, 1.0]] * 2, [[1.0, 0.1]] * 2, [[9.0, 9.0]] * 2])
    np.testing.assert_allclose(discrimination(np.array([1.0, 0.0]), real, others), [1.0, 1 / 3])
    assert discrimination(real[0], real[0], real[:1]) == 0.5
    assert np.isnan(discrimination(real[0], real[0], np.empty((0, 2))))


def brute_force(x, y):
    def mean(a, b, pairs):
        return np.mean([np.linalg.norm(a[i] - b[j]) for i, j in pairs])

    across = itertools.product(range(len(x)), range(len(y)))
    inside = [itertools.permutations(range(len(g)), 2) for g in (x, y)]
    return 2 * mean(x, y, across) - mean(x, x, inside[0]) - mean(y, y, inside[1])


def test_e_distance_is_that_of_all_pairs_of_cells():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(1.0, 2.0, size=(7, 3))
    assert e_distance(x, y) == pytest.approx(brute_force(x, y))
    assert e_distance(sparse.csr_matrix(x), sparse.csr_matrix(y)) == pytest.approx(
        brute_force(x, y)
    )
    weights = bootstrap_weights(7, 3, rng=rng)
    drawn = e_distance(x, y, weights=weights)
    assert drawn[0] == pytest.approx(brute_force(x, y))
    again = np.repeat(np.arange(7), np.round(weights[2] * 7).astype(int))
    assert drawn[2] == pytest.approx(brute_force(x, y[again]))
    with pytest.raises(ValueError, match=r"got \(1, 3\) and \(7, 3\)"):
        e_distance(x[:1], y)


def test_e_distance_sees_a_spread_that_means_do_not():
    rng = np.random.default_rng(0)
    same, also, wide = (rng.normal(0, s, (400, 5)) for s in (1, 1, 2))
    assert abs(e_distance(same, also)) < 0.02
    assert e_distance(same, wide) > 0.2


def means_of(shifts, controls):
    """Conditions from control profiles by context and changes by treatment and context."""
    rows = [((), x, c) for x, c in controls.items()]
    rows += [(t, x, np.asarray(controls[x]) + s) for (t, x), s in shifts.items()]
    treatments, contexts, means = zip(*rows, strict=True)
    return ConditionMeans(treatments, contexts, np.ones(len(rows)), np.array(means, dtype=float))


def test_ridge_is_ridge_on_the_features():
    """Against fits that leave one condition out after another, on features made by hand."""
    rng = np.random.default_rng(0)
    controls = {(x,): rng.normal(size=6) for x in "uvwz"}
    shifts = {((t,), x): rng.normal(size=6) for t in "ab" for x in controls if x != ("z",)}
    profiles = np.array(list(controls.values())) - np.mean(list(controls.values()), axis=0)
    states = np.linalg.svd(profiles)[0] * np.linalg.svd(profiles)[1]
    states /= np.sqrt((states**2).sum() / 4)
    rows = [(t == ("a",), t == ("b",), list(controls).index(x)) for t, x in shifts]
    rows.append((True, False, 3))  # a in z
    target = np.array(list(shifts.values()))

    def features(weight):
        return np.array(
            [[a, b, *(weight * states[i]), *(weight * a * states[i]), *(weight * b * states[i])]
             for a, b, i in rows]
        )  # fmt: skip

    def error(weight, penalty):
        x = features(weight)[:-1]
        return sum(
            ((Ridge(alpha=penalty).fit(np.delete(x, i, 0), np.delete(target, i, 0))
              .predict(x[i : i + 1])[0] - target[i]) ** 2).sum()
            for i in range(len(x))
        )  # fmt: skip

    choices = itertools.product((0.0, 1.0), 10.0 ** np.arange(-3.0, 3.5, 0.5))
    weight, penalty = min(choices, key=lambda choice: error(*choice))
    x = features(weight)
    expected = Ridge(alpha=penalty).fit(x[:-1], target).predict(x[-1:])[0]
    np.testing.assert_allclose(ridge(means_of(shifts, controls), ("a",), ("z",)), expected)


def test_ridge_reads_the_response_from_the_untreated_state():
    rng = np.random.default_rng(0)
    states = dict(zip("abcdefgh", rng.normal(size=8), strict=True))
    direction, base = rng.normal(size=(2, 12))
    controls = {(x,): s * direction + 0.1 * rng.normal(size=12) for x, s in states.items()}
    shifts = {(("d",), (x,)): base * (1 + s) for x, s in states.items()}
    errors = []
    for held_out, truth in shifts.items():
        others = {key: shift for key, shift in shifts.items() if key != held_out}
        predicted = ridge(means_of(others, controls), *held_out)
        plain = np.mean(list(others.values()), axis=0)
        errors.append([((guess - truth) ** 2).sum() for guess in (predicted, plain)])
    assert np.sum(errors, axis=0)[0] < 0.1 * np.sum(errors, axis=0)[1]


def test_ridge_leaves_out_the_context_where_it_says_nothing():
    rng = np.random.default_rng(3)
    controls = {(x,): rng.normal(size=300) for x in "abcdefgh"}
    effects = {t: rng.normal(size=300) for t in "pqrs"}
    shifts = {((t,), x): e for t, e in effects.items() for x in controls}
    truth = shifts.pop((("p",), ("a",)))
    np.testing.assert_allclose(ridge(means_of(shifts, controls), ("p",), ("a",)), truth, atol=0.01)


def test_ridge_is_undefined_without_a_control():
    conditions = means_of({(("d",), ("u",)): [1.0]}, {("u",): [0.0]})
    assert ridge(conditions, ("d",), ("u",)).tolist() == [1.0]
    assert np.isnan(ridge(conditions, ("d",), ("v",))).all()
    assert np.isnan(ridge(means_of({}, {("u",): [0.0]}), ("d",), ("u",))).all()


def test_context_mean_shift_by_hand():
    controls = {("u",): [1.0, 1.0], ("v",): [0.0, 0.0]}
    shifts = {(("a",), ("u",)): [1.0, 0.0], (("b",), ("u",)): [0.0, 3.0], (("a",), ("v",)): [9, 9]}
    conditions = means_of({k: np.array(v) for k, v in shifts.items()}, controls)
    np.testing.assert_allclose(context_mean_shift(conditions, ("a",), ("u",)), [0.5, 1.5])
    assert np.isnan(context_mean_shift(conditions, ("a",), ("w",))).all()


def wide(table, scale="mean_log1p"):
    frame = table.frame[table.frame["scale"] == scale]
    keys = ["treatment", "context", "method"]
    return frame.pivot(index=keys, columns="metric", values="value")


def test_additive_truth_is_found_exactly_and_has_no_interaction():
    adata = log_cells()
    adata.X[:, 0] += np.arange(adata.n_obs) * 1e-9  # no two cells are the same
    before = adata.X.copy()
    table = response_table(adata, SCHEMA, [(s, {}) for s in unseen_pairs(adata.obs, SCHEMA).made])
    np.testing.assert_array_equal(adata.X, before)
    scores = wide(table)
    assert len(table.frame[["treatment", "context"]].drop_duplicates()) == 9
    for name in ("additive", "treatment_mean_shift"):
        exact = scores.xs(name, level="method")
        assert exact["mse_delta"].max() < 1e-12
        assert exact["cosine_logfc"].min() > 1 - 1e-9
        assert exact["pearson_vs_treated"].min() > 1 - 1e-9
    nothing = scores.xs("control_mean", level="method")
    real = log_cells().to_df().groupby([adata.obs["drug"], adata.obs["line"]]).mean()
    change = real.loc[("a", "u")] - real.loc[("none", "u")]
    assert nothing.loc[("a", "u"), "mse_delta"] == pytest.approx((change**2).mean(), rel=1e-5)
    elsewhere = scores.xs("context_mean_shift", level="method")
    assert elsewhere["mse_delta"].min() > 0.1


def perfect(adata, scenarios):
    """Predictions that are the real cells."""
    for scenario in scenarios:
        given = {}
        for pair in scenario.pairs:
            here = (adata.obs["line"] == pair.context[0]).to_numpy()
            arms = [adata[here & (adata.obs["drug"] == d).to_numpy()] for d in (pair[0], "none")]
            given[pair] = predicted_cells(*arms, expression="log1p")
        yield scenario, {"oracle": given}


@pytest.fixture(scope="module")
def interacting():
    adata = log_cells(12, interaction=1.0, noise=0.5)
    made = unseen_pairs(adata.obs, SCHEMA).made
    return adata, made, response_table(adata, SCHEMA, perfect(adata, made), n_draws=100)


def test_the_truth_scores_best_beside_the_ceiling(interacting):
    scores = wide(interacting[2])
    oracle = scores.xs("oracle", level="method")
    # Measured against half of 12 controls; its own cells are in the measurement.
    assert oracle["mse_delta"].mean() == pytest.approx(0.25 * (1 / 6 - 1 / 12), rel=0.2)
    assert oracle["discrimination"].min() > 0.9
    assert (oracle["e_distance"] < 0).all()  # its own cells: no more than unbiased
    ceiling = scores.xs("noise_ceiling", level="method")
    assert (ceiling["mse_delta"] > 0).all()
    pair = ("a", "u")
    assert ceiling.loc[pair, "mse_delta"] < scores.loc[(*pair, "additive"), "mse_delta"]
    assert ceiling.loc[pair, "cosine_logfc"] > scores.loc[(*pair, "additive"), "cosine_logfc"]
    assert ceiling.loc[pair, "e_distance"] < scores.loc[(*pair, "additive"), "e_distance"]
    assert ceiling["discrimination"].mean() > 0.85


def test_headline_is_the_model_minus_the_best_baseline(interacting):
    table = interacting[2]
    scores = wide(table)["mse_delta"].unstack()
    found = headline(table, "mse_delta", model="oracle").set_index("against")
    baselines = scores.drop(columns=["oracle", "noise_ceiling"])
    average = found.loc["best on average"]
    assert average["baseline"] == baselines.mean().idxmin()
    assert average["gain"] == pytest.approx(baselines.mean().min() - scores["oracle"].mean())
    assert average["baseline_score"] == pytest.approx(baselines.mean().min())
    hardest = found.loc["best per pair"]
    assert hardest["gain"] == pytest.approx((baselines.min(axis=1) - scores["oracle"]).mean())
    assert hardest["gain"] < average["gain"]
    assert (found["n_pairs"] == 9).all()
    assert (found["low"] < found["gain"]).all()
    assert (found["gain"] < found["high"]).all()


def test_a_constant_prediction_counts_as_zero_and_what_lacks_a_pair_is_not_best():
    frame = pd.DataFrame(
        [
            ("a", "u", "m", "model", 0.5),
            ("a", "v", "m", "model", 0.3),
            ("a", "u", "control_mean", "baseline", np.nan),
            ("a", "v", "control_mean", "baseline", np.nan),
            ("a", "u", "additive", "baseline", -0.2),
            ("a", "v", "additive", "baseline", 0.1),
            ("a", "u", "ridge", "baseline", 0.9),
            ("a", "u", "noise_ceiling", "ceiling", 0.99),
        ],
        columns=["treatment", "context", "method", "role", "value"],
    ).assign(scenario="unseen pair", scale="mean_log1p", metric="pearson_delta")
    draws = np.repeat(frame["value"].to_numpy()[:, None], 50, axis=1)
    table = ResponseTable(frame, draws, 0.9)
    found = headline(table, "pearson_delta", model="m").set_index("against")
    assert found.loc["best on average", "baseline"] == "control_mean"
    assert found.loc["best on average", "gain"] == pytest.approx(0.4)
    assert found.loc["best per pair", "gain"] == pytest.approx((0.5 - 0.9 + 0.3 - 0.1) / 2)
    with pytest.raises(ValueError, match=r"no model 'fcr'.*models: \['m'\]"):
        headline(table, "pearson_delta", model="fcr")
    with pytest.raises(ValueError, match="with 'mse_delta' on"):
        headline(table, "mse_delta", model="m")


def test_the_headline_pairs_model_and_baseline():
    """Two methods that share the noise of the cells differ by far less than each is uncertain."""
    adata = log_cells(12, noise=2.0)
    made = unseen_pairs(adata.obs, SCHEMA).made
    base = response_table(adata, SCHEMA, [(s, {}) for s in made], n_draws=100)
    judged = []
    for s in made:
        (pair,) = s.pairs
        training = adata[s.train].to_df().groupby([adata.obs["line"], adata.obs["drug"]]).mean()
        shifts = [training.loc[(x, pair.treatment)] - training.loc[(x, "none")]
                  for x in "uvw" if x != pair.context[0]]  # fmt: skip
        near = Prediction({"mean_log1p": np.mean(shifts, axis=0) * 1.001})
        judged.append((s, {"near": {pair: near}}))
    table = response_table(adata, SCHEMA, judged, n_draws=100)
    rows = base.frame.query("method == 'treatment_mean_shift' and metric == 'mse_delta'")
    own = (rows["high"] - rows["low"])[rows["scale"] == "mean_log1p"].mean()
    frame = table.frame[~table.frame["method"].isin(["ridge", "additive", "context_mean_shift"])]
    small = ResponseTable(frame.reset_index(drop=True), table.draws[frame.index], table.level)
    found = headline(small, "mse_delta", model="near").iloc[0]
    assert found["baseline"] == "treatment_mean_shift"
    assert found["high"] - found["low"] < 0.05 * own


def test_intervals_hold_the_expected_score():
    """Of repeated experiments: 90 % intervals hold the mean of the score over experiments."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(0, 0.3, 30), rng.normal(0, 0.3, 30)
    predicted = truth + 0.5 * predicted
    names = ("cosine_logfc", "mse_delta", "pearson_delta")
    kept = {name: [] for name in names}
    for _ in range(300):
        treated, control = (m + rng.normal(size=(40, 30)) for m in (truth, 0.0))
        real = np.subtract(*(
            profile(v, "mean_log1p", weights=bootstrap_weights(40, 100, rng=rng))
            for v in (treated, control)
        ))  # fmt: skip
        found = change_scores(predicted, real, reference=np.ones(30), weights=np.ones(30) / 30)
        for name in names:
            kept[name].append((interval(found[name], 0.9, metric=name), found[name][1:]))
    for name, runs in kept.items():
        expected = np.mean([ends["value"] for ends, _ in runs])
        inside = np.mean([ends["low"] <= expected <= ends["high"] for ends, _ in runs])
        # A draw has the noise twice: where noise is most of an error its draws spread too far.
        assert 0.85 <= inside <= 0.99, name
    plain = np.mean([np.quantile(d, 0.05) <= np.mean([e["value"] for e, _ in kept["mse_delta"]])
                     for _, d in kept["mse_delta"]])  # fmt: skip
    assert plain < 0.5, "quantiles that are not shifted would have done"


def test_an_interval_stays_within_the_range_of_its_score():
    scores = np.array([0.99, 0.7, 0.99, 0.99])
    found = interval(scores, 0.9, metric="cosine_logfc")
    assert found["high"] <= 1.0
    undefined = interval(np.array([0.5, np.nan]), 0.9, metric="cosine_logfc")
    assert undefined["value"] == 0.5
    assert np.isnan(undefined["low"])


def test_a_random_scenario_is_judged_on_its_test_cells():
    adata = log_cells(20, noise=0.5)
    (scenario,) = random_cells(adata.obs, SCHEMA, share=0.5).made
    table = response_table(adata, SCHEMA, [(scenario, {})], n_draws=10)
    at = scenario.test & (adata.obs["line"] == "u").to_numpy()
    real = [adata.X[at & (adata.obs["drug"] == d).to_numpy()].mean(axis=0) for d in ("a", "none")]
    at = scenario.train & (adata.obs["line"] == "u").to_numpy()
    seen = [adata.X[at & (adata.obs["drug"] == d).to_numpy()].mean(axis=0) for d in ("a", "none")]
    found = wide(table).loc[("a", "u", "condition_mean"), "mse_delta"]
    expected = ((real[0] - real[1] - seen[0] + seen[1]) ** 2).mean()
    assert found == pytest.approx(expected)


def test_an_unseen_combination_has_additive_but_no_mean_shift():
    adata = log_cells(noise=0.1)
    labels = {"none": "none", "a": "x", "b": "y", "c": "y+x"}
    adata.obs["drug"] = adata.obs["drug"].map(labels)
    made = unseen_treatments(adata.obs, SCHEMA).made
    scenario = next(s for s in made if s.pairs[0].treatment == "x+y")
    table = response_table(adata, SCHEMA, [(scenario, {})], n_draws=5)
    methods = set(table.frame["method"])
    assert {"additive", "context_mean_shift", "ridge"} < methods
    assert not {"treatment_mean_shift", "condition_mean"} & methods


def test_tables_repeat_by_seed(interacting):
    adata, made, _ = interacting
    tables = [response_table(adata, SCHEMA, [(made[0], {})], n_draws=5, seed=s) for s in (1, 1, 2)]
    pd.testing.assert_frame_equal(tables[0].frame, tables[1].frame)
    assert (tables[0].frame["low"] != tables[2].frame["low"]).any()


def test_leaks_and_predictions_that_do_not_fit_are_refused(interacting):
    adata, made, _ = interacting
    scenario, pair = made[0], made[0].pairs[0]
    good = Prediction({"mean_log1p": np.zeros(20)})

    def table(given, cells=adata, **options):
        return response_table(cells, SCHEMA, [(scenario, given)], n_draws=2, **options)

    with pytest.raises(ValueError, match="'ridge' has the name of a baseline"):
        table({"ridge": {pair: good}})
    with pytest.raises(ValueError, match="'m' has no prediction of 'a' in u"):
        table({"m": {Pair("a", ("v",)): good}})
    with pytest.raises(
        ValueError, match=r"'m' predicts \[19\] genes of 'a' in u, but adata has 20"
    ):
        table({"m": {pair: Prediction({"mean_log1p": np.zeros(19)})}})
    with pytest.raises(ValueError, match="must be a vector of finite numbers"):
        Prediction({"mean_log1p": np.array([np.nan])})
    with pytest.raises(ValueError, match="expected some of"):
        Prediction({"log2": np.zeros(3)})
    with pytest.raises(ValueError, match="level is 1; expected"):
        table({}, level=1)
    leaky = adata.copy()
    leaky.X[np.flatnonzero(scenario.train)[0]] = leaky.X[np.flatnonzero(scenario.test)[0]]
    with pytest.raises(ValueError, match="duplicates leak"):
        table({}, leaky)


def test_what_treated_cells_share_is_the_mean_change_of_the_training_conditions():
    adata = log_cells(12, interaction=1.0)
    adata.X[adata.obs["drug"] == "a"] += np.linspace(0, 1, 20)  # an effect of the genes' order
    table = response_table(adata, SCHEMA, [(unseen_pairs(adata.obs, SCHEMA).made[0], {})])
    means = adata.to_df().groupby([adata.obs["line"], adata.obs["drug"]]).mean()
    change = {
        (x, t): (means.loc[(x, t)] - means.loc[(x, "none")]).to_numpy()
        for x, t in itertools.product("uvw", "abc")
    }
    reference = np.mean([values for key, values in change.items() if key != ("u", "a")], axis=0)
    guess = np.mean([change["v", "a"], change["w", "a"]], axis=0)
    expected = np.corrcoef(guess - reference, change["u", "a"] - reference)[0, 1]
    found = wide(table).loc[("a", "u", "treatment_mean_shift"), "pearson_vs_treated"]
    assert found == pytest.approx(expected)


def test_changes_are_those_that_were_scored(interacting):
    adata, _, table = interacting
    means = adata.to_df().groupby([adata.obs["line"], adata.obs["drug"]]).mean()
    own = table.changes["mean_log1p"].loc[("unseen pair", "a", "u")]
    real = means.loc[("u", "a")] - means.loc[("u", "none")]
    pd.testing.assert_series_equal(own.loc["real"], real, check_names=False)
    np.testing.assert_allclose(own.loc["oracle"], real)
    assert set(own.index) == {"real"} | set(table.frame["method"]) - {"noise_ceiling"}
    error = ((own.loc["additive"] - real) ** 2).mean()
    noise = 0.25 * (1 / 6 - 1 / 12)  # of half of the controls beyond that of all of them
    scored = wide(table).loc[("a", "u", "additive"), "mse_delta"]
    assert scored == pytest.approx(error + noise, rel=0.1)
    assert len(table.changes["mean_log1p"].loc[("unseen pair", "a")].groupby("context")) == 3


def test_a_baseline_is_a_function_with_its_words(monkeypatch):
    before = list(BASELINES)
    monkeypatch.setattr("pyro_fcr.metrics.baselines.BASELINES", known := dict(BASELINES))

    @baseline("twice the control mean")
    def doubled(conditions, treatment, context):
        return conditions.means[conditions.find((), context)]

    assert known["doubled"] == Baseline("twice the control mean", doubled)
    assert list(known) == [*before, "doubled"]


def repeated(n_cells, *, effects, n_repeats, seed=0, n_genes=40):
    """Scores of one pair in repeated experiments of three lines and drugs."""
    rng = np.random.default_rng(seed)
    design = list(itertools.product("uvw", ("none", "a", "b", "c")))
    means = {key: 4 + effects.get(key, np.zeros(n_genes)) for key in design}
    obs = pd.DataFrame(np.repeat(design, n_cells, axis=0), columns=["line", "drug"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    for _ in range(n_repeats):
        values = np.repeat([means[key] for key in design], n_cells, axis=0)
        adata = ad.AnnData(values + rng.normal(size=values.shape), obs=obs)
        scenario = unseen_pairs(adata.obs, SCHEMA).made[0]
        (pair,) = scenario.pairs
        true = effects.get(("u", "a"), rng.normal(size=n_genes))
        given = {"true": {pair: Prediction({"mean_log1p": true})}}
        found = response_table(adata, SCHEMA, [(scenario, given)], n_draws=10)
        yield wide(found).loc[("a", "u")]


def test_the_ceiling_is_what_a_perfect_prediction_scores():
    rng = np.random.default_rng(1)
    effects = {
        (line, drug): rng.normal(0, 0.3, 40) for line in "uvw" for drug in ("a", "b", "c")
    }  # fmt: skip
    mean = pd.concat(repeated(30, effects=effects, n_repeats=20)).groupby("method").mean()
    for name in ("cosine_logfc", "pearson_delta", "mse_delta"):
        perfect, ceiling = mean.loc["true", name], mean.loc["noise_ceiling", name]
        assert ceiling == pytest.approx(perfect, rel=0.05), name
    assert mean.loc["true", "cosine_logfc"] < 0.9  # far from 1: the noise is what sets it


def test_control_cells_that_pose_as_treated_are_not_predicted():
    """Drugs without effect: noise of the controls, which a line's drugs share, is no agreement."""
    tables = pd.concat(repeated(30, effects={}, n_repeats=20))
    for name in ("cosine_logfc", "pearson_delta"):
        of = tables[name].groupby("method")
        error = of.std() / np.sqrt(of.count())
        mean = of.mean().drop(["noise_ceiling", "control_mean"])
        assert (mean.abs() < 3 * error[mean.index] + 0.02).all(), (name, mean)


def test_control_cells_that_were_held_out_measure_and_those_of_training_predict():
    adata = log_cells(12, interaction=1.0, noise=0.5)
    scenario = unseen_pairs(adata.obs, SCHEMA, controls=0.5).made[0]
    table = response_table(adata, SCHEMA, [(scenario, {})], n_draws=20)
    control = ((adata.obs["drug"] == "none") & (adata.obs["line"] == "u")).to_numpy()
    assert (control & scenario.test).sum() == (control & scenario.train).sum() == 6
    treated = adata.X[scenario.test & ~control].mean(axis=0)
    real = treated - adata.X[scenario.test & control].mean(axis=0)
    np.testing.assert_allclose(table.changes["mean_log1p"].xs("real", level="method").iloc[0], real)
    means = training_means(adata.X, read_layout(adata.obs, SCHEMA), scenario.train,
                           scale="mean_log1p")  # fmt: skip
    error = ((means.mean_shift(context=("u",)) - real) ** 2).mean()
    scored = wide(table).loc[("a", "u", "context_mean_shift"), "mse_delta"]
    assert scored == pytest.approx(error)


def test_repeated_fits_are_averaged_and_their_spread_is_in_the_interval():
    adata = log_cells(12, interaction=1.0, noise=0.01)
    scenario = unseen_pairs(adata.obs, SCHEMA, controls=0.5).made[0]
    (pair,) = scenario.pairs
    change = np.linspace(-1, 1, 20)
    one, other = (Prediction({"mean_log1p": sign * change}) for sign in (1, 2))

    def scored(given):
        table = response_table(adata, SCHEMA, [(scenario, {"m": {pair: given}})], n_draws=100)
        return table.frame.query("method == 'm' and metric == 'mse_delta'").iloc[0]

    first, second, both = scored(one), scored([other]), scored([one, other])
    assert both["value"] == pytest.approx((first["value"] + second["value"]) / 2)
    assert both["high"] - both["low"] > 10 * (first["high"] - first["low"])
    assert both["high"] > max(first["value"], second["value"]) * 0.95


def test_the_error_of_few_draws_is_that_of_other_draws():
    rng = np.random.default_rng(0)
    adata = log_cells(40, interaction=1.0, noise=0.01)
    scenario = unseen_pairs(adata.obs, SCHEMA, controls=0.5).made[0]
    (pair,) = scenario.pairs
    scores, errors = [], []
    for _ in range(30):
        arms = (4 + mean + rng.normal(size=(100, 20)) for mean in (1.0, 0.0))
        given = predicted_cells(*arms, expression="log1p", n_draws=10)
        table = response_table(adata, SCHEMA, [(scenario, {"m": {pair: given}})], n_draws=2)
        rows = table.frame.query("metric == 'mse_delta' and scale == 'mean_log1p'")
        own = rows.set_index("method").loc["m"]
        scores.append(own["value"])
        errors.append(own["monte_carlo"])
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.35)
