"""Find the axes of latents that a model's priors ask for: maps of them, fitted from random starts.

A map and the priors are fitted together by maximum likelihood, which has many optima: in a poor one
two blocks have swapped dimensions. So there are several starts, and the map that is most likely on
cells that none was fitted to is kept. Then each of its dimensions moves to the block whose prior
explains it best, if that makes the whole more likely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_fcr.training.flows import Flows
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.places import best_order, block_of, block_scores
from pyro_fcr.training.samples import Sample, Sizes, priors_of, split

_STARTS, _MOST_ROUNDS, _WORTH_ANOTHER_ROUND = 4, 3, 0.05
_STEPS, _BATCH, _RATE, _CLIP = 750, 512, 3e-2, 10.0
_REFINE_STEPS, _BETWEEN_LOOKS, _DRAWS_JUDGED = 250, 75, 2
_IN_USE = 0.1  # share of a mapped dimension's variance that is known of the cells

AfterStep = Callable[[], None]


class Axes(NamedTuple):
    """The best map, and how sure of it one may be.

    Parameters
    ----------
    flow
        The map, alone in its :class:`Flows`.
    gain
        Nats per cell by which latents become more probable under their priors, the change of volume
        included, on cells that the map was not fitted to.
    lead
        Nats per cell by which it is ahead of the second best start.
    agreement
        How far the second best start found the same blocks: the smallest share, over dimensions in
        use, of a dimension's variance within conditions that the same block of the other map
        explains linearly.
    n_starts
        Number of starts.
    n_moved
        Number of dimensions that moved to another block.
    """

    flow: Flows
    gain: float
    lead: float
    agreement: float
    n_starts: int
    n_moved: int


class _Start(NamedTuple):
    gain: float
    model: nn.Module
    flow: Flows


def find_axes(
    model: nn.Module, sample: Sample, sizes: Sizes, *, after_step: AfterStep = lambda: None
) -> Axes:
    """Fit maps of latents and the priors of a model; keep the most likely map.

    Parameters
    ----------
    model
        The program whose priors are asked; its parameters are left alone.
    sample
        Latents of cells.
    sizes
        Dimensions of each latent site, in the order of the sample's columns.
    after_step
        Function that is called after every step.
    """
    kept, fitted = sample.divide()
    before = _mean_densities([model], kept, sizes).item()
    search = _Search(fitted, kept, sizes, before, after_step)
    starts: list[_Start] = []
    for _ in range(_MOST_ROUNDS):
        best = starts[0].gain if starts else -float("inf")
        models = [copy.deepcopy(model) for _ in range(_STARTS)]
        starts += search.fit(models, Flows(fitted.drawn.flatten(end_dim=1), _STARTS), _STEPS)
        starts.sort(key=lambda start: -start.gain)
        if starts[0].gain - max(best, starts[1].gain) < _WORTH_ANOTHER_ROUND:
            break
    found, n_moved = search.exchange(starts[0])
    return Axes(
        flow=found.flow,
        gain=found.gain,
        lead=starts[0].gain - starts[1].gain,
        agreement=_agreement(found.flow, starts[1].flow, kept, sizes),
        n_starts=len(starts),
        n_moved=n_moved,
    )


@dataclass(frozen=True)
class _Search:
    """Cells to fit maps to and cells to compare them by, and how likely the latter are unmapped."""

    fitted: Sample
    kept: Sample
    sizes: Sizes
    before: float
    after_step: AfterStep

    def fit(self, models: Sequence[nn.Module], flows: Flows, n_steps: int) -> list[_Start]:
        """Fit flows, and the priors of a model for each, by maximum likelihood.

        The state that is most likely on the cells kept aside counts: few cells are soon
        overfitted.
        """
        parameters = [*flows.parameters(), *(p for model in models for p in model.parameters())]
        clip = _CLIP * len(models) ** 0.5
        optimizer = GuardedOptimizer(parameters, learning_rate=_RATE, gradient_clip=clip)
        schedule = optimizer.scheduler("one-cycle", n_steps=n_steps)
        best = self._better([], models, flows)
        for step in range(n_steps):
            densities = _log_densities(models, self.fitted.pick(_BATCH), self.sizes, flows)
            optimizer.step(-densities.mean(dim=1).sum(), number=step)
            schedule.step()
            self.after_step()
            if (step + 1) % _BETWEEN_LOOKS == 0 or step + 1 == n_steps:
                best = self._better(best, models, flows)
        return best

    def _better(
        self, best: list[_Start], models: Sequence[nn.Module], flows: Flows
    ) -> list[_Start]:
        """Return each flow's state, or its best one so far if that is more likely."""
        gains = (_mean_densities(models, self.kept, self.sizes, flows) - self.before).tolist()
        return [
            _Start(gain, copy.deepcopy(models[i]), flows.take([i]))
            if not best or gain > best[i].gain  # and not NaN
            else best[i]
            for i, gain in enumerate(gains)
        ]

    def exchange(self, start: _Start) -> tuple[_Start, int]:
        """Move dimensions to the blocks that explain them, if that makes cells more likely."""
        mapped, kept = (_mapped(start.flow, some) for some in (self.fitted, self.kept))
        scores = block_scores(start.model, mapped, kept, self.sizes, after_step=self.after_step)
        order, block = best_order(scores, self.sizes), block_of(self.sizes)
        n_moved = int((block[order] != block).sum())
        if not n_moved:
            return start, 0
        flows = start.flow.take([0, 0])
        flows.order[1] = flows.order[1][order]
        stayed, moved = self.fit([start.model, copy.deepcopy(start.model)], flows, _REFINE_STEPS)
        return (moved, n_moved) if moved.gain > stayed.gain else (stayed, 0)


