"""The generative program of FCR. Change the graph here: one line is one site.

x  covariates of the cell (context), never ``adata.X``     t  treatment
z_x  what the context is     z_t  what the treatment does everywhere
z_tx  what the treatment does in this context only          y  expression
"""

import pyro
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.distributions import Exogenous
from pyro_fcr.params import Program


class Model(Program):
    """Generative story of a cell (Mao et al. 2024, arXiv 2410.22472).

    The experiment sets a context x and a treatment t, and then::

        z_x  ~ p(z_x | x)
        z_tx ~ p(z_tx | t, x)
        z_t  ~ p(z_t | t)
        y    ~ p(y | z_x, z_tx, z_t, library)

    Parameters
    ----------
    z_x, z_tx, z_t, y
        Conditionals: modules that take the values of the parents and return a distribution.

    Examples
    --------
    >>> from pyro_fcr import Architecture, Batch
    >>> model, guide = Architecture(n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1e4)
    >>> values = {"x": torch.eye(3), "t": torch.zeros(3, 1), "library": torch.full((3, 1), 100.0)}
    >>> batch = Batch(values, codes={}, n_levels={}, n_total=3)
    >>> model(batch).shape, pyro.poutine.do(model, {"t": torch.ones(3, 1)})(batch).shape
    (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    def __init__(self, *, z_x: nn.Module, z_tx: nn.Module, z_t: nn.Module, y: nn.Module) -> None:
        super().__init__()
        self.z_x, self.z_tx, self.z_t, self.y = z_x, z_tx, z_t, y

    def forward(self, batch: Batch) -> Tensor:
        """Run the program; expression is drawn if the batch holds none."""
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_tx = pyro.sample("z_tx", self.z_tx(t, x))
            z_t = pyro.sample("z_t", self.z_t(t))
            return pyro.sample("y", self.y(z_x, z_tx, z_t, batch["library"]), obs=batch.get("y"))
