"""Part-way through training, turn the latents to the axes that their priors ask for.

Encoder and decoder keep the directions on which they first agreed, long before the priors tell
treatment from context: the ELBO comes within a few nats of its optimum and stays there, with the
blocks entangled. The latents themselves are a few numbers per cell. An invertible map of them,
fitted together with the priors by maximum likelihood, finds the axes in seconds: a normalizing flow
whose base distributions are the model's conditional priors. Model and guide are then taught the
mapped latents, and training goes on from there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.poutine.runtime import NonlocalExit
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph import CELLS
from pyro_fcr.graph.runs import Run, auxiliary_sites, drawn_sites, plates
from pyro_fcr.modes import looking, outside_param_store
from pyro_fcr.objective import Objective
from pyro_fcr.objective.terms import Reconstruction
from pyro_fcr.training.batches import Batches
from pyro_fcr.training.optimizer import GuardedOptimizer

_CELLS, _CHUNK, _DRAWS = 50_000, 4_096, 4
_FLOW_STEPS, _FLOW_BATCH, _FLOW_RATE = 750, 2_048, 1e-2
_COUPLINGS, _REFLECTIONS, _N_HIDDEN = 6, 3, 64
_CLIP = 10.0

_Sizes = Mapping[str, int]
_Lesson = Callable[[Batch], dict[str, Tensor]]


class Aligned(NamedTuple):
    """What an alignment did.

    Parameters
    ----------
    gain
        Nats per cell by which the latents have become more probable under their priors, the
        change of volume included; None if the programs were left alone.
    obstacle
        Why the programs were left alone; empty if they were not.
    """

    gain: float | None = None
    obstacle: str = ""


class _Sample(NamedTuple):
    """Cells without their expression, and latents of theirs, ``(n_draws, n_cells, n_latents)``."""

    cells: Batch
    drawn: Tensor

    def pick(self, n: int) -> _Sample:
        n_draws, n_cells, _ = self.drawn.shape
        cells, draws = (
            torch.randint(m, (n,), device=self.drawn.device) for m in (n_cells, n_draws)
        )
        return _Sample(self.cells.take(cells), self.drawn[draws, cells])


def align(
    objective: Objective,
    batches: Batches,
    *,
    teach_steps: int,
    learning_rate: float,
    after_step: Callable[[], None] = lambda: None,
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

    Returns
    -------
    What was gained, or why nothing was done.
    """
    with looking(objective, device=batches.device):
        run = Run.trace(objective.model, objective.guide, batches.batch(batches.rows[:_CHUNK]))
    if obstacle := _obstacle(run):
        return Aligned(obstacle=obstacle)
    sizes = {site: run.value(site).shape[-1] for site in drawn_sites(run.model_trace)}
    state = copy.deepcopy(objective.state_dict())
    try:
        sample = _encode(objective.guide, batches, sizes)
        flow, gain = _fit(objective.model, sample, sizes, after_step)
        if gain > 0:  # and not NaN
            lesson = _lesson(objective.guide, flow, sizes)
            _teach(objective, batches, lesson, (teach_steps, learning_rate), after_step)
            return Aligned(gain=gain)
    except BaseException:
        objective.load_state_dict(state)
        raise
    objective.load_state_dict(state)
    return Aligned(obstacle="no map makes them more probable under their priors")


