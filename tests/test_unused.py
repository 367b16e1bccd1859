"""Effects held against cells that no fit has used: intervals and q-values, on known truth."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pyro_fcr import Schema
from pyro_fcr.data import Split, register
from pyro_fcr.discovery.pooling import shrink
from pyro_fcr.discovery.unused import Arm, UnusedCells

SCHEMA = Schema(treatment_key="drug", control="none", covariate_keys="line")
N_GENES, N_CELLS = 400, 80
LINES = ["u", "v", "w"]


@pytest.fixture(scope="module")
def screen():
    """Counts of three lines under a drug, and its true effects; two genes in three have none."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 4.0, (3, N_GENES))
    truth = np.where(np.arange(N_GENES) % 3 == 0, rng.normal(0, 0.8, (3, N_GENES)), 0.0)
    conditions = [(line, drug) for line in LINES for drug in ("none", "a")]
    obs = pd.DataFrame([c for c in conditions for _ in range(N_CELLS)], columns=["line", "drug"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    log_rate = [np.log(rate[i]) + (truth[i] if j else 0.0) for i in range(3) for j in range(2)]
    depth = rng.lognormal(0, 0.3, (len(obs), 1))
    counts = rng.poisson(depth * rng.gamma(2.0, np.exp(np.repeat(log_rate, N_CELLS, axis=0)) / 2))
    shares = [np.log(np.exp(each) / np.exp(each).sum()) for each in log_rate]
    return ad.AnnData(counts.astype(np.float32), obs=obs), np.array(shares[1::2]) - shares[::2]


def unused(adata, train):
    registry, _ = register(adata, SCHEMA)
    split = Split(np.asarray(train), np.empty(0, dtype=int))
    fit = SimpleNamespace(registry=registry, source=lambda _: adata, split_of=lambda: split)
    return UnusedCells([fit], [{"line": line} for line in LINES])


@pytest.mark.parametrize(("slope", "error"), [(1.0, 0.05), (0.5, 0.0), (0.0, 0.3)])
def test_intervals_hold_the_truth_whether_the_model_is_right_or_not(screen, slope, error):
    adata, truth = screen
    estimate = slope * truth + np.random.default_rng(1).normal(0, error, truth.shape)
    cells, held = unused(adata, [0]), {}
    for level in (0.5, 0.9):
        held[level] = cells.hold(estimate, Arm("a"), level=level)
        apart = truth - np.median(truth, axis=0)
        for (lower, upper, _), true in zip(held[level], (truth, apart), strict=True):
            share = ((lower <= true) & (true <= upper)).mean()
            low, high = {0.5: (0.3, 0.75), 0.9: (0.85, 0.97)}[level]
            assert low < share < high
    width = np.nanmean(held[0.9][0][1] - held[0.9][0][0])
    assert width < (0.3 if error == 0.05 else 1.2)


def test_genes_without_an_effect_have_uniform_p_values(screen):
    adata, truth = screen
    guess = np.random.default_rng(2).normal(size=truth.shape)
    pvalue = unused(adata, [0]).hold(guess, Arm("a"), level=0.9)[0][2]
    null = np.arange(N_GENES) % 3 > 0
    assert stats.kstest(pvalue[:, null].ravel(), "uniform").statistic < 0.06
    right = unused(adata, [0]).hold(truth, Arm("a"), level=0.9)[0][2]
    strong = np.abs(truth) > 0.7
    assert np.median(right[strong]) < 1e-3
    assert np.median(unused(adata, [0]).hold(-truth, Arm("a"), level=0.9)[0][2][strong]) > 0.999


def test_conditions_with_few_unused_cells_have_no_values(screen):
    adata, truth = screen
    of_u = np.flatnonzero((adata.obs["line"] == "u") & (adata.obs["drug"] == "a"))
    held = unused(adata, of_u[3:]).hold(truth, Arm("a"), level=0.9)
    assert np.isnan(held[:, :, 0]).all()
    assert np.isfinite(held[0, :, 1:]).all()
    assert np.isnan(held[1, 2]).all()
    assert len(unused(adata, np.arange(adata.n_obs)).rows) == 0
    none = unused(adata, np.arange(adata.n_obs)).hold(truth, Arm("a"), level=0.9)
    assert np.isnan(none).all()


def test_a_mixture_has_the_quantiles_of_its_draws():
    rng = np.random.default_rng(3)
    found = shrink(np.array([3.0, 0.1, -1.0] * 20), np.full(60, 0.5), np.zeros(60))
    part = rng.choice(found.share.shape[1], size=200_000, p=found.share[0])
    draws = rng.normal(found.centre[0][part], found.spread[0][part])
    ends = found.interval(0.9)[:, 0]
    np.testing.assert_allclose(ends, np.quantile(draws, [0.05, 0.95]), atol=0.03)
    assert found.mean[0] == pytest.approx(draws.mean(), abs=0.02)
    assert found.sd[0] == pytest.approx(draws.std(), abs=0.02)
