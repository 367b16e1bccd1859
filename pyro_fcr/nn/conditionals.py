"""Conditional distributions: modules whose ``forward(*parents)`` returns a distribution.

Every module takes leading sample dimensions, ``(*, n_cells, n_features)``, and builds its
distribution anew at each call. To give a site another family, write one more of these.
"""

from itertools import islice
from typing import cast

import torch
import torch.nn.functional as F
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pyro_fcr.modes import in_full
from pyro_fcr.nn.foretelling import context_weights

_LOG_SCALE_BOUND = 1.5  # prior scales stay within exp(+-1.5), so that a block cannot drift in scale


def join(*parents: Tensor) -> Tensor:
    """Concatenate features of tensors whose leading dimensions broadcast."""
    shape = torch.broadcast_shapes(*(p.shape[:-1] for p in parents))
    return torch.cat([p.expand(*shape, p.shape[-1]) for p in parents], dim=-1)


def linear_of_parts(layer: nn.Linear, *inputs: Tensor) -> Tensor:
    """Apply a linear layer to inputs side by side without copying them into one tensor.

    Leading dimensions broadcast. Copying the expression for each of three encoders took a fifth of
    the time of their first layers.
    """
    weights = layer.weight.split([each.shape[-1] for each in inputs], dim=-1)
    h = F.linear(inputs[0], weights[0], layer.bias)
    for each, weight in zip(inputs[1:], weights[1:], strict=True):
        h = h + F.linear(each, weight)
    return h


def in_full_by(layer: nn.Linear, h: Tensor) -> Tensor:
    """Apply a last layer in the precision of its weights, see :func:`pyro_fcr.modes.in_full`."""
    with in_full(h.device):
        return layer(h.to(layer.weight.dtype))


