"""To which block does each dimension belong? Its likelihood under the prior of every block."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from pyro.distributions import Independent
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.samples import Sample, Sizes, priors_of, split

_STEPS, _BATCH, _RATE, _CLIP = 200, 512, 3e-2, 10.0
_WORTH_MOVING = 0.005  # nats per cell


def block_scores(
    model: nn.Module,
    fitted: Sample,
    kept: Sample,
    sizes: Sizes,
    *,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Return the log-density of each dimension under the prior of each block, fitted to it.

    The dimensions pass through the blocks in turns, so that each is once in every block; the priors
    are fitted anew in each turn, with a shift and a scale of each dimension.

    Parameters
    ----------
    model
        The program whose priors are asked; its parameters are left alone.
    fitted, kept
        Latents to fit the priors to, and to judge them by.
    sizes
        Dimensions of each latent site, in the order of the columns.
    after_step
        Function that is called after every step.

    Returns
    -------
    ``(n_latents, n_blocks)``, nats per cell; None where a prior is not a product over dimensions.
    """
    turns = _Turns(model, sizes).to(kept.drawn)
    if turns(Sample(kept.cells, kept.drawn[0])) is None:
        return None
    optimizer = GuardedOptimizer(turns.parameters(), learning_rate=_RATE, gradient_clip=_CLIP)
    schedule = optimizer.scheduler("one-cycle", n_steps=_STEPS)
    for step in range(_STEPS):
        densities = turns(fitted.pick(_BATCH))
        assert densities is not None
        optimizer.step(-densities.mean(dim=1).sum(), number=step)
        schedule.step()
        after_step()
    with torch.no_grad():
        found = turns(Sample(kept.cells, kept.drawn[0]))
    assert found is not None
    scores = torch.zeros(sum(sizes.values()), len(sizes))
    for columns, densities in zip(turns.columns, found.mean(dim=1).cpu(), strict=True):
        scores[columns, block_of(sizes)] = densities
    return scores


class _Turns(nn.Module):
    """Priors of a model for dimensions that pass through its blocks in turns."""

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        n, self.sizes = sum(sizes.values()), sizes
        self.columns = [
            torch.cat([torch.arange(turn * size, (turn + 1) * size) % n for size in sizes.values()])
            for turn in range(max(-(-n // size) for size in sizes.values()))
        ]
        self.models = nn.ModuleList(copy.deepcopy(model) for _ in self.columns)
        self.shift = nn.Parameter(torch.zeros(len(self.columns), n))
        self.log_scale = nn.Parameter(torch.zeros(len(self.columns), n))

    def forward(self, sample: Sample) -> Tensor | None:
        """Return log-densities, ``(n_turns, n_cells, n_latents)``; None if there are none."""
        found = []
        for turn, (model, columns) in enumerate(zip(self.models, self.columns, strict=True)):
            z = sample.drawn[:, columns] * self.log_scale[turn].exp() + self.shift[turn]
            densities = _by_dimension(model, sample.cells, split(z, self.sizes))
            if densities is None:
                return None
            found.append(densities + self.log_scale[turn])
        return torch.stack(found)


def _by_dimension(model: nn.Module, cells: Batch, values: dict[str, Tensor]) -> Tensor | None:
    """Return log-densities ``(n_cells, n_latents)``; None if priors are not products."""
    priors, parts = priors_of(model, cells, values), []
    for site, value in values.items():
        prior = priors[site]
        if not isinstance(prior, Independent) or prior.reinterpreted_batch_ndims != 1:
            return None
        parts.append(prior.base_dist.log_prob(value))
    return torch.cat(parts, dim=-1)


def best_order(scores: Tensor | None, sizes: Sizes) -> Tensor:
    """Return the order of the dimensions in which the blocks' priors explain them best."""
    n, block = sum(sizes.values()), block_of(sizes)
    if scores is None:
        return torch.arange(n)
    worth = scores[:, block] + _WORTH_MOVING * (block[:, None] == block)
    _, columns = linear_sum_assignment(-worth.numpy())
    order = torch.empty(n, dtype=torch.long)
    order[torch.as_tensor(columns)] = torch.arange(n)
    return _kept_in_place(order, block)


def block_of(sizes: Sizes) -> Tensor:
    """Return the number of the block of each dimension."""
    return torch.repeat_interleave(torch.tensor(list(sizes.values())))


def _kept_in_place(order: Tensor, block: Tensor) -> Tensor:
    """Put what stays in its block where it was: only the block of a dimension matters."""
    settled = torch.full_like(order, -1)
    stays = torch.zeros_like(order, dtype=torch.bool)
    for dimension in order[block[order] == block].tolist():
        settled[dimension], stays[dimension] = dimension, True
    for place, dimension in enumerate(order.tolist()):
        if not stays[dimension]:
            free = (settled < 0) & (block == block[place])
            settled[int(free.nonzero()[0])] = dimension
    return settled
