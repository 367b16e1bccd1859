"""The cheap sum of count likelihoods over a batch, against entry-by-entry float64 and SciPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal
from scipy import sparse
from scipy.special import gammaln
from torch import nn

from pyro_fcr import Architecture
from pyro_fcr.batch import TAIL_BOUND, TAIL_COUNTS, Batch
from pyro_fcr.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyro_fcr.graph.runs import Run
from pyro_fcr.objective.terms import Reconstruction
from pyro_fcr.training.batches import Summaries

N_GENES = 7


def counts(largest: int = 300) -> np.ndarray:
    rng = np.random.default_rng(0)
    y = rng.negative_binomial(0.4, 0.2, size=(40, N_GENES))
    y[3, 2], y[5, 2], y[11, 6] = largest, TAIL_BOUND, TAIL_BOUND + 1
    y[:, 4] = 0
    return y.astype(np.uint32)


def summary(y: np.ndarray, rows=None, *, kind: str = "csr", tails: bool = True):
    matrix = sparse.csr_array(y) if kind == "csr" else y
    rows = np.arange(len(y)) if rows is None else rows
    made = Summaries(matrix, np.arange(len(y)), batch_size=len(rows), tails=tails)
    return made.summary(rows, matrix[rows])


def parameters(theta: float, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    log_mean = torch.randn(40, N_GENES, generator=generator, dtype=torch.float64).to(dtype)
    log_theta = torch.full((N_GENES,), float(np.log(theta)), dtype=dtype)
    return log_mean.requires_grad_(), log_theta.requires_grad_()


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_tables_hold_the_counts(kind):
    y = counts()
    rows = np.array([3, 5, 11, 0, 1])
    made = summary(y, rows, kind=kind)
    k = TAIL_COUNTS.numpy()
    expected = (y[rows][:, :, None] > k).sum(axis=0)
    np.testing.assert_array_equal(made.tails.exceeding, expected)
    high = {(2, 300 - TAIL_BOUND), (6, 1)}
    listed = {
        (int(g), int(e))
        for g, e in zip(made.tails.high_gene, made.tails.high_excess, strict=True)
        if e
    }
    assert listed == high
    assert made.log_factorial.item() == pytest.approx(gammaln(y[rows] + 1.0).sum(), rel=1e-6)


def test_tables_of_all_batches_have_one_shape():
    y = counts()
    shapes = {
        summary(y, np.array(rows)).tails.high_gene.shape for rows in ([3, 11], [0, 1], [5, 6])
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("tails", [True, False])
@pytest.mark.parametrize("family", ["nb", "zinb"])
@pytest.mark.parametrize("theta", [1e-3, 0.1, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("largest", [40, 3_000, 100_000])
def test_sum_and_gradients_are_those_of_float64(largest, theta, family, tails):
    y = counts(largest)
    exact = _sum_and_gradients(y, theta, family, None, torch.float64)
    made = _sum_and_gradients(y, theta, family, summary(y, tails=tails), torch.float32)
    for mine, true in zip(made, exact, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine.double(), true, rtol=5e-3, atol=2e-6 * true.abs().max())


def _sum_and_gradients(y, theta, family, made, dtype):
    log_mean, log_theta = parameters(theta, dtype=dtype)
    distribution = NegativeBinomial(log_mean, log_theta)
    if family == "zinb":
        distribution = ZeroInflatedNegativeBinomial(
            log_mean, log_theta, torch.tensor(-1.0).to(dtype)
        )
    value = torch.from_numpy(y.astype(float)).to(dtype)
    total = distribution.log_prob_sum(value, made) if made else distribution.log_prob(value).sum()
    total.backward()
    return total.detach(), log_mean.grad, log_theta.grad


def test_no_short_cut_for_a_dispersion_per_cell():
    log_mean, _ = parameters(1.0)
    y = torch.from_numpy(counts().astype(np.float32))
    distribution = NegativeBinomial(log_mean, torch.zeros(40, N_GENES))
    assert distribution.log_prob_sum(y, summary(counts())) is None


@pytest.fixture(scope="module")
def programs():
    y = counts()
    library = y.sum(axis=1, keepdims=True) + 1.0
    values = {"y": y, "library": library, "x": np.eye(2)[np.arange(40) % 2], "t": np.ones((40, 1))}
    codes = {"x": torch.arange(40) % 2, "t": torch.zeros(40, dtype=torch.long)}
    tensors = {name: torch.as_tensor(each.astype(np.float32)) for name, each in values.items()}
    batch = Batch(tensors, codes, {"x": 2, "t": 1}, n_total=40, counts=summary(y))
    torch.manual_seed(0)
    widths = {"y": N_GENES, "x": 2, "t": 1}
    return (*Architecture(n_x=2, n_t=2, n_tx=1, n_hidden=8).build(widths, target_sum=1e3), batch)


def loss(model: nn.Module, guide: nn.Module, batch: Batch) -> float:
    term = Reconstruction("y")
    torch.manual_seed(3)
    return term(Run.trace(model, guide, batch)).item()


def test_the_loss_takes_the_cheap_sum_and_it_is_the_same(programs, monkeypatch):
    model, guide, batch = programs
    entrywise = loss(model, guide, replace(batch, counts=None))
    monkeypatch.setattr(NegativeBinomial, "log_prob", None)  # must not be needed
    assert loss(model, guide, batch) == pytest.approx(entrywise, rel=1e-5)


@pytest.mark.parametrize("handler", ["scale", "mask", "other counts"])
def test_the_cheap_sum_is_left_where_it_would_be_wrong(programs, handler):
    model, guide, batch = programs
    other = poutine.condition(lambda b: model(b.without("y")), data={"y": batch["y"] + 1.0})
    changed = {
        "scale": poutine.scale(model, scale=0.5),
        "mask": poutine.mask(model, mask=torch.arange(40) < 10),
        "other counts": other,
    }[handler]
    assert Run.trace(model, guide, batch).log_prob_sum("y") is not None
    assert Run.trace(changed, guide, batch).log_prob_sum("y") is None


def test_a_normal_likelihood_has_no_short_cut(programs):
    _, guide, batch = programs
    log_model, _ = Architecture(n_x=2, n_t=2, n_tx=1, n_hidden=8, likelihood="normal").build(
        {"y": N_GENES, "x": 2, "t": 1}, target_sum=None
    )
    run = Run.trace(log_model, guide, batch)
    assert isinstance(run.prior("y").base_dist, Normal)
    assert run.log_prob_sum("y") is None


def test_other_cells_leave_the_sums_behind(programs):
    _, _, batch = programs
    assert batch.take(torch.arange(3)).counts is None
    assert batch.without("y").counts is None
    assert batch.without("x").counts is batch.counts
    assert Batch.concatenate([batch, batch]).counts is None
