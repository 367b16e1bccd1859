"""The comparison models by name: what each changes of FCR, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import Tensor

from pyro_fcr.api import FCR
from pyro_fcr.comparison.graphs import Build, build_cvae, build_ivae, build_no_tx
from pyro_fcr.graph.runs import Run
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.objective.schedules import Weight
from pyro_fcr.objective.terms import Discriminator, Term

Blocks = Mapping[str, tuple[str, ...]]

_ONE: Final[Blocks] = MappingProxyType(dict.fromkeys(("z_x", "z_t", "z_tx"), ("z",)))
_OWN: Final[Blocks] = MappingProxyType({block: (block,) for block in ("z_x", "z_t", "z_tx")})
_TWO: Final[Blocks] = MappingProxyType({"z_x": ("z_x",), "z_t": ("z_t",), "z_tx": ("z_x", "z_t")})
# The graph claims that z is independent of the labels; a plain conditional VAE does not enforce it.
_PLAIN: Final = {"structure": 0.0}
_NEVER_ALIGNED: Final = {"align_at": None}


def permute_dimensions(latent: Tensor) -> Tensor:
    """Permute each dimension over the cells, independently of the others.

    Parameters
    ----------
    latent
        Values, ``(n_cells, n_latent)``.

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
    """Keep the dimensions of a block independent, against a discriminator of its own.

    The penalty of FactorVAE (Kim and Mnih 2018, arXiv 1802.05983, section 3): the total correlation
    KL(q(z) || prod_j q(z_j)) of the aggregated posterior, by a discriminator of z against z with
    each dimension permuted over the batch.

    Parameters
    ----------
    site
        The block.
    n_latent
        Number of its dimensions, two or more.
    n_hidden
        Width of the discriminator's hidden layers.

    Raises
    ------
    ValueError
        If the block has one dimension.

    Examples
    --------
    >>> TotalCorrelation("z", n_latent=4).name
    'total_correlation'
    """

    def __init__(self, site: str, *, n_latent: int, n_hidden: int = 128) -> None:
        super().__init__("total_correlation")
        if n_latent < 2:
            raise ValueError(
                f"total correlation of {site}: the block has {n_latent} dimension; expected 2 or "
                "more. Give the architecture more dimensions."
            )
        self.site, self.adversary = site, Discriminator(n_latent, n_hidden=n_hidden)

    def forward(self, run: Run) -> Tensor:
        """Return the mean log density ratio, nats per cell; its gradient reaches the encoder."""
        return self._logit(run.value(self.site)).mean()

    def adversary_loss(self, run: Run) -> Tensor:
        """Return the discriminator's cross-entropy; log 2 where it can tell nothing."""
        latent = run.value(self.site).detach()
        joint, permuted = self._logit(latent), self._logit(permute_dimensions(latent))
        return 0.5 * (F.softplus(-joint) + F.softplus(permuted)).mean()

    def _logit(self, latent: Tensor) -> Tensor:
        return self.adversary(latent[:, :1], latent[:, 1:], latent[:, :0])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model to hold FCR against.

    Parameters
    ----------
    name
        Its name in :data:`COMPARISONS` and in tables.
    description
        A sentence that says what it changes.
    build
        Function that builds the programs, as :meth:`Architecture.build` does. All have as many
        latent dimensions as FCR, n_x + n_t + n_tx, and hidden layers of its widths.
    blocks
        Which latents stand for z_x, z_t and z_tx where they are judged; several are joined.
    weights
        Weights of loss terms, see :meth:`pyro_fcr.FCR.fit`.
    extra
        Function that makes the loss terms which the graph does not imply, with fresh parameters.
    plan
        Fields of the training plan.

    Examples
    --------
    >>> COMPARISONS["beta_vae"].weights["kl"]
    4.0
    """

    name: str
    description: str
    build: Build = Architecture.build
    blocks: Blocks = field(default_factory=lambda: _OWN)
    weights: Mapping[str, Weight] = field(default_factory=dict)
    extra: Callable[[Architecture], tuple[Term, ...]] = lambda sizes: ()
    plan: Mapping[str, Any] = field(default_factory=dict)

    def latents(self, fcr: FCR, adata: AnnData | str | Path | None = None) -> dict[str, np.ndarray]:
        """Return the posterior means that stand for each block of FCR.

        Parameters
        ----------
        fcr
            A model of this comparison.
        adata
            The cells; None takes the model's own.

        Returns
        -------
        ``{"z_x": (n_cells, n_latent), "z_t": ..., "z_tx": ...}``.
        """
        names = sorted({name for own in self.blocks.values() for name in own})
        found = {name: fcr.get_latent_representation(name, adata) for name in names}
        return {
            block: np.concatenate([found[name] for name in own], axis=1)
            for block, own in self.blocks.items()
        }


_ALL: Final = (
    Comparison(name="fcr", description="FCR as it is shipped."),
    Comparison(
        name="fcr_no_structure",
        description="FCR without the terms that keep blocks from labels which are no cause.",
        weights={"structure": 0.0},
    ),
    Comparison(
        name="fcr_no_permutation",
        description="FCR without the discriminators that keep blocks apart.",
        weights={"permutation": 0.0},
    ),
    Comparison(
        name="fcr_no_penalties",
        description="FCR without either kind of penalty.",
        weights={"structure": 0.0, "permutation": 0.0},
    ),
    Comparison(
        name="fcr_no_alignment",
        description="FCR without the alignment of latents with their priors.",
        plan=_NEVER_ALIGNED,
    ),
    Comparison(
        name="fcr_elbo",
        description="The graph of FCR, trained by its evidence lower bound alone.",
        weights={"structure": 0.0, "permutation": 0.0},
        plan=_NEVER_ALIGNED,
    ),
    Comparison(
        name="fcr_no_tx",
        description="FCR without z_tx, whose dimensions are shared out among z_x and z_t.",
        build=build_no_tx,
        blocks=_TWO,
    ),
    Comparison(
        name="cvae",
        description="Conditional VAE: one block z ~ N(0, I), labels enter the decoder.",
        build=build_cvae,
        blocks=_ONE,
        plan=_NEVER_ALIGNED,
        weights=_PLAIN,
    ),
    Comparison(
        name="ivae",
        description="Identifiable VAE: one block with a prior given the labels, decoded alone.",
        build=build_ivae,
        blocks=_ONE,
        plan=_NEVER_ALIGNED,
    ),
    Comparison(
        name="beta_vae",
        description="Conditional VAE with the KL divergence weighted by 4 (Higgins et al. 2017).",
        build=build_cvae,
        blocks=_ONE,
        plan=_NEVER_ALIGNED,
        weights={**_PLAIN, "kl": 4.0},
    ),
    Comparison(
        name="factor_vae",
        description="Conditional VAE with a total-correlation penalty (Kim and Mnih 2018).",
        build=build_cvae,
        blocks=_ONE,
        plan=_NEVER_ALIGNED,
        weights={**_PLAIN, "total_correlation": 10.0},
        extra=lambda sizes: (TotalCorrelation("z", n_latent=sum(sizes.blocks.values())),),
    ),
)

COMPARISONS: Final[Mapping[str, Comparison]] = MappingProxyType({each.name: each for each in _ALL})
"""The comparison models by name, FCR first."""
