"""Distributions that Pyro has not, or has not in the form that counts of cells need.

Counts are parametrised by the logarithm of the mean and of the dispersion ``theta``:
variance = mean + mean**2 / theta.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

_SHIFT = 8  # Stirling's series with two terms is exact in float32 from here on


class Exogenous(TorchDistribution):
    """A cause set by the experiment: draws give the value it was set to, no density is claimed.

    Every value has log-probability 0, so that the site can be observed, conditioned, intervened on
    and un-observed without changing any other probability.

    Parameters
    ----------
    value
        What the experiment set, ``(*batch_shape, n_features)``.
    """

    arg_constraints = {"value": constraints.real_vector}
    support = constraints.real_vector

    def __init__(self, value: Tensor, *, validate_args: bool | None = None) -> None:
        self.value = value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):  # noqa: D102
        return Exogenous(self.value.expand(*batch_shape, -1), validate_args=False)

    def sample(self, sample_shape=()):  # noqa: D102
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        return torch.zeros_like(value[..., 0])

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.value


def log_rising_factorial(base: Tensor, count: Tensor) -> Tensor:
    """``lgamma(base + count) - lgamma(base)`` without their cancellation in float32.

    Both arguments are shifted by 8 through the recurrence of the gamma function, where the
    difference of Stirling's series is taken term by term.

    Parameters
    ----------
    base
        Positive, any shape.
    count
        Non-negative counts, broadcastable with ``base``.

    Examples
    --------
    >>> log_rising_factorial(torch.tensor(2.0), torch.tensor(3.0)).exp().round()  # 2 * 3 * 4
    tensor(24.)
    """
    low, high = base + _SHIFT, base + count + _SHIFT
    series = (low - 0.5) * torch.log1p(count / low) + count * (torch.log(high) - 1.0)
    series = series + _stirling_tail(high) - _stirling_tail(low)
    return series - _log_shift_ratio(base, count)


def _stirling_tail(z: Tensor) -> Tensor:
    return (1.0 / 12.0 - 1.0 / (360.0 * z.square())) / z


def _log_shift_ratio(base: Tensor, count: Tensor) -> Tensor:
    total = torch.zeros_like(base + count)
    for start in range(0, _SHIFT, 4):  # four factors at a time stay within float32
        product = torch.ones_like(total)
        for k in range(start, start + 4):
            product = product * (1.0 + count / (base + k))
        total = total + torch.log(product)
    return total


class NegativeBinomial(TorchDistribution):
    """Negative binomial counts with a given mean and dispersion.

    Parameters
    ----------
    log_mean
        Logarithm of the mean, ``(*, n_genes)``.
    log_dispersion
        Logarithm of theta, broadcastable with ``log_mean``; large theta is Poisson.

    Examples
    --------
    >>> NegativeBinomial(torch.zeros(2), torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0])).exp()
    tensor([0.5000, 0.2500])
    """

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(
        self, log_mean: Tensor, log_dispersion: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.log_mean, self.log_dispersion = torch.broadcast_tensors(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):  # noqa: D102
        return NegativeBinomial(
            self.log_mean.expand(batch_shape),
            self.log_dispersion.expand(batch_shape),
            validate_args=False,
        )

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return self.mean + self.mean.square() * torch.exp(-self.log_dispersion)

    def sample(self, sample_shape=()):  # noqa: D102
        with torch.no_grad():
            theta = self.log_dispersion.exp().expand(self._extended_shape(sample_shape))
            return torch.poisson(torch._standard_gamma(theta) / theta * self.mean)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        theta = self.log_dispersion.exp()
        log_ratio = self.log_mean - self.log_dispersion
        log1p_ratio = F.softplus(log_ratio)  # log(1 + mean / theta), exact for theta -> infinity
        return value * (log_ratio - log1p_ratio) - theta * log1p_ratio + _count_term(value, theta)


def _count_term(value: Tensor, theta: Tensor) -> Tensor:
    """``lgamma(y + theta) - lgamma(theta) - lgamma(y + 1)``, which is 0 wherever y is 0."""
    value, theta = torch.broadcast_tensors(value, theta)
    if value.is_cuda:
        return log_rising_factorial(theta, value) - torch.lgamma(value + 1.0)
    value, flat_theta = torch.atleast_1d(value, theta)
    at = value.nonzero(as_tuple=True)
    counts = value[at]
    term = log_rising_factorial(flat_theta[at], counts) - torch.lgamma(counts + 1.0)
    return torch.zeros_like(flat_theta).index_put(at, term).reshape(theta.shape)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial whose counts are lost (set to 0) with a probability.

    Parameters
    ----------
    log_mean, log_dispersion
        As in :class:`NegativeBinomial`; the mean is that before the loss.
    dropout_logit
        Logit of the probability of loss, broadcastable with ``log_mean``.
    """

    arg_constraints = {**NegativeBinomial.arg_constraints, "dropout_logit": constraints.real}

    def __init__(
        self,
        log_mean: Tensor,
        log_dispersion: Tensor,
        dropout_logit: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        log_mean, self.dropout_logit = torch.broadcast_tensors(log_mean, dropout_logit)
        super().__init__(log_mean, log_dispersion, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):  # noqa: D102
        return ZeroInflatedNegativeBinomial(
            self.log_mean.expand(batch_shape),
            self.log_dispersion.expand(batch_shape),
            self.dropout_logit.expand(batch_shape),
            validate_args=False,
        )

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.log_mean.exp() * torch.sigmoid(-self.dropout_logit)

    @property
    def variance(self) -> Tensor:  # noqa: D102
        kept, mean = torch.sigmoid(-self.dropout_logit), self.log_mean.exp()
        over_poisson = torch.exp(-self.log_dispersion) + 1.0 - kept
        return kept * (mean + mean.square() * over_poisson)

    def sample(self, sample_shape=()):  # noqa: D102
        with torch.no_grad():
            counts = NegativeBinomial(self.log_mean, self.log_dispersion).sample(sample_shape)
            return counts * torch.bernoulli(torch.sigmoid(-self.dropout_logit).expand_as(counts))

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        kept = super().log_prob(value) - F.softplus(self.dropout_logit)
        lost = -F.softplus(-self.dropout_logit)
        return torch.where(value == 0, torch.logaddexp(kept, lost), kept)
