"""The penalty of FactorVAE: how far the dimensions of a block are from independent of one another.

Kim and Mnih 2018 (arXiv 1802.05983), section 3: the total correlation KL(q(z) || prod_j q(z_j)) of
the aggregated posterior, by a discriminator of z against z with each dimension permuted over the
batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_fcr.graph.runs import Run
from pyro_fcr.objective.terms import Discriminator, Term


def permute_dimensions(latent: Tensor) -> Tensor:
    """Permute each dimension over the cells, independently of the others.

    Parameters
    ----------
    latent
        ``(n_cells, n_latent)``.

    Returns
    -------
    The same values in each column, in another order: ``(n_cells, n_latent)``.

    Examples
    --------
    >>> permute_dimensions(torch.arange(4.0).expand(2, 4))
    tensor([[0., 1., 2., 3.],
            [0., 1., 2., 3.]])
    """
    return latent.gather(0, torch.argsort(torch.rand_like(latent), dim=0))


class TotalCorrelation(Term):
    """Keeps the dimensions of a block independent, against a discriminator of its own.

    Parameters
    ----------
    site
        The block.
    n_latent
        Its dimensions, two or more.
    n_hidden
        Width of the discriminator.

    Raises
    ------
    ValueError
        The block has one dimension.

    Examples
    --------
    >>> TotalCorrelation("z", n_latent=4).name
    'total_correlation'
    """

    def __init__(self, site: str, *, n_latent: int, n_hidden: int = 128) -> None:
        super().__init__("total_correlation")
        if n_latent < 2:
            raise ValueError(
                f"total correlation of {site}: the block has {n_latent} dimension, wanted 2 or "
                "more. Give the architecture more dimensions."
            )
        self.site, self.adversary = site, Discriminator(n_latent, n_hidden=n_hidden)

    def forward(self, run: Run) -> Tensor:
        """Give the mean log density ratio, nats per cell; its gradient reaches the encoder."""
        return self._logit(run.value(self.site)).mean()

    def adversary_loss(self, run: Run) -> Tensor:
        """Give the discriminator's cross-entropy; log 2 where nothing can be told."""
        latent = run.value(self.site).detach()
        joint, permuted = self._logit(latent), self._logit(permute_dimensions(latent))
        return 0.5 * (F.softplus(-joint) + F.softplus(permuted)).mean()

    def _logit(self, latent: Tensor) -> Tensor:
        return self.adversary(latent[:, :1], latent[:, 1:], latent[:, :0])