def mlp(n_in: int, n_hidden: int, n_layers: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Build hidden layers (linear, LayerNorm, SiLU, dropout), ``n_in`` to ``n_hidden`` features."""
    layers: list[nn.Module] = []
    for size in [n_in, *[n_hidden] * (n_layers - 1)]:
        layers += [nn.Linear(size, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def _prior(loc: Tensor, log_scale: Tensor) -> TorchDistribution:
    bounded = _LOG_SCALE_BOUND * torch.tanh(log_scale / _LOG_SCALE_BOUND)
    return Normal(loc, bounded.exp()).to_event(1)


class LinearPrior(nn.Module):
    """Gaussian whose mean and log-scale are linear in one exogenous parent.

    The parent's zero vector (no treatment) has mean 0, and combinations (A+B) add up.

    Parameters
    ----------
    n_parent
        Number of features of the parent.
    n_latent
        Number of dimensions of the block.

    Examples
    --------
    >>> LinearPrior(3, 2)(torch.zeros(5, 3)).mean.abs().max()
    tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(self, n_parent: int, n_latent: int) -> None:
        super().__init__()
        self.loc = nn.Linear(n_parent, n_latent, bias=False)
        self.log_scale = nn.Linear(n_parent, n_latent)
        nn.init.normal_(self.loc.weight, std=0.5)
        nn.init.normal_(self.log_scale.weight, std=0.1)
        nn.init.zeros_(self.log_scale.bias)

    def forward(self, parent: Tensor) -> TorchDistribution:
        """Return p(z | parent): batch shape ``(*, n_cells)``, event shape ``(n_latent,)``."""
        with in_full(parent.device):
            return _prior(self.loc(parent), self.log_scale(parent))


class InteractionPrior(nn.Module):
    """Gaussian whose parameters depend on the product of embeddings of treatment and context.

    The elementwise product is that of Mao et al. 2024, here ``(t A) * ((x - m) B)`` with m the mean
    of x over the cells that were given the agent. The average effect of an agent over the contexts
    in which it was seen cannot be expressed here and is left to z_t, as the interactions of an
    analysis of variance sum to zero. Without treatment nothing interacts.

    The product of embeddings says what seen pairs do, whatever it is, so its value for an unseen
    pair means little. There the prior is that of the treatment's average response (of one of
    several covariates, in proportion) and, once :meth:`foretell` was called, of what the contexts
    that resemble it foretell, see :mod:`pyro_fcr.nn.foretelling`.

    Parameters
    ----------
    n_t, n_x
        Number of features of treatment and covariates.
    n_latent
        Number of dimensions of the block.
    n_embedding
        Number of dimensions of the embeddings.
    mean_context
        m for each feature of the treatment, ``(n_t, n_x)``. None assumes that all features of x are
        equally frequent.
    """

    mean_context: Tensor
    unseen: Tensor
    foretold: Tensor

    def __init__(
        self,
        n_t: int,
        n_x: int,
        n_latent: int,
        *,
        n_embedding: int = 32,
        mean_context: Tensor | None = None,
    ) -> None:
        super().__init__()
        mean_context = torch.full((n_t, n_x), 1.0 / n_x) if mean_context is None else mean_context
        self.register_buffer("mean_context", mean_context)
        self.treatment = nn.Linear(n_t, n_embedding, bias=False)
        self.context = nn.Linear(n_x, n_embedding, bias=False)
        self.loc = nn.Linear(n_embedding, n_latent, bias=False)
        self.log_scale = nn.Linear(n_embedding, n_latent)
        nn.init.normal_(self.treatment.weight)
        nn.init.normal_(self.context.weight, std=0.3)
        nn.init.normal_(self.loc.weight, std=0.5 * n_embedding**-0.5)
        nn.init.normal_(self.log_scale.weight, std=0.1 * n_embedding**-0.5)
        nn.init.zeros_(self.log_scale.bias)
        unseen = (mean_context == 0).nonzero().T
        self.register_buffer("unseen", unseen, persistent=False)
        foretold = torch.zeros(unseen.shape[1], n_embedding)  # of the parameters, once trained
        self.register_buffer("foretold", foretold, persistent=False)
        self._n_covariates = max(1, round(float(mean_context.sum(dim=1).max())))

    def forward(self, t: Tensor, x: Tensor) -> TorchDistribution:
        """Return p(z | t, x): batch shape ``(*, n_cells)``, event shape ``(n_latent,)``."""
        with in_full(t.device):
            average = self.treatment.weight.T * self.context(self.mean_context)
            embedding = self.treatment(t) * self.context(x) - t @ average
            if len(self.foretold):
                agents, levels = self.unseen
                own = self.treatment.weight.T[agents] * self.context.weight.T[levels]
                own = own - average[agents] / self._n_covariates
                embedding = embedding + (t[..., agents] * x[..., levels]) @ (self.foretold - own)
            return _prior(self.loc(embedding), self.log_scale(embedding))

    @torch.no_grad()
    def foretell(self, states: Tensor | None = None) -> None:
        """Regress unseen pairs on seen ones; a fit does it at its end, and a model that is loaded.

        Nothing changes with several covariates, or where no seen pair is foretold by others.

        Parameters
        ----------
        states
            State of the untreated cells of each context, ``(n_x, n_features)``, e.g. the means of
            z_x.
        """
        if not len(self.foretold) or self._n_covariates > 1:
            return
        average = self.context(self.mean_context)
        pairs = self.treatment.weight.T[:, None] * (self.context.weight.T - average[:, None])
        given = (self.loc(pairs), self.mean_context, *([] if states is None else [states]))
        weights = context_weights(*(each.double().cpu().numpy() for each in given))
        self.foretold.copy_((torch.from_numpy(weights).to(pairs) @ pairs)[tuple(self.unseen)])


class Encoder(nn.Module):
    """Amortised Gaussian q(z | y, parents).

    Parameters
    ----------
    n_in
        Number of features of all inputs together.
    n_latent
        Number of dimensions of the block.
    n_hidden, n_layers, dropout
        Width, number and dropout probability of the hidden layers.
    """

    def __init__(
        self,
        n_in: int,
        n_latent: int,
        *,
        n_hidden: int = 128,
        n_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = mlp(n_in, n_hidden, n_layers, dropout=dropout)
        self.head = nn.Linear(n_hidden, 2 * n_latent)

    def forward(self, *inputs: Tensor) -> TorchDistribution:
        """Return q(z | inputs): batch shape ``(*, n_cells)``, event shape ``(n_latent,)``."""
        h = linear_of_parts(cast(nn.Linear, self.hidden[0]), *inputs)
        for layer in islice(self.hidden, 1, None):
            h = layer(h)
        loc, raw_scale = in_full_by(self.head, h).chunk(2, dim=-1)
        return Normal(loc, F.softplus(raw_scale) + 1e-4).to_event(1)


class LogNormalize(nn.Module):
    """Turn counts into ``log1p(count / library * target_sum)`` for the encoders.

    Parameters
    ----------
    target_sum
        Number of counts that every cell is scaled to.
    """

    target_sum: Tensor

    def __init__(self, target_sum: float) -> None:
        super().__init__()
        self.register_buffer("target_sum", torch.tensor(float(target_sum)))

    def forward(self, y: Tensor, library: Tensor) -> Tensor:
        """Return the features, with the shape of ``y``."""
        return torch.log1p(y * (self.target_sum / library))


class Identity(nn.Module):
    """Pass on expression that is already on the log1p scale."""

    def forward(self, y: Tensor, library: Tensor) -> Tensor:
        """Return ``y``."""
        return y
