import numpy as np
import pytest
from scipy import sparse

from pyro_fcr.discovery.contrasts import ConditionCells, Error
from pyro_fcr.discovery.pooling import consensus, deviation, shrink

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
    for one, other in zip(thin.effect_error(1, 0), dense.effect_error(1, 0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_log1p_values_have_plain_means_and_their_standard_errors():
    values = np.random.default_rng(0).normal(size=(2 * N, 5))
    condition = np.repeat([0, 1], N)
    cells = ConditionCells(values, np.ones(2 * N), condition, 2, log=False)
    np.testing.assert_allclose(cells.mean, [values[:N].mean(axis=0), values[N:].mean(axis=0)])
    expected = values[:N].var(axis=0, ddof=1) / N + values[N:].var(axis=0, ddof=1) / N
    np.testing.assert_allclose(cells.effect_error(1, 0).variance, expected)


def test_errors_are_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(0)
    log_rate = np.array([[-3.0, -5.0, -2.0], [-2.0, -4.0, -2.5]])
    runs = [ConditionCells(*draw(rng, log_rate)[:3], 2) for _ in range(600)]
    effects = np.array([cells.mean[1] - cells.mean[0] for cells in runs])
    claimed = np.mean([cells.effect_error(1, 0).variance for cells in runs], axis=0)
    np.testing.assert_allclose(claimed, effects.var(axis=0), rtol=0.2)
    np.testing.assert_allclose(effects.mean(axis=0), log_rate[1] - log_rate[0], atol=0.03)


def test_a_reading_sums_genes_with_their_correlation():
    rng = np.random.default_rng(0)
    counts, library, condition, _ = draw(rng, np.full((2, 4), -3.0))
    counts[:, 1] = counts[:, 0]
    cells = ConditionCells(counts, library, condition, 2)
    single = cells.effect_error(1, 0)
    for loading, factor in ((np.eye(4)[0], 1.0), (np.array([1.0, 1.0, 0, 0]), 4.0)):
        level, error = cells.read(np.array([loading, -loading]), np.array([1, 0]))
        assert level == pytest.approx((cells.mean[1] - cells.mean[0]) @ loading)
        assert error.variance == pytest.approx(factor * single.variance[0], rel=1e-6)
        assert error.doubt == pytest.approx(factor**2 * single.doubt[0], rel=1e-6)


def test_one_cell_with_most_counts_of_a_gene_is_no_evidence():
    rng = np.random.default_rng(0)
    library, condition = np.full(200, 1000.0), np.repeat([0, 1], 100)
    counts = rng.poisson(0.3, (200, 2))
    counts[150, 0] = 32 * counts[100:, 0].sum()
    counts[100:, 1] += rng.poisson(0.9, 100)  # as many cells respond as there are
    cells = ConditionCells(counts, library, condition, 2)
    error, effect = cells.effect_error(1, 0), cells.mean[1] - cells.mean[0]
    z = error.z_value(effect)
    assert effect[0] > 3
    assert z[0] < 1.5
    assert z[1] > 4
    df = error.variance**2 / error.doubt
    assert df[0] == pytest.approx(2, abs=0.5)
    assert df[1] > 30


def test_counts_vary_at_least_like_poisson_where_a_condition_shows_none():
    counts = np.array([[0.0]] * 20 + [[5.0]] * 20)
    cells = ConditionCells(counts, np.full(40, 100.0), np.repeat([0, 1], 20), 2)
    variance = cells.effect_error(1, 0).variance[0]
    assert variance == pytest.approx(2.0 + 1 / 100.5)
    level, error = cells.read(np.array([[1.0], [-1.0]]), np.array([1, 0]))
    assert error.variance == pytest.approx(variance)
    assert level == pytest.approx(np.log(100.5 / 0.5))


@pytest.mark.parametrize("n", [5, 12])
def test_small_groups_keep_the_level(n):
    rng, z = np.random.default_rng(0), []
    for _ in range(150):
        cells = ConditionCells(*draw(rng, np.full((2, 10), -2.0), n=n)[:3], 2)
        z.append(cells.effect_error(1, 0).z_value(cells.mean[1] - cells.mean[0]))
    assert 0.015 < np.mean(np.abs(z) > 1.96) < 0.065
    assert np.mean(np.abs(z) > 3.29) < 0.004


def test_replicates_keep_the_level_where_cells_do_not():
    rng, z = np.random.default_rng(0), {True: [], False: []}
    for _ in range(60):
        counts, library, condition, replicate = draw(rng, np.full((2, 10), -3.0), replicate_sd=0.4)
        for given in (True, False):
            cells = ConditionCells(counts, library, condition, 2, replicate if given else None)
            z[given].append(cells.effect_error(1, 0).z_value(cells.mean[1] - cells.mean[0]))
    wrong = {given: np.mean(np.abs(each) > 1.96) for given, each in z.items()}
    assert wrong[True] < 0.1
    assert wrong[False] > 0.25


def test_a_replicate_in_both_conditions_cancels():
    rng = np.random.default_rng(0)
    library = np.full(80, 200.0)
    condition, donor = np.repeat([0, 1], 40), np.tile(np.arange(4), 20)
    shift = np.array([-0.8, -0.3, 0.3, 0.8])[donor][:, None]
    counts = rng.poisson(library[:, None] * np.exp(-2.0 + shift + np.zeros((80, 6))))
    paired = ConditionCells(counts, library, condition, 2, donor)
    apart = ConditionCells(counts, library, condition, 2, donor + 4 * condition)
    assert (paired.effect_error(1, 0).variance < 0.2 * apart.effect_error(1, 0).variance).all()
    loading = np.ones((2, 6)) * [[1.0], [-1.0]]
    ends = np.array([1, 0])
    errors = [cells.read(loading, ends)[1].variance for cells in (paired, apart)]
    assert errors[0] < 0.2 * errors[1]


def test_few_replicates_make_z_values_smaller():
    counts, library, condition, replicate = draw(np.random.default_rng(0), np.full((2, 3), -3.0))
    replicate[condition == 1] %= 3  # four in one condition, three in the other
    few = ConditionCells(counts, library, condition, 2, replicate).effect_error(1, 0)
    assert (few.variance**2 / few.doubt <= 2.0 + 1e-9).all()
    known = Error(np.ones(2), np.full(2, 0.5))  # two degrees of freedom
    np.testing.assert_allclose(known.z_value([4.303, -4.303]), [1.96, -1.96], atol=1e-3)
    assert Error(np.ones(1), np.zeros(1)).z_value([1.5]) == pytest.approx(1.5)
    assert Error(np.zeros(1), np.zeros(1)).z_value([1.5]) == 0.0


def test_an_exact_context_that_differs_is_not_the_consensus():
    rng = np.random.default_rng(0)
    sd = np.array([0.02, 0.2, 0.2, 0.2, 0.2])[:, None] * np.ones((5, 300))
    effects = np.array([[2.0], [1.0], [1.0], [1.0], [1.0]]) + sd * rng.normal(size=sd.shape)
    shared, variance = consensus(effects, sd**2)
    assert abs(np.median(shared) - 1) < 0.05
    assert np.std(shared) < 0.2
    assert np.median(variance) == pytest.approx(0.01, rel=0.3)
    assert abs(np.median(np.average(effects, axis=0, weights=1 / sd[:, 0] ** 2)) - 1) > 0.9


def test_one_odd_context_does_not_make_the_others_deviate():
    effects = np.array([[1.0], [1.0], [1.0], [1.0], [4.0]])
    np.testing.assert_array_equal(deviation(effects).ravel(), [0, 0, 0, 0, 3])


@pytest.mark.parametrize("useful", [True, False])
def test_shrinkage_trusts_the_model_as_far_as_the_data_do(useful):
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(2000) < 0.2, rng.normal(0, 2, 2000), 0.0)
    expected = truth + rng.normal(0, 0.2, 2000) if useful else rng.normal(0, 1, 2000)
    observed = truth + rng.normal(0, 1, 2000)
    found = shrink(observed, np.ones(2000), expected)
    mean, sd = found.mean, found.sd
    inside = np.abs(mean - truth) < 1.645 * sd
    assert 0.85 < inside.mean() < 0.98
    error = np.sqrt(np.mean((mean - truth) ** 2))
    best = min(np.sqrt(np.mean((v - truth) ** 2)) for v in (observed, np.zeros(2000)))
    assert error < (0.35 if useful else 0.95) * best
    if not useful:
        alone = shrink(observed, np.ones(2000), np.zeros(2000)).mean
        assert error < 1.02 * np.sqrt(np.mean((alone - truth) ** 2))
