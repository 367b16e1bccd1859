import numpy as np
import pytest
from scipy import sparse

from pyro_fcr.discovery.contrasts import ConditionCells, deviation, shrink

N = 40  # cells of a condition


def draw(rng, log_rate, *, n=N, replicate_sd=0.0, n_replicates=4):
    """Overdispersed counts of conditions, and the replicate of each cell."""
    log_rate = np.atleast_2d(log_rate)
    condition = np.repeat(np.arange(len(log_rate)), n)
    replicate = condition * n_replicates + np.tile(np.arange(n) % n_replicates, len(log_rate))
    shift = rng.normal(0, replicate_sd, (replicate.max() + 1, log_rate.shape[1]))
    library = rng.lognormal(5, 0.4, len(condition))
    mean = library[:, None] * np.exp(log_rate[condition] + shift[replicate])
    counts = rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape))
    return counts, library, condition, replicate


def test_the_mean_is_the_log_of_pooled_rates_for_sparse_and_dense_counts():
    rng = np.random.default_rng(0)
    counts, library, condition, _ = draw(rng, rng.normal(-3, 1, (3, 7)))
    dense = ConditionCells(counts, library, condition, 3)
    pooled = counts[condition == 1].sum(axis=0) + 0.5
    np.testing.assert_allclose(dense.mean[1], np.log(pooled / library[condition == 1].sum()))
    thin = ConditionCells(sparse.csr_matrix(counts), library, condition, 3)
    np.testing.assert_array_equal(thin.mean, dense.mean)
    np.testing.assert_array_equal(thin.effect_variance(1, 0), dense.effect_variance(1, 0))


def test_log1p_values_have_plain_means_and_their_standard_errors():
    values = np.random.default_rng(0).normal(size=(2 * N, 5))
    condition = np.repeat([0, 1], N)
    cells = ConditionCells(values, np.ones(2 * N), condition, 2, log=False)
    np.testing.assert_allclose(cells.mean, [values[:N].mean(axis=0), values[N:].mean(axis=0)])
    expected = values[:N].var(axis=0) / N + values[N:].var(axis=0) / N
    np.testing.assert_allclose(cells.effect_variance(1, 0), expected)


def test_errors_are_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(0)
    log_rate = np.array([[-3.0, -5.0, -2.0], [-2.0, -4.0, -2.5]])
    runs = [ConditionCells(*draw(rng, log_rate)[:3], 2) for _ in range(600)]
    effects = np.array([cells.mean[1] - cells.mean[0] for cells in runs])
    claimed = np.mean([cells.effect_variance(1, 0) for cells in runs], axis=0)
    np.testing.assert_allclose(claimed, effects.var(axis=0), rtol=0.2)
    np.testing.assert_allclose(effects.mean(axis=0), log_rate[1] - log_rate[0], atol=0.03)


def test_a_projection_sums_genes_with_their_correlation():
    rng = np.random.default_rng(0)
    counts, library, condition, _ = draw(rng, np.full((2, 4), -3.0))
    counts[:, 1] = counts[:, 0]
    cells = ConditionCells(counts, library, condition, 2)
    for weights, factor in ((np.eye(4)[0], 1.0), (np.array([1.0, 1.0, 0, 0]), 4.0)):
        level, covariance = cells.project(weights, np.array([1, 0]))
        np.testing.assert_allclose(level, cells.mean[[1, 0]] @ weights)
        contrast = np.array([1.0, -1.0])
        single = cells.effect_variance(1, 0)[0]
        assert contrast @ covariance @ contrast == pytest.approx(factor * single, rel=0.05)
        assert covariance[0, 1] == 0.0


def test_replicates_keep_the_level_where_cells_do_not():
    rng, ratios = np.random.default_rng(0), {True: [], False: []}
    for _ in range(60):
        counts, library, condition, replicate = draw(rng, np.full((2, 10), -3.0), replicate_sd=0.4)
        for given in (True, False):
            cells = ConditionCells(counts, library, condition, 2, replicate if given else None)
            z = (cells.mean[1] - cells.mean[0]) / np.sqrt(cells.effect_variance(1, 0))
            ratios[given].append(cells.z_value(z))
    wrong = {given: np.mean(np.abs(z) > 1.96) for given, z in ratios.items()}
    assert wrong[True] < 0.12
    assert wrong[False] > 0.25


def test_a_replicate_in_both_conditions_cancels():
    rng = np.random.default_rng(0)
    library = np.full(80, 200.0)
    condition, donor = np.repeat([0, 1], 40), np.tile(np.arange(4), 20)
    shift = np.array([-0.8, -0.3, 0.3, 0.8])[donor][:, None]
    counts = rng.poisson(library[:, None] * np.exp(-2.0 + shift + np.zeros((80, 6))))
    paired = ConditionCells(counts, library, condition, 2, donor).effect_variance(1, 0)
    apart = ConditionCells(counts, library, condition, 2, donor + 4 * condition)
    assert (paired < 0.2 * apart.effect_variance(1, 0)).all()


def test_few_replicates_make_z_values_smaller():
    counts, library, condition, replicate = draw(np.random.default_rng(0), np.full((2, 3), -3.0))
    replicate[condition == 1] %= 3  # four in one condition, three in the other
    few = ConditionCells(counts, library, condition, 2, replicate)
    assert few.degrees_of_freedom == 2
    np.testing.assert_allclose(few.z_value([4.303, -4.303]), [1.96, -1.96], atol=1e-3)
    assert ConditionCells(counts, library, condition, 2).z_value(1.5) == 1.5


def test_one_odd_context_does_not_make_the_others_deviate():
    effects = np.array([[1.0], [1.0], [1.0], [1.0], [4.0]])
    np.testing.assert_array_equal(deviation(effects).ravel(), [0, 0, 0, 0, 3])


@pytest.mark.parametrize("useful", [True, False])
def test_shrinkage_trusts_the_model_as_far_as_the_data_do(useful):
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(2000) < 0.2, rng.normal(0, 2, 2000), 0.0)
    expected = truth + rng.normal(0, 0.2, 2000) if useful else rng.normal(0, 1, 2000)
    observed = truth + rng.normal(0, 1, 2000)
    mean, sd = shrink(observed, np.ones(2000), expected)
    inside = np.abs(mean - truth) < 1.645 * sd
    assert 0.85 < inside.mean() < 0.98
    error = np.sqrt(np.mean((mean - truth) ** 2))
    best = min(np.sqrt(np.mean((v - truth) ** 2)) for v in (observed, np.zeros(2000)))
    assert error < (0.35 if useful else 0.95) * best
    if not useful:
        alone, _ = shrink(observed, np.ones(2000), np.zeros(2000))
        assert error < 1.02 * np.sqrt(np.mean((alone - truth) ** 2))
