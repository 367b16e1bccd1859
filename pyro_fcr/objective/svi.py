"""The loss as ``pyro.infer.SVI`` expects it, for those who write their own loop in Pyro."""

from uuid import uuid4

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.graph.runs import Run
from pyro_fcr.objective.objective import Objective


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
    adversary_lr
        Learning rate of the discriminators.

    Examples
    --------
    >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=FCRLoss(objective))
    ... # doctest: +SKIP
    >>> svi.step(batch)  # nats per cell # doctest: +SKIP
    """

    def __init__(self, objective: Objective, *, adversary_lr: float = 1e-3) -> None:
        super().__init__()
        self.objective = objective
        self._name = f"pyro_fcr_{uuid4().hex}"
        adversaries = objective.adversary_parameters()
        self._adversary = torch.optim.Adam(adversaries, lr=adversary_lr) if adversaries else None

    def loss(self, model: nn.Module, guide: nn.Module, batch: Batch) -> float:
        """Evaluate the loss without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, batch).item()

    def differentiable_loss(self, model: nn.Module, guide: nn.Module, batch: Batch) -> Tensor:
        """Evaluate the loss, nats per cell, a scalar with a gradient."""
        run = Run.trace(model, guide, batch)
        return self.objective.evaluate(run).total

    def loss_and_grads(self, model: nn.Module, guide: nn.Module, batch: Batch) -> float:
        """Evaluate the loss, leave its gradient in the parameters and step the discriminators."""
        run = Run.trace(model, guide, batch)
        total = self.objective.evaluate(run).total
        total.backward()
        self._step_adversary(run)
        # After the run, which sets the store aside for the autoguides among the programs.
        heads = {n: t for n, t in self.objective.terms.items() if not hasattr(t, "adversary")}
        for name, module in {"model": model, "guide": guide, **heads}.items():
            pyro.module(f"{self._name}_{name}", module)
        return total.item()

    def _step_adversary(self, run: Run) -> None:
        loss = self.objective.adversary_loss(run)
        if self._adversary is not None and loss is not None:
            self._adversary.zero_grad()
            loss.backward()
            self._adversary.step()

    def _get_trace(
        self, model: nn.Module, guide: nn.Module, args: tuple, kwargs: dict
    ) -> tuple[Trace, Trace]:
        run = Run.trace(model, guide, *args)
        return run.model_trace, run.guide_trace
