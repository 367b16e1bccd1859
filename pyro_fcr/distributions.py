"""Distributions that Pyro lacks, or lacks in the form that counts of cells need.

Counts are parametrised by the logarithm of the mean and of the dispersion ``theta``:
variance = mean + mean**2 / theta.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints

from pyro_fcr._torch import get_proxy_mode
from pyro_fcr.batch import TAIL_BOUND, TAIL_COUNTS, CountSummary, Tails

_SHIFT = 8  # Stirling's series with two terms is exact in float32 from here on
_FAR = 0.01


def moments(family: Any, *, n_draws: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each cell's latent, from draws where the family has no formula.

    Parameters
    ----------
    family
        A distribution of batch shape ``(n_cells,)`` and any event shape.
    n_draws
        Number of draws for flows, relaxed categories and the like.

    Returns
    -------
    ``(n_cells, n_features)`` each; the numbers of a matrix stand in a row.
    """
    try:
        found = family.mean, family.variance
    except NotImplementedError:
        shape = torch.Size([n_draws])
        draws = family.rsample(shape) if family.has_rsample else family.sample(shape)
        found = draws.mean(dim=0), draws.var(dim=0)
    if len(family.batch_shape) == len(family.event_shape) == 1:
        return found
    mean, variance = (each.reshape(*family.batch_shape, -1) for each in found)
    return mean, variance


class Exogenous(TorchDistribution):
    """A cause set by the experiment: draws return the value that was set, without a density.

    Every value has log-probability 0. The site can therefore be observed, conditioned, intervened
    on and un-observed without changing any other probability.

    Parameters
    ----------
    value
        The value that the experiment set, ``(*batch_shape, n_features)``.
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
        return value.new_zeros(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.value


def log_rising_ratio(base: Tensor, count: Tensor) -> Tensor:
    """Return ``lgamma(base + count) - lgamma(base) - count log(base)`` without cancellation.

    For whole counts this is the sum of ``log(1 + k / base)`` over ``k < count``. For float32, both
    arguments are shifted by 8 through the recurrence of the gamma function, and the difference of
    Stirling's series is taken there term by term.

    Parameters
    ----------
    base
        Positive numbers of any shape.
    count
        Non-negative counts, broadcastable with ``base``.

    Examples
    --------
    >>> log_rising_ratio(torch.tensor(2.0), torch.tensor(3.0)).exp()  # 1 * 3/2 * 2
    tensor(3.0000)
    """
    low = base + _SHIFT
    shifted = _log_rising_ratio_of_large(low, count)
    second_term = (low.pow(-3) - (low + count).pow(-3)) / 360.0
    unshift = count * torch.log1p(_SHIFT / base) - _log_shift_ratio(base, count)
    series = shifted + second_term + unshift
    # Far above the count, two terms of log(1 + k / base) leave a gradient that rounding would take.
    pairs = count * (count - 1.0) / base
    expansion = pairs * (0.5 - (2.0 * count - 1.0) / (12.0 * base))
    return torch.where(count < _FAR * base, expansion, series)


def _log_rising_ratio_of_large(base: Tensor, count: Tensor) -> Tensor:
    """Return ``log_rising_ratio`` of a large base: from 16 on, one term of the tail is enough."""
    high = base + count
    return (high - 0.5) * torch.log1p(count / base) - count * (1.0 + 1.0 / (12.0 * base * high))


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
        Logarithm of theta, broadcastable with ``log_mean``; a large theta approaches a Poisson.

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
        self._own_log_dispersion = log_dispersion
        self.log_mean, self.log_dispersion = torch.broadcast_tensors(log_mean, log_dispersion)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):  # noqa: D102
        log_mean = self.log_mean.expand(batch_shape)
        return NegativeBinomial(log_mean, self._own_log_dispersion, validate_args=False)

    @property
    def mean(self) -> Tensor:  # noqa: D102
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:  # noqa: D102
        return self.mean + self.mean.square() * torch.exp(-self.log_dispersion)

    def sample(self, sample_shape=()):  # noqa: D102
        with torch.no_grad():
            theta = self.log_dispersion.exp().expand(self._extended_shape(sample_shape))
            factor = Gamma(theta, theta, validate_args=False).sample()
            return torch.poisson(factor * self.mean)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value, _count_term(value, self.log_dispersion.exp()))

    def log_prob_sum(self, value: Tensor, counts: CountSummary) -> Tensor | None:
        """Return the log-probability of all cells and genes together.

        Parameters
        ----------
        value
            Counts, ``(n_cells, n_genes)``.
        counts
            Sums over the same counts, prepared once.

        Returns
        -------
        A scalar, or None if there is no short cut: the dispersion is not one per gene.
        """
        log_dispersion = self._own_log_dispersion
        if value.dim() != 2 or log_dispersion.shape != value.shape[1:]:
            return None
        if self._validate_args:
            self._validate_sample(value)
        if counts.tails is None:
            rising = log_rising_ratio(self.log_dispersion.exp(), value).sum()
        else:
            rising = _rising_of_tails(log_dispersion.exp(), counts.tails)
        return self._log_prob(value, 0.0).sum() + rising - counts.log_factorial

    def _log_prob(self, value: Tensor, count_term: Tensor | float) -> Tensor:
        """Return the log-probability, given the part of it that is 0 at zero counts."""
        terms: Any = _MeanTerms.apply
        mean_terms, _ = terms(self.log_mean, self._own_log_dispersion, value)
        return mean_terms + count_term


class _MeanTerms(torch.autograd.Function):
    """``y log(mean) - (y + theta) log(1 + mean / theta)``, without ``y log(theta)``.

    The gradient with respect to the dispersion is written out: ``theta`` times a difference that
    vanishes for large theta, of which automatic differentiation in float32 keeps rounding errors.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_mean: Tensor, log_dispersion: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        log1p_ratio = F.softplus(log_mean - log_dispersion)
        return value * log_mean - (value + log_dispersion.exp()) * log1p_ratio, log1p_ratio

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        log_mean, log_dispersion, value, log1p_ratio = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is itself differentiated
            log1p_ratio = F.softplus(log_mean - log_dispersion)
        share, theta = torch.sigmoid(log_mean - log_dispersion), log_dispersion.exp()
        # Rounding errors of the difference are cut off by two and three terms of its series.
        squared = log1p_ratio.square()
        below = squared * (0.5 - log1p_ratio / 6.0)
        above = torch.addcmul(below, squared, squared, value=1.0 / 24.0)
        difference = torch.clamp(log1p_ratio - share, below, above)
        of_mean = grad * (value - (value + theta) * share)
        of_dispersion = grad * (value * share - theta * difference)
        return (
            of_mean.sum_to_size(log_mean.shape),
            of_dispersion.sum_to_size(log_dispersion.shape),
            None,
        )


