"""Invertible maps of latents, several of them side by side in one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_COUPLINGS, _REFLECTIONS, _N_HIDDEN = 6, 4, 32  # an even number of reflections can cancel
_LARGEST_LOG_SCALE = 3.0
# The dimension along which flows are stacked.
_AXIS = {"reflections": 1, "weights": 1, "biases": 1, "shift": 0, "log_scale": 0, "order": 0}


class Flows(nn.Module):
    """Rotations and affine couplings in turns (Dinh et al. 2017, arXiv 1605.08803), stacked.

    Each flow but the last starts as a random rotation: a map that starts near the identity tends to
    keep the axes that it is to replace. The last of several starts as the identity, as the axes may
    be right already. All flows are one set of tensors with a leading dimension, so
    that four take about the time of one and a half.

    Parameters
    ----------
    latents
        Values to be mapped, ``(n, n_latents)``; they are standardised first.
    n_flows
        Number of flows.
    """

    center: Tensor
    scale: Tensor
    order: Tensor

    def __init__(self, latents: Tensor, n_flows: int = 1) -> None:
        super().__init__()
        n = latents.shape[-1]
        half = n // 2
        sizes = [half, _N_HIDDEN, _N_HIDDEN, 2 * (n - half)]
        self.register_buffer("center", latents.mean(dim=0))
        self.register_buffer("scale", latents.std(dim=0).clamp(min=1e-6))
        self.register_buffer("order", torch.arange(n).repeat(n_flows, 1))
        shape = (_COUPLINGS + 1, n_flows, _REFLECTIONS, n)
        self.reflections = nn.Parameter(torch.randn(shape))
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(
            torch.randn(_COUPLINGS, n_flows, a, b) / max(a, 1) ** 0.5 for a, b in pairs
        )
        nn.init.zeros_(self.weights[-1])
        self.shift = nn.Parameter(torch.zeros(n_flows, 1, n))
        self.log_scale = nn.Parameter(torch.zeros(n_flows, 1, n))
        if n_flows > 1:
            self._make_identity(-1)
        self.biases = nn.ParameterList(torch.zeros(_COUPLINGS, n_flows, 1, b) for _, b in pairs)
        self.to(latents)

    def __len__(self) -> int:
        return len(self.order)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(n, n_latents)`` or, by flow, ``(n_flows, n, n_latents)``.

        Returns
        -------
        The mapped latents, ``(n_flows, n, n_latents)``, and for each row the logarithm of the
        change of volume, ``(n_flows, n)``.
        """
        z = ((latents - self.center) / self.scale).expand(len(self), *latents.shape[-2:])
        rotations, half = self._rotations(), z.shape[-1] // 2
        volume = -self.scale.log().sum().expand(z.shape[:-1])
        for layer in range(_COUPLINGS):
            z = z @ rotations[layer]
            kept, changed = z[..., :half], z[..., half:]
            shift, log_scale = self._coupling(layer, kept).chunk(2, dim=-1)
            log_scale = _LARGEST_LOG_SCALE * torch.tanh(log_scale / _LARGEST_LOG_SCALE)
            z = torch.cat([kept, changed * log_scale.exp() + shift], dim=-1)
            volume = volume + log_scale.sum(dim=-1)
        z = z @ rotations[-1] * self.log_scale.exp() + self.shift
        volume = volume + self.log_scale.sum(dim=-1)
        return z.gather(-1, self.order[:, None].expand_as(z)), volume

    def _make_identity(self, number: int) -> None:
        """Let reflections of a flow cancel in pairs, and undo the standardisation at the end."""
        reflections = self.reflections.data[:, number]
        reflections[:, 1::2] = reflections[:, 0::2]
        self.shift.data[number, 0] = self.center
        self.log_scale.data[number, 0] = self.scale.log()

    def _rotations(self) -> Tensor:
        """Return products of reflections, ``(n_couplings + 1, n_flows, n_latents, n_latents)``."""
        unit = self.reflections / self.reflections.norm(dim=-1, keepdim=True)
        product = torch.eye(unit.shape[-1], device=unit.device, dtype=unit.dtype).expand(
            *unit.shape[:2], -1, -1
        )
        for each in unit.unbind(dim=2):
            product = product - 2 * (product @ each[..., None]) * each[..., None, :]
        return product

    def _coupling(self, layer: int, h: Tensor) -> Tensor:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias[layer], h, weight[layer])
            h = h if i == last else nn.functional.silu(h)
        return h

    def take(self, numbers: Sequence[int]) -> Flows:
        """Return some of the flows, copied; a number may occur twice."""
        other = Flows(torch.stack([self.center, self.center]), len(numbers))
        wanted = torch.tensor(numbers, device=self.order.device)
        state = self.state_dict()
        for name in state:
            axis = _AXIS.get(name.split(".")[0])
            state[name] = state[name] if axis is None else state[name].index_select(axis, wanted)
        other.load_state_dict(state)
        return other
