"""Noise as an input: drawn outside of a step in its order, it is what the step would have drawn."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from pyro_fcr.modes import seeded
from pyro_fcr.training.noise import GivenNoise, ListedDraws

BY_SHAPE = {
    "rsample": lambda x: dist.Normal(x, 1.0).rsample(),
    "plate": lambda x: dist.LogNormal(x, x.exp()).to_event(1).rsample(),
    "laplace": lambda x: dist.Laplace(x, 1.0).rsample(),
    "factors": lambda x: dist.MultivariateNormal(x, torch.eye(3)).rsample(),
    "flow": lambda x: dist.TransformedDistribution(
        dist.Normal(x, 1.0), [dist.transforms.SigmoidTransform()]
    ).rsample(),
    "no arguments": lambda x: x + torch.randn(5, 3) + torch.randint(3, (5, 3)),
    "like": lambda x: x * torch.rand_like(x) + torch.randn_like(x.t()).t(),
    "exponential": lambda x: x + torch.empty(5, 3).exponential_(2.0),
    "transposed": lambda x: x + torch.empty(3, 5).t().normal_(),
    "dropout": lambda x: F.dropout(x, 0.3),
    "fused dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "permutation": lambda x: x[torch.randperm(5)],
    "double": lambda x: x + torch.rand(5, 3, dtype=torch.float64),
    "mask": lambda x: x * torch.empty(5, 3).bernoulli_(0.4),
}
BY_VALUE = {
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "gamma": lambda x: dist.Gamma(x.exp(), 1.0).rsample(),
    "poisson": lambda x: torch.poisson(x.exp()),
    "normal": lambda x: torch.normal(x, x.exp()),
    "filled by values": lambda x: torch.empty(5, 3).bernoulli_(x.sigmoid()),
}


@pytest.fixture
def x():
    return torch.linspace(-1.0, 1.0, 15).reshape(5, 3)


@pytest.fixture(autouse=True)
def _without_validation():
    with pyro.validation_enabled(is_validate=False):
        yield


def noise_of(function, x):
    with ListedDraws() as listed:
        function(x)
    return listed.draws


@pytest.mark.parametrize("kind", BY_SHAPE)
def test_what_is_drawn_before_is_what_would_have_been_drawn(kind, x):
    draws = noise_of(BY_SHAPE[kind], x)
    assert draws
    with seeded(4):
        expected = [BY_SHAPE[kind](x) for _ in range(2)]
        after = torch.rand(())
    with seeded(4):
        found = []
        for _ in range(2):
            noise = [draw() for draw in draws]
            with GivenNoise(noise):
                found.append(BY_SHAPE[kind](x))
        assert torch.rand(()) == after
    assert not torch.equal(*expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.0 if "fused" not in kind else 1e-6, atol=0)


@pytest.mark.parametrize("kind", BY_VALUE)
def test_what_depends_on_values_cannot_be_drawn_before(kind, x):
    assert noise_of(BY_VALUE[kind], x) == [None]


def test_gradients_go_through_given_noise(x):
    def slope(x):
        x = x.clone().requires_grad_()
        value = torch.native_dropout(dist.Normal(x.square(), x.exp()).rsample(), 0.5, True)[0].sum()
        return torch.autograd.grad(value, x)[0]

    draws = noise_of(slope, x)
    with seeded(1):
        expected = slope(x)
    with seeded(1):
        noise = [draw() for draw in draws]
    with GivenNoise(noise):
        found = slope(x)
    torch.testing.assert_close(found, expected)
    assert (expected == 0).any()
    assert (expected != 0).any()


def test_evaluation_draws_nothing(x):
    assert noise_of(lambda x: torch.native_dropout(x, 0.3, False)[0], x) == []
    assert noise_of(lambda x: F.dropout(x, 0.3, training=False), x) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA notes the stack until it is used")
def test_a_seed_is_quick(monkeypatch):
    monkeypatch.delattr("traceback.format_stack")  # of every kind of device that is not there
    with seeded(1):
        first = torch.rand(3)
    torch.rand(3)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