def _lesson(guide: nn.Module, flow: Flow, sizes: _Sizes) -> _Lesson:
    teacher = copy.deepcopy(guide).eval()

    def lesson(batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            return _split(flow(_draw(teacher, batch, sizes))[0], sizes)

    return lesson


def _obstacle(run: Run) -> str:
    """Return what keeps latents from being mapped together and taught, or an empty string."""
    for site in drawn_sites(run.guide_trace):
        if CELLS not in plates(run.guide_trace.nodes[site]):
            return f"{site} is shared by all cells"
        if auxiliary_sites(run.guide_trace, site):
            return f"the guide draws {site} from an auxiliary site, as autoguides do"
        for distribution in (run.prior(site), run.posterior(site)):
            support = getattr(distribution.support, "base_constraint", distribution.support)
            if support is not constraints.real:
                return f"{site} is not a real vector"
    return ""


def _encode(guide: nn.Module, batches: Batches, sizes: _Sizes) -> _Sample:
    """Draw latents of the training cells, or of 50,000 of them."""
    order = torch.randperm(len(batches.rows))[:_CELLS]
    cells, drawn = [], []
    with looking(guide, device=batches.device):
        for rows in batches.rows[order].split(_CHUNK):
            batch = batches.batch(rows)
            drawn.append(torch.stack([_draw(guide, batch, sizes) for _ in range(_DRAWS)]))
            cells.append(batch.without("y"))
    return _Sample(Batch.concatenate(cells), torch.cat(drawn, dim=1))


def _draw(guide: nn.Module, batch: Batch, sizes: _Sizes) -> Tensor:
    with outside_param_store():
        nodes: Any = poutine.trace(guide).get_trace(batch).nodes
    return torch.cat([nodes[site]["value"] for site in sizes], dim=-1)


def _split(latents: Tensor, sizes: _Sizes) -> dict[str, Tensor]:
    return dict(zip(sizes, latents.split(list(sizes.values()), dim=-1), strict=True))


def _fit(
    model: nn.Module, sample: _Sample, sizes: _Sizes, after_step: Callable[[], None]
) -> tuple[Flow, float]:
    """Fit a flow and the priors to latents by maximum likelihood; return it and the gain in nats.

    The decoder is not run.
    """
    flow = Flow(sample.drawn.flatten(end_dim=1)).to(sample.drawn.device)
    before = _mean_density(model, sample, sizes)
    parameters = [*flow.parameters(), *model.parameters()]
    optimizer = GuardedOptimizer(parameters, learning_rate=_FLOW_RATE, gradient_clip=_CLIP)
    schedule = optimizer.scheduler("one-cycle", n_steps=_FLOW_STEPS)
    for step in range(_FLOW_STEPS):
        density = _log_density(model, sample.pick(_FLOW_BATCH), sizes, flow)
        optimizer.step(-density.mean(), number=step)
        schedule.step()
        after_step()
    return flow, _mean_density(model, sample, sizes, flow) - before


def _mean_density(
    model: nn.Module, sample: _Sample, sizes: _Sizes, flow: Flow | None = None
) -> float:
    with torch.no_grad():
        cells = _Sample(sample.cells, sample.drawn[0])
        return _log_density(model, cells, sizes, flow).mean().item()


def _log_density(
    model: nn.Module, sample: _Sample, sizes: _Sizes, flow: Flow | None = None
) -> Tensor:
    """Return log p(latents | exogenous) per cell; with a flow, of the latents that it maps."""
    latents, volume = (sample.drawn, 0.0) if flow is None else flow(sample.drawn)
    values = _split(latents, sizes)
    priors = _priors(model, sample.cells, values)
    return volume + torch.stack([priors[s].log_prob(z) for s, z in values.items()]).sum(dim=0)


def _priors(model: nn.Module, cells: Batch, latents: dict[str, Tensor]) -> dict[str, Any]:
    """Run the model, with its latents given, up to the last of them."""
    last, traced = list(latents)[-1], poutine.trace(poutine.condition(model, data=latents))
    with outside_param_store(), suppress(NonlocalExit):
        poutine.escape(traced, lambda site: site["name"] == last)(cells)
    nodes: Any = traced.trace.nodes
    return {site: nodes[site]["fn"] for site in latents}


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
        objective.main_parameters(), learning_rate=learning_rate, gradient_clip=_CLIP
    )
    schedule = optimizer.scheduler("one-cycle", n_steps=n_steps)
    seed = int(torch.randint(2**31, ()))
    for step in range(n_steps):
        epoch, number = divmod(step, len(batches))
        if number == 0:
            rows = batches.shuffled_rows(seed, epoch)
        batch = batches.batch(rows[number])
        optimizer.step(_lesson_loss(objective, batch, lesson(batch)), number=step)
        schedule.step()
        after_step()


def _lesson_loss(objective: Objective, batch: Batch, latents: dict[str, Tensor]) -> Tensor:
    model, guide = (poutine.condition(p, latents) for p in (objective.model, objective.guide))
    run = Run.apart(model, guide, batch)
    losses = [term(run) for term in objective.terms.values() if isinstance(term, Reconstruction)]
    for site, value in latents.items():
        densities = run.prior(site).log_prob(value) + run.posterior(site).log_prob(value)
        losses.append(-run.per_cell(site, densities))
    return torch.stack(losses).sum()


class Flow(nn.Module):
    """Reflections and affine couplings in turns (Dinh et al. 2017, arXiv 1605.08803).

    It starts as a random rotation: a map that starts near the identity would keep the axes that it
    is to replace.

    Parameters
    ----------
    latents
        Values to be mapped, ``(n, n_latents)``; they are standardised first.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        n = latents.shape[-1]
        self.register_buffer("center", latents.mean(dim=0))
        self.register_buffer("scale", latents.std(dim=0).clamp(min=1e-6))
        pairs = [part for _ in range(_COUPLINGS) for part in (_rotation(n), _coupling(n))]
        self.parts = transforms.ComposeTransformModule([*pairs, _rotation(n)])

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mapped latents, and for each row the logarithm of the change of volume."""
        standard = (latents - self.center) / self.scale
        mapped = self.parts(standard)
        volume = self.parts.log_abs_det_jacobian(standard, mapped)
        return mapped, volume - self.scale.log().sum()


def _rotation(n: int) -> nn.Module:
    rotation = transforms.householder(n, count_transforms=min(n, _REFLECTIONS))
    nn.init.normal_(rotation.u_unnormed)
    return rotation


def _coupling(n: int) -> nn.Module:
    coupling = transforms.affine_coupling(n, [_N_HIDDEN, _N_HIDDEN])
    coupling.nn.f = nn.SiLU()
    nn.init.zeros_(coupling.nn.layers[-1].weight)
    nn.init.zeros_(coupling.nn.layers[-1].bias)
    return coupling