def _count_term(value: Tensor, theta: Tensor) -> Tensor:
    """``lgamma(y + theta) - lgamma(theta) - y log(theta) - lgamma(y + 1)``, 0 wherever y is 0."""
    value, theta = torch.broadcast_tensors(value, theta)
    if value.is_cuda or get_proxy_mode() is not None:  # a shape that depends on data costs more
        return log_rising_ratio(theta, value) - torch.lgamma(value + 1.0)
    value, flat_theta = torch.atleast_1d(value, theta)
    at = value.nonzero(as_tuple=True)
    counts = value[at]
    term = log_rising_ratio(flat_theta[at], counts) - torch.lgamma(counts + 1.0)
    return torch.zeros_like(flat_theta).index_put(at, term).reshape(theta.shape)


def _rising_of_tails(theta: Tensor, tails: Tails) -> Tensor:
    """Sum ``lgamma(y + theta) - lgamma(theta) - y log(theta)`` over cells and genes."""
    k = TAIL_COUNTS.to(theta)
    tabulated = (tails.exceeding * torch.log1p(k / theta.unsqueeze(-1))).sum()
    theta, excess = theta[tails.high_gene], tails.high_excess
    high = _log_rising_ratio_of_large(theta + TAIL_BOUND, excess)
    return tabulated + (high + excess * torch.log1p(TAIL_BOUND / theta)).sum()


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """A negative binomial whose counts are lost (set to 0) with a probability.

    Parameters
    ----------
    log_mean, log_dispersion
        As in :class:`NegativeBinomial`; the mean is the one before the loss.
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
            self._own_log_dispersion,
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

    def _log_prob(self, value: Tensor, count_term: Tensor | float) -> Tensor:
        kept = super()._log_prob(value, count_term) - F.softplus(self.dropout_logit)
        lost = -F.softplus(-self.dropout_logit)
        return torch.where(value == 0, torch.logaddexp(kept, lost), kept)
