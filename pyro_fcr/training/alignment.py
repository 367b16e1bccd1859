"""Part-way through training, turn the latents to the axes that their priors ask for.

Encoder and decoder keep the directions on which they first agreed, long before the priors tell
treatment from context: the ELBO comes within a few nats of its optimum and stays there, with the
blocks entangled. The latents themselves are a few numbers per cell. An invertible map of them,
fitted together with the priors by maximum likelihood, finds the axes in seconds (:mod:`axes`): a
normalizing flow whose base distributions are the model's conditional priors. Model and guide are
then taught the mapped latents, and training goes on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph import CELLS, Run, drawn_sites, plates
from pyro_fcr.modes import looking
from pyro_fcr.objective import Objective
from pyro_fcr.objective.terms import Reconstruction
from pyro_fcr.params import obstacle_to_copies
from pyro_fcr.ranks import from_first, n_processes
from pyro_fcr.training.axes import Axes, find_axes
from pyro_fcr.training.batches import Batches
from pyro_fcr.training.checkpoint import random_state, set_random_state
from pyro_fcr.training.flows import Flows
from pyro_fcr.training.optimizer import GuardedOptimizer
from pyro_fcr.training.samples import Sample, Sizes, draw, draw_latents, split

_CELLS, _CHUNK = 50_000, 4_096
_ENCODINGS, _LEAST_DRAWS, _MOST_DRAWS = 400_000, 4, 16
_CLIP = 10.0

_Lesson = Callable[[Batch], dict[str, Tensor]]


class Aligned(NamedTuple):
    """What an alignment did.

    Parameters
    ----------
    gain, lead, agreement, n_starts, n_moved
        See :class:`pyro_fcr.training.axes.Axes`; ``gain`` is None if the programs were left alone.
    obstacle
        Why the programs were left alone; empty if they were not.
    """

    gain: float | None = None
    lead: float = float("nan")
    agreement: float = float("nan")
    n_starts: int = 0
    n_moved: int = 0
    obstacle: str = ""


def align(
    objective: Objective,
    batches: Batches,
    *,
    teach_steps: int,
    learning_rate: float,
    after_step: Callable[[], None] = lambda: None,
    after_shared_step: Callable[[], None] | None = None,
) -> Aligned:
    """Align the latents of a model and its guide with the model's priors, wholly or not at all.

    Parameters
    ----------
    objective
        The loss, which holds the two programs. Discriminators and label heads are left as they are:
        they learn the new latents when training goes on.
    batches
        The training cells.
    teach_steps
        Number of steps in which model and guide learn the mapped latents.
    learning_rate
        Largest learning rate of these steps.
    after_step
        Function that is called after every step. If it raises, the alignment ends half-way and the
        parameters are put back.
    after_shared_step
        The same after steps that several processes take together; None takes ``after_step``.

    Returns
    -------
    What was gained, or why nothing was done.
    """
    with looking(objective, device=batches.device):
        run = Run.trace(objective.model, objective.guide, batches.batch(batches.rows[:_CHUNK]))
    programs = objective.model, objective.guide
    if obstacle := next(filter(None, map(obstacle_to_copies, programs)), "") or _obstacle(run):
        return Aligned(obstacle=obstacle)
    sizes = {site: run.value(site).shape[-1] for site in drawn_sites(run.model_trace)}
    state = copy.deepcopy(objective.state_dict())
    try:
        sample = _encode(objective.guide, batches, sizes)
        axes = _decided(objective.model, sample, sizes, after_step)
        if axes.gain > 0:  # and not NaN
            lesson = _lesson(objective.guide, axes.flow, sizes)
            pace = teach_steps, learning_rate
            _teach(objective, batches, lesson, pace, after_shared_step or after_step)
            return Aligned(axes.gain, axes.lead, axes.agreement, axes.n_starts, axes.n_moved)
    except BaseException:
        objective.load_state_dict(state)
        raise
    objective.load_state_dict(state)
    return Aligned(obstacle="no map makes them more probable under their priors")


def _decided(
    model: nn.Module, sample: Sample, sizes: Sizes, after_step: Callable[[], None]
) -> Axes:
    """Find the axes once, in the first process; all go on with its map and random state."""
    device = sample.drawn.device

    def find() -> tuple[Axes, dict[str, Any]]:
        axes = find_axes(model, sample, sizes, after_step=after_step)
        return axes._replace(flow=axes.flow.cpu()), random_state(device)

    if n_processes() == 1:
        return find_axes(model, sample, sizes, after_step=after_step)
    axes, state = from_first(find)
    set_random_state(state, device)
    return axes._replace(flow=axes.flow.to(device))


def _lesson(guide: nn.Module, flow: Flows, sizes: Sizes) -> _Lesson:
    teacher = copy.deepcopy(guide).eval()

    def lesson(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            return split(flow(draw(teacher, batch, sizes))[0][0], sizes)

    return lesson


def _obstacle(run: Run) -> str:
    """Return what keeps latents from being mapped together and taught, or an empty string."""
    sites = drawn_sites(run.model_trace)
    if shared := [site for site, node in sites.items() if CELLS not in plates(node)]:
        return f"{shared[0]} is shared by all cells"
    if more := run.guide_only_sites():
        return f"the guide draws latents from other sites ({', '.join(more)}), as autoguides do"
    for site in sites:
        for distribution in (run.prior(site), run.posterior(site)):
            support = getattr(distribution.support, "base_constraint", distribution.support)
            if support is not constraints.real:
                return f"{site} is not a real vector"
    return ""


def _encode(guide: nn.Module, batches: Batches, sizes: Sizes) -> Sample:
    """Draw latents of the training cells, or of 50,000 of them; more often if there are few."""
    rows = batches.rows[torch.randperm(len(batches.rows))[:_CELLS]]
    n_draws = min(_MOST_DRAWS, max(_LEAST_DRAWS, _ENCODINGS // len(rows)))
    chunks = (batches.batch(some) for some in rows.split(_CHUNK))
    with looking(guide, device=batches.device):
        return draw_latents(guide, chunks, sizes, n_draws=n_draws)


def _teach(
    objective: Objective,
    batches: Batches,
    lesson: _Lesson,
    plan: tuple[int, float],
    after_step: Callable[[], None],
) -> None:
    """Train model and guide on given latents by log p(y, z) + log q(z | y), both for fixed z."""
    n_steps, learning_rate = plan
    optimizer = GuardedOptimizer(
        objective.main_parameters(),
        learning_rate=learning_rate,
        gradient_clip=_CLIP,
        shared=batches.is_divided,
    )
    schedule = optimizer.scheduler("one-cycle", n_steps=n_steps)
    seed = int(torch.randint(2**31, ()))
    for step in range(n_steps):
        epoch, number = divmod(step, len(batches))
        if number == 0:
            rows = batches.shuffled_rows(seed, epoch)
        batch = batches.part(rows[number])
        with batch.noise():
            loss = batch.shared(_lesson_loss(objective, batch, lesson(batch)))
        optimizer.step(loss, number=step)
        schedule.step()
        after_step()


def _lesson_loss(objective: Objective, batch: Batch, latents: dict[str, Tensor]) -> Tensor:
    model, guide = (poutine.condition(p, latents) for p in (objective.model, objective.guide))
    run = Run.apart(model, guide, batch)
    losses = [term(run) for term in objective.terms.values() if isinstance(term, Reconstruction)]
    for site, value in latents.items():
        densities = run.prior(site).log_prob(value) + run.posterior(site).log_prob(value)
        losses.append(-run.per_cell(run.of_model(site), densities))
    return torch.stack(losses).sum()