def _mean_densities(
    models: Sequence[nn.Module], sample: Sample, sizes: Sizes, flows: Flows | None = None
) -> Tensor:
    """Return the mean log-density over cells, ``(n_flows,)``."""
    with torch.no_grad():
        drawn = (Sample(sample.cells, latents) for latents in sample.drawn[:_DRAWS_JUDGED])
        each = [_log_densities(models, one, sizes, flows).mean(dim=1) for one in drawn]
    return torch.stack(each).mean(dim=0)


def _log_densities(
    models: Sequence[nn.Module], sample: Sample, sizes: Sizes, flows: Flows | None = None
) -> Tensor:
    """Return log p(latents | exogenous), ``(n_flows, n_cells)``, of the latents that flows map."""
    latents, volume = sample.drawn[None], sample.drawn.new_zeros(1, 1)
    if flows is not None:
        latents, volume = flows(sample.drawn)
    densities = []
    for model, mapped in zip(models, latents, strict=True):
        values = split(mapped, sizes)
        priors = priors_of(model, sample.cells, values)
        densities.append(torch.stack([priors[s].log_prob(z) for s, z in values.items()]).sum(dim=0))
    return volume + torch.stack(densities)


def _mapped(flow: Flows, sample: Sample) -> Sample:
    with torch.no_grad():
        return Sample(sample.cells, torch.cat([flow(each)[0] for each in sample.drawn]))


def _agreement(flow: Flows, other: Flows, kept: Sample, sizes: Sizes) -> float:
    """Return the smallest share of a dimension that the same block of another map explains."""
    with torch.no_grad():
        mapped, others = (each(kept.drawn.flatten(end_dim=1))[0][0] for each in (flow, other))
    n_draws, n_cells, n = kept.drawn.shape
    by_draw = mapped.view(n_draws, n_cells, n)
    known = 1 - by_draw.var(dim=0, correction=0).mean(dim=0) / mapped.var(dim=0)
    code, _ = kept.cells.stratum(tuple(kept.cells.codes))
    one, two = (_within(z, code.repeat(n_draws)) for z in (mapped, others))
    shares = []
    for z, w in zip(split(one, sizes).values(), split(two, sizes).values(), strict=True):
        left = z - w @ torch.linalg.lstsq(w, z).solution
        shares.append(1 - left.square().mean(dim=0) / z.square().mean(dim=0))
    share = torch.cat(shares)[known > _IN_USE]
    return float(share.min()) if len(share) else float("nan")


def _within(values: Tensor, code: Tensor) -> Tensor:
    """Return values less the means of their conditions."""
    _, code, size = code.unique(return_inverse=True, return_counts=True)
    exact = values.double()  # added up in any order on CUDA, to the same float32
    total = exact.new_zeros(len(size), values.shape[1]).index_add_(0, code, exact)
    return values - (total / size[:, None])[code].to(values.dtype)
