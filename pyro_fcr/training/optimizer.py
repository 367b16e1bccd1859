"""Optimiser steps that are not taken if the loss or its gradient is not finite, and why not."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_fcr._torch import skip_where, sum_of_processes
from pyro_fcr.graph.runs import Run
from pyro_fcr.modes import in_full
from pyro_fcr.objective import Objective
from pyro_fcr.objective.terms import Density
from pyro_fcr.training.batches import Batches


class GuardedOptimizer:
    """AdamW with gradient clipping that stands still from the first non-finite step on.

    The finding stays on the device, where the fused kernels read it. The host asks for it from time
    to time, so that no step waits for the device.

    Parameters
    ----------
    parameters
        The parameters to train.
    learning_rate, weight_decay
        Settings of AdamW.
    gradient_clip
        Largest norm of the gradient.
    recorded
        Whether steps are recorded in a CUDA graph, which needs the learning rate and the number of
        steps on the device.
    shared
        Whether losses are what several processes' cells add to that of a batch: their gradients are
        added up, and every process takes the same step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        gradient_clip: float = float("inf"),
        recorded: bool = False,
        shared: bool = False,
    ) -> None:
        self.parameters, self.shared = list(parameters), shared
        self.learning_rate, self.gradient_clip = learning_rate, gradient_clip
        device = self.parameters[0].device
        self.torch = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(learning_rate, dtype=torch.float32, device=device)
            if recorded
            else learning_rate,
            weight_decay=weight_decay,
            fused=True,
            capturable=recorded,
        )
        self._found_inf = torch.zeros((), dtype=torch.float32, device=device)
        self._bad_step = torch.full((), -1, device=device)
        skip_where(self.torch, self._found_inf)

    def step(self, loss: Tensor, *, number: int) -> None:
        """Take the gradient of a loss and step, unless something is or was not finite.

        Parameters
        ----------
        loss
            A scalar.
        number
            The number of the step, which :meth:`bad_step` returns.
        """
        self.torch.zero_grad()
        with in_full(loss.device):  # as every operation of the loss was
            loss.backward()
        self._guarded_step(loss, number)

    def apply(
        self, gradients: Sequence[Tensor | None], loss: Tensor, *, number: int | Tensor
    ) -> None:
        """Step along gradients that were computed elsewhere, unless something was not finite.

        Parameters
        ----------
        gradients
            One for each parameter, None where it is not used.
        loss, number
            As in :meth:`step`.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._guarded_step(loss, number)

    def _guarded_step(self, loss: Tensor, number: int | Tensor) -> None:
        if self.shared:
            loss = self._add_up(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip, foreach=True)
        bad = ~torch.isfinite(loss.detach() + norm)
        is_first = bad & (self._found_inf == 0)
        self._bad_step.copy_(torch.where(is_first, number, self._bad_step))
        self._found_inf.copy_(torch.maximum(self._found_inf, bad.to(self._found_inf.dtype)))
        self.torch.step()

    def written(self) -> list[Tensor]:
        """Return every tensor that a step writes: parameters, their moments and the finding."""
        moments = [each for state in self.torch.state.values() for each in state.values()]
        return [*self.parameters, *moments, self._found_inf, self._bad_step]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state of :attr:`torch` back; a learning rate on the device keeps its place there.

        A recorded step reads it from that place, which torch would leave, and takes recorded steps
        only with the settings that this optimiser was made with.
        """
        before = [{**group} for group in self.torch.param_groups]
        self.torch.load_state_dict(state)
        for group, made in zip(self.torch.param_groups, before, strict=True):
            rate, place = float(group["lr"]), made["lr"]
            group["lr"] = place.fill_(rate) if isinstance(place, Tensor) else rate
            group["capturable"] = made["capturable"]

    def _add_up(self, loss: Tensor) -> Tensor:
        """Add up gradients and loss of all processes, in one message whatever a process used."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([*(each.flatten() for each in gradients), loss.detach().reshape(1)])
        *summed, total = sum_of_processes(flat).split([*(p.numel() for p in self.parameters), 1])
        for parameter, gradient in zip(self.parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        return total.squeeze(0)

    def bad_step(self) -> int | None:
        """Read the number of the first bad step from the device; None while all are good."""
        number = int(self._bad_step.item())
        return None if number < 0 else number

    def scheduler(self, kind: str, *, n_steps: int, patience: int = 0) -> Any:
        """Return a schedule of the learning rate.

        Parameters
        ----------
        kind
            ``"cosine"``, ``"plateau"`` or ``"constant"`` as in
            :attr:`pyro_fcr.training.TrainingPlan.lr_schedule`, or ``"one-cycle"``.
        n_steps
            Number of steps of the training.
        patience
            Epochs without improvement after which the training would stop.
        """
        schedules = torch.optim.lr_scheduler
        if kind == "cosine":
            return schedules.CosineAnnealingLR(self.torch, T_max=n_steps)
        if kind == "one-cycle":
            rate = self.learning_rate
            return schedules.OneCycleLR(self.torch, rate, total_steps=n_steps, pct_start=0.1)
        if kind == "plateau":
            return schedules.ReduceLROnPlateau(
                self.torch, mode="max", factor=0.2, patience=max(1, patience // 3)
            )
        return schedules.ConstantLR(self.torch, factor=1.0)


class NonFiniteError(FloatingPointError):
    """The loss or its gradient was not finite; the parameters are those before that step.

    Parameters
    ----------
    message
        Names step, terms and cells.
    is_reproduced
        Whether a term was not finite when the batch was evaluated again.
    """

    def __init__(self, message: str, *, is_reproduced: bool) -> None:
        super().__init__(message)
        self.is_reproduced = is_reproduced


def non_finite_error(
    objective: Objective, batches: Batches, *, rows: Tensor, step: int
) -> NonFiniteError:
    """Evaluate a batch again and say what is not finite in it.

    Parameters
    ----------
    objective
        The loss, with the parameters from before the bad step.
    batches, rows
        The data set and the cells of that step.
    step
        Its number, from 0.
    """
    with torch.no_grad(), pyro.validation_enabled(is_validate=False):
        losses = objective(batches.batch(rows))
        names = batches.cells.obs_names[rows.numpy()][_bad_cells(objective, losses.run)]
    terms = [name for name, value in losses.terms.items() if not torch.isfinite(value)]
    where = f"terms not finite: {', '.join(terms)}" if terms else _GRADIENT_ONLY
    cells = f"; cells: {', '.join(names[:5])} ({len(names)} of {len(rows)})" if len(names) else ""
    return NonFiniteError(
        f"Training stopped before step {step}: {where}{cells}. The parameters are those of the "
        "step before. Look at these cells for extreme counts, or lower learning_rate.",
        is_reproduced=bool(terms),
    )


_GRADIENT_ONLY = "the terms are finite when evaluated again, but their gradient or draw was not"


def _bad_cells(objective: Objective, run: Run) -> np.ndarray:
    bad = torch.zeros(len(run.batch), dtype=torch.bool)
    for term in objective.terms.values():
        for site in term.sites if isinstance(term, Density) else ():
            density = run.prior(site).log_prob(run.value(site))
            if density.shape == bad.shape:
                bad |= ~torch.isfinite(density).cpu()
    return bad.numpy()
