"""The loss as ``pyro.infer.SVI`` expects it, for those who write their own loop in Pyro."""

from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.graph.runs import Run
from pyro_fcr.objective.objective import Losses, Objective
from pyro_fcr.params import register
from pyro_fcr.ranks import check_alone


class FCRLoss(ELBO):
    """``pyro.infer.SVI(model, guide, optim, loss=FCRLoss(objective))``.

    Pyro's SVI trains what passes through its parameter store, and plain modules do not. This loss
    registers model, guide and label heads there, under names that no other object has, so that
    every parameter is trained and a second model in the same session as well. The discriminators
    are stepped by an optimiser of their own.

    Parameters
    ----------
    objective
        The loss of the same two programs.
    num_particles
        Number of draws of the latents that the loss is averaged over, for each cell and step.
    adversary_lr
        Learning rate of the discriminators.

    Raises
    ------
    ValueError
        Several processes run this program: Pyro's SVI does not join their gradients.

    Examples
    --------
    >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=FCRLoss(objective))
    ... # doctest: +SKIP
    >>> svi.step(batch)  # nats per cell # doctest: +SKIP
    """

    def __init__(
        self, objective: Objective, *, num_particles: int = 1, adversary_lr: float = 1e-3
    ) -> None:
        check_alone("FCRLoss")
        super().__init__(num_particles=num_particles)
        self.objective = objective
        adversaries = objective.adversary_parameters()
        self._adversary = torch.optim.Adam(adversaries, lr=adversary_lr) if adversaries else None

    def loss(self, model: Any, guide: Any, batch: Batch) -> float:
        """Evaluate the loss without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, batch).item()

    def differentiable_loss(self, model: Any, guide: Any, batch: Batch) -> Tensor:
        """Evaluate the loss, nats per cell, a scalar with a gradient: the mean over particles."""
        found = self._particles(batch)
        return torch.stack([each.total for each in found]).mean()

    def loss_and_grads(self, model: Any, guide: Any, batch: Batch) -> float:
        """Evaluate the loss, leave its gradient in the parameters and step the discriminators."""
        found = self._particles(batch)
        total = torch.stack([each.total for each in found]).mean()
        total.backward()
        self._step_adversary([each.run for each in found])
        # After the run, which sets the store aside for the autoguides among the programs.
        heads = [t for t in self.objective.terms.values() if not hasattr(t, "adversary")]
        for module in (self.objective.model, self.objective.guide, *heads):
            register(module)
        return total.item()

    def _particles(self, batch: Batch) -> list[Losses]:
        return [self.objective(batch) for _ in range(self.num_particles)]

    def _step_adversary(self, runs: list[Run]) -> None:
        losses = [self.objective.adversary_loss(run) for run in runs]
        found = [loss for loss in losses if loss is not None]
        if self._adversary is not None and found:
            self._adversary.zero_grad()
            torch.stack(found).mean().backward()
            self._adversary.step()

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[Trace, Trace]:
        run = Run.trace(self.objective.model, self.objective.guide, *args)
        return run.model_trace, run.guide_trace
