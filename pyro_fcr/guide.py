"""The amortised guide of FCR. It mirrors the model: same sites, same order."""

import pyro
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.params import Program


class Guide(Program):
    """Approximate posterior q(z_x | y, x) q(z_tx | y, t, x) q(z_t | y, t) of a cell's latents.

    Parameters
    ----------
    features
        Module that turns expression and library size into the input of the encoders.
    z_x, z_tx, z_t
        Encoders: modules that take features and parents and return a distribution.

    Examples
    --------
    >>> from pyro_fcr import Architecture, Batch
    >>> model, guide = Architecture(n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1e4)
    >>> values = {"y": torch.ones(3, 5), "library": torch.full((3, 1), 5.0)}
    >>> batch = Batch({**values, "x": torch.eye(3), "t": torch.zeros(3, 1)}, {}, {}, n_total=3)
    >>> pyro.poutine.trace(guide).get_trace(batch).nodes["z_tx"]["value"].shape
    torch.Size([3, 2])
    """

    def __init__(
        self, *, features: nn.Module, z_x: nn.Module, z_tx: nn.Module, z_t: nn.Module
    ) -> None:
        super().__init__()
        self.features, self.z_x, self.z_tx, self.z_t = features, z_x, z_tx, z_t

    def forward(self, batch: Batch) -> None:
        """Run the program; its trace holds the latents."""
        y, x, t = self.features(batch["y"], batch["library"]), batch["x"], batch["t"]
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.z_x(y, x))
            pyro.sample("z_tx", self.z_tx(y, t, x))
            pyro.sample("z_t", self.z_t(y, t))
