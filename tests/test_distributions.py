import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from scipy.special import gammaln

from pyro_fcr.distributions import (
    Exogenous,
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    log_rising_ratio,
)

COUNTS = np.array([0.0, 1.0, 2.0, 7.0, 150.0, 1e4])


@pytest.mark.parametrize("theta", [1e-3, 0.1, 1.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("mean", [1e-3, 0.5, 20.0, 1e4])
def test_negative_binomial_agrees_with_float64(mean, theta):
    log_mean, log_theta = (torch.tensor(np.log(v), dtype=torch.float32) for v in (mean, theta))
    mine = NegativeBinomial(log_mean, log_theta).log_prob(torch.tensor(COUNTS).float()).numpy()
    # SciPy's own form loses digits for large theta; this one is exact in float64.
    log_ratio = np.log(mean) - np.log(theta)
    rising = gammaln(COUNTS + theta) - gammaln(theta) if theta < 1e5 else _rising(theta)
    softplus = np.logaddexp(0.0, log_ratio)
    true = rising - gammaln(COUNTS + 1) + COUNTS * (log_ratio - softplus) - theta * softplus
    rounding = 2 * np.finfo(np.float32).eps * np.abs([rising - COUNTS * np.log(theta), true]).max()
    np.testing.assert_allclose(mine, true, rtol=2e-4, atol=max(1e-2, rounding))


def _rising(theta):
    return np.array([np.log(theta + np.arange(int(y))).sum() for y in COUNTS])


@pytest.mark.parametrize("theta", [1e-3, 1.0, 1e3, 1e6])
def test_dispersion_gradient_in_float32(theta):
    counts = torch.tensor([0.0, 1.0, 5.0, 300.0])
    gradients = []
    for dtype in (torch.float32, torch.float64):
        log_theta = torch.tensor(np.log(theta), dtype=dtype, requires_grad=True)
        log_mean = torch.zeros(4, dtype=dtype)
        NegativeBinomial(log_mean, log_theta).log_prob(counts.to(dtype)).sum().backward()
        gradients.append(log_theta.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=5e-3, abs=1e-6)


def test_second_derivatives_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    log_mean = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    log_theta = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    counts = torch.tensor([[0.0, 1.0, 40.0]]).double().expand(5, 3)

    def mine(log_mean, log_theta):
        return NegativeBinomial(log_mean, log_theta).log_prob(counts).sum()

    def reference(log_mean, log_theta):
        family = torch.distributions.NegativeBinomial(
            log_theta.exp().expand(5, 3), logits=log_mean - log_theta
        )
        return family.log_prob(counts).sum()

    hessians = [
        torch.autograd.functional.hessian(function, (log_mean, log_theta))
        for function in (mine, reference)
    ]
    torch.testing.assert_close(*hessians, rtol=1e-5, atol=1e-6)


def test_rising_factorial_is_the_product():
    base, count = torch.tensor([0.5, 3.0, 100.0]), torch.tensor([4.0, 0.0, 2.0])
    product = torch.tensor([1.0 * 3.0 * 5.0 * 7.0, 1.0, 1.01])
    torch.testing.assert_close(log_rising_ratio(base, count), product.log())


@pytest.mark.parametrize("family", ["nb", "zinb"])
def test_draws_have_the_stated_moments_and_probabilities(family):
    log_mean, log_theta = torch.tensor(1.5), torch.tensor(0.3)
    distribution = NegativeBinomial(log_mean, log_theta)
    if family == "zinb":
        distribution = ZeroInflatedNegativeBinomial(log_mean, log_theta, torch.tensor(-0.5))
    draws = distribution.sample((200_000,))
    assert draws.mean().item() == pytest.approx(distribution.mean.item(), rel=0.02)
    assert draws.var().item() == pytest.approx(distribution.variance.item(), rel=0.04)
    for count in (0.0, 1.0, 5.0):
        share = (draws == count).float().mean().item()
        assert share == pytest.approx(
            distribution.log_prob(torch.tensor(count)).exp().item(), abs=5e-3
        )


def test_zero_inflation_sums_to_one():
    distribution = ZeroInflatedNegativeBinomial(
        torch.tensor(0.7), torch.tensor(0.0), torch.tensor(1.0)
    )
    assert distribution.log_prob(torch.arange(400.0)).exp().sum().item() == pytest.approx(1.0)


def test_poisson_is_the_limit():
    mine = NegativeBinomial(torch.tensor(np.log(4.0)), torch.tensor(np.log(1e7)))
    true = stats.poisson.logpmf([0, 3, 9], 4.0)
    assert mine.log_prob(torch.tensor([0.0, 3.0, 9.0])).numpy() == pytest.approx(true, rel=1e-4)


def test_negative_counts_are_refused_under_validation():
    with pyro.validation_enabled(True), pytest.raises(ValueError, match="support"):
        NegativeBinomial(torch.zeros(1), torch.zeros(1), validate_args=True).log_prob(
            torch.tensor([-1.0])
        )


def test_exogenous_site_gives_its_value_and_claims_nothing():
    value = torch.eye(3)
    distribution = Exogenous(value)
    assert torch.equal(distribution.sample(), value)
    assert torch.equal(distribution.log_prob(torch.randn(3, 3)), torch.zeros(3))
    assert distribution.expand((5, 3)).sample().shape == (5, 3, 3)
