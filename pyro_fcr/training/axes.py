"""Find the axes of latents that a model's priors ask for: maps of them, fitted from random starts.

A map and the priors are fitted together by maximum likelihood, which has many optima: in a poor one
two blocks have swapped dimensions. So there are several starts, and the map that is most likely on
cells that none was fitted to is kept. Then each of its dimensions moves to the block whose prior
explains it best, if that makes the whole more likely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.poutine.runtime import NonlocalExit
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.modes import outside_param_store
from pyro_fcr.training.flows import Flows
from pyro_fcr.training.optimizer import GuardedOptimizer

_STARTS, _MOST_ROUNDS, _WORTH_ANOTHER_ROUND = 4, 3, 0.05
_STEPS, _BATCH, _RATE, _CLIP = 750, 512, 3e-2, 10.0
_PLACE_STEPS, _REFINE_STEPS, _BETWEEN_LOOKS = 200, 250, 75
_SHARE_KEPT, _MOST_KEPT, _DRAWS_JUDGED = 0.1, 5_000, 2
_WORTH_MOVING = 0.005  # nats per cell
_IN_USE = 0.1  # share of a mapped dimension's variance that is known of the cells

Sizes = Mapping[str, int]
AfterStep = Callable[[], None]


class Sample(NamedTuple):
    """Cells without their expression, and latents of theirs, ``(n_draws, n_cells, n_latents)``."""

    cells: Batch
    drawn: Tensor

    def pick(self, n: int) -> Sample:
        """Return ``n`` cells at random, one draw of each, ``(n, n_latents)``."""
        n_draws, n_cells, _ = self.drawn.shape
        cells, draws = (
            torch.randint(m, (n,), device=self.drawn.device) for m in (n_cells, n_draws)
        )
        return Sample(self.cells.take(cells), self.drawn[draws, cells])

    def divide(self) -> tuple[Sample, Sample]:
        """Return a tenth of the cells, at most 5,000, and the others."""
        n = self.drawn.shape[1]
        n_kept = min(_MOST_KEPT, max(1, round(_SHARE_KEPT * n)))
        order = torch.randperm(n).to(self.drawn.device)
        parts = order[:n_kept], order[n_kept:]
        kept, others = (Sample(self.cells.take(rows), self.drawn[:, rows]) for rows in parts)
        return kept, others


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
    starts: list[_Start] = []
    for _ in range(_MOST_ROUNDS):
        best = starts[0].gain if starts else -float("inf")
        models = [copy.deepcopy(model) for _ in range(_STARTS)]
        flows = Flows(fitted.drawn.flatten(end_dim=1), _STARTS)
        starts += _fitted(models, flows, fitted, kept, sizes, after_step, before=before)
        starts.sort(key=lambda start: -start.gain)
        if starts[0].gain - max(best, starts[1].gain) < _WORTH_ANOTHER_ROUND:
            break
    found, n_moved = _exchanged(starts[0], fitted, kept, sizes, after_step, before=before)
    return Axes(
        flow=found.flow,
        gain=found.gain,
        lead=starts[0].gain - starts[1].gain,
        agreement=_agreement(found.flow, starts[1].flow, kept, sizes),
        n_starts=len(starts),
        n_moved=n_moved,
    )


def draw_latents(
    guide: nn.Module, batches: Iterable[Batch], sizes: Sizes, *, n_draws: int
) -> Sample:
    """Draw latents of cells from a guide, ``n_draws`` times each."""
    cells, drawn = [], []
    for batch in batches:
        drawn.append(torch.stack([draw(guide, batch, sizes) for _ in range(n_draws)]))
        cells.append(batch.without("y"))
    return Sample(Batch.concatenate(cells), torch.cat(drawn, dim=1))


def draw(guide: nn.Module, batch: Batch, sizes: Sizes) -> Tensor:
    """Draw the latents of a batch once, ``(n_cells, n_latents)``."""
    with outside_param_store():
        nodes: Any = poutine.trace(guide).get_trace(batch).nodes
    return torch.cat([nodes[site]["value"] for site in sizes], dim=-1)


def _fitted(
    models: Sequence[nn.Module],
    flows: Flows,
    sample: Sample,
    kept: Sample,
    sizes: Sizes,
    after_step: AfterStep,
    *,
    before: float,
    n_steps: int | None = None,
) -> list[_Start]:
    """Fit flows, and the priors of a model for each, by maximum likelihood.

    The state that is most likely on the cells kept aside counts: few cells are soon overfitted.
    """
    n_steps = n_steps or _STEPS
    parameters = [*flows.parameters(), *(p for model in models for p in model.parameters())]
    optimizer = GuardedOptimizer(
        parameters, learning_rate=_RATE, gradient_clip=_CLIP * len(models) ** 0.5
    )
    schedule = optimizer.scheduler("one-cycle", n_steps=n_steps)
    best = [_Start(-float("inf"), model, flows) for model in models]
    for step in range(n_steps + 1):
        if step % _BETWEEN_LOOKS == 0 or step == n_steps:
            gains = (_mean_densities(models, kept, sizes, flows) - before).tolist()
            for i, gain in enumerate(gains):
                if gain > best[i].gain:  # and not NaN
                    best[i] = _Start(gain, copy.deepcopy(models[i]), flows.take([i]))
        if step < n_steps:
            densities = _log_densities(models, sample.pick(_BATCH), sizes, flows)
            optimizer.step(-densities.mean(dim=1).sum(), number=step)
            schedule.step()
            after_step()
    return best


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
        priors = _priors(model, sample.cells, values)
        densities.append(torch.stack([priors[s].log_prob(z) for s, z in values.items()]).sum(dim=0))
    return volume + torch.stack(densities)


def split(latents: Tensor, sizes: Sizes) -> dict[str, Tensor]:
    """Return the columns of each site, ``(*, n_cells, n_latent)``."""
    return dict(zip(sizes, latents.split(list(sizes.values()), dim=-1), strict=True))


def _priors(model: nn.Module, cells: Batch, latents: dict[str, Tensor]) -> dict[str, Any]:
    """Run the model, with its latents given, up to the last of them."""
    last, traced = list(latents)[-1], poutine.trace(poutine.condition(model, data=latents))
    with outside_param_store(), suppress(NonlocalExit):
        poutine.escape(traced, lambda site: site["name"] == last)(cells)
    nodes: Any = traced.trace.nodes
    return {site: nodes[site]["fn"] for site in latents}


def _exchanged(
    start: _Start,
    sample: Sample,
    kept: Sample,
    sizes: Sizes,
    after_step: AfterStep,
    *,
    before: float,
) -> tuple[_Start, int]:
    """Move dimensions to the blocks that explain them, if that makes the latents more likely."""
    mapped, mapped_kept = _mapped(start.flow, sample), _mapped(start.flow, kept)
    scores = block_scores(start.model, mapped, mapped_kept, sizes, after_step=after_step)
    order = _places(scores, sizes)
    n_moved = _n_moved(order, sizes)
    if not n_moved:
        return start, 0
    flows = start.flow.take([0, 0])
    flows.order[1] = flows.order[1][order]
    models = [start.model, copy.deepcopy(start.model)]
    stayed, moved = _fitted(
        models, flows, sample, kept, sizes, after_step, before=before, n_steps=_REFINE_STEPS
    )
    return (moved, n_moved) if moved.gain > stayed.gain else (stayed, 0)


def _n_moved(order: Tensor, sizes: Sizes) -> int:
    block = block_of(sizes)
    return int((block[order] != block).sum())


def _mapped(flow: Flows, sample: Sample) -> Sample:
    with torch.no_grad():
        return Sample(sample.cells, torch.cat([flow(each)[0] for each in sample.drawn]))


def _places(scores: Tensor | None, sizes: Sizes) -> Tensor:
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


def block_scores(
    model: nn.Module,
    fitted: Sample,
    kept: Sample,
    sizes: Sizes,
    *,
    after_step: AfterStep = lambda: None,
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
    turns = _Turns(model, sizes).to(kept.drawn.device)
    if turns(Sample(kept.cells, kept.drawn[0])) is None:
        return None
    optimizer = GuardedOptimizer(turns.parameters(), learning_rate=_RATE, gradient_clip=_CLIP)
    schedule = optimizer.scheduler("one-cycle", n_steps=_PLACE_STEPS)
    for step in range(_PLACE_STEPS):
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
    priors, parts = _priors(model, cells, values), []
    for site, value in values.items():
        prior = priors[site]
        if not isinstance(prior, Independent) or prior.reinterpreted_batch_ndims != 1:
            return None
        parts.append(prior.base_dist.log_prob(value))
    return torch.cat(parts, dim=-1)


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
    _, code = code.unique(return_inverse=True)
    total = values.new_zeros(int(code.max()) + 1, values.shape[1]).index_add_(0, code, values)
    return values - (total / code.bincount()[:, None])[code]
