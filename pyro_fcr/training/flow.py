"""An invertible map of a cell's latents."""

from __future__ import annotations

from pyro.distributions import transforms
from torch import Tensor, nn

_COUPLINGS, _REFLECTIONS, _N_HIDDEN = 6, 3, 64


class Flow(nn.Module):
    """Reflections and affine couplings in turns (Dinh et al. 2017, arXiv 1605.08803).

    It starts as a random rotation: a map that starts near the identity keeps the axes that it was
    to replace.

    Parameters
    ----------
    latents
        Values to be mapped, ``(n, n_latents)``; their means and scales are taken out first.
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
        """Give the mapped latents, and per row the log of the change of volume."""
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
