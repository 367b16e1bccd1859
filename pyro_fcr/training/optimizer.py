"""One optimiser step that is not taken when the loss or its gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_fcr._torch import skip_where


class GuardedOptimizer:
    """AdamW with gradient clipping that stands still from the first non-finite step on.

    The finding stays on the device, where the fused kernels read it; the host asks for it when it
    likes, so that no step waits for the device.

    Parameters
    ----------
    parameters
        What to train.
    learning_rate, weight_decay
        Of AdamW.
    gradient_clip
        Largest norm of the gradient.
    recorded
        Whether steps are to be recorded in a CUDA graph, which asks for a learning rate and a
        count of steps on the device.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        gradient_clip: float = float("inf"),
        recorded: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.gradient_clip = gradient_clip
        device = self.parameters[0].device
        self.torch = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(learning_rate, device=device) if recorded else learning_rate,
            weight_decay=weight_decay,
            fused=True,
            capturable=recorded,
        )
        self._found_inf = torch.zeros((), device=device)
        self._bad_step = torch.full((), -1, device=device)
        skip_where(self.torch, self._found_inf)

    def step(self, loss: Tensor, *, number: int) -> None:
        """Take the gradient of a loss and step, unless something is or was not finite.

        Parameters
        ----------
        loss
            A scalar.
        number
            The number of the step, which :meth:`bad_step` gives back.
        """
        self.torch.zero_grad()
        loss.backward()
        self._guarded_step(loss, number)

    def apply(
        self, gradients: Sequence[Tensor | None], loss: Tensor, *, number: int | Tensor
    ) -> None:
        """Step along gradients that were taken elsewhere, unless something was not finite.

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
        norm = nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip, foreach=True)
        bad = ~torch.isfinite(loss.detach() + norm)
        self._bad_step.masked_fill_(bad & (self._found_inf == 0), number)
        self._found_inf.copy_(torch.maximum(self._found_inf, bad.to(self._found_inf.dtype)))
        self.torch.step()

    def bad_step(self) -> int | None:
        """Read the number of the first bad step from the device; None while all are good."""
        number = int(self._bad_step.item())
        return None if number < 0 else number

    def state_dict(self) -> dict[str, Any]:
        """Give the state of the optimiser."""
        return self.torch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        self.torch.load_state_dict(state)
