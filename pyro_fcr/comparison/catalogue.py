"""The comparison models by name: what each changes of FCR, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from anndata import AnnData

from pyro_fcr.api import FCR
from pyro_fcr.comparison.builders import Build, build_cvae, build_ivae, build_no_tx, n_latent
from pyro_fcr.comparison.total_correlation import TotalCorrelation
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.objective import Term, Weight

Blocks = Mapping[str, tuple[str, ...]]


def _of_z(architecture: Architecture) -> tuple[Term, ...]:
    return (TotalCorrelation("z", n_latent=n_latent(architecture)),)


def _no_terms(architecture: Architecture) -> tuple[Term, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model to hold FCR against.

    Parameters
    ----------
    name
        Its name in :data:`COMPARISONS` and in tables.
    description
        What it changes, in a sentence.
    build
        Makes the programs, see :class:`pyro_fcr.comparison.Build`. All have as many latent
        dimensions as FCR, n_x + n_t + n_tx of the architecture, and hidden layers of its widths.
    blocks
        Which latents stand for z_x, z_t and z_tx where they are judged; several are joined.
    weights
        Of loss terms, see :meth:`pyro_fcr.FCR.fit`.
    extra
        Makes the loss terms that the graph does not give, with fresh parameters.
    plan
        Fields of the training plan.

    Examples
    --------
    >>> COMPARISONS["beta_vae"].weights["kl"]
    4.0
    """

    name: str
    description: str
    build: Build
    blocks: Blocks
    weights: Mapping[str, Weight] = field(default_factory=dict)
    extra: Callable[[Architecture], tuple[Term, ...]] = _no_terms
    plan: Mapping[str, Any] = field(default_factory=dict)

    def latents(self, fcr: FCR, adata: AnnData | str | Path | None = None) -> dict[str, np.ndarray]:
        """Give the posterior means that stand for each block of FCR.

        Parameters
        ----------
        fcr
            A model of this comparison.
        adata
            The cells; None takes those of training.

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


_ONE: Final[Blocks] = MappingProxyType(dict.fromkeys(("z_x", "z_t", "z_tx"), ("z",)))
_OWN: Final[Blocks] = MappingProxyType({block: (block,) for block in ("z_x", "z_t", "z_tx")})
_TWO: Final[Blocks] = MappingProxyType({"z_x": ("z_x",), "z_t": ("z_t",), "z_tx": ("z_x", "z_t")})
# The graph claims that z is independent of the labels; a plain conditional VAE does not enforce it.
_PLAIN: Final = {"structure": 0.0}
_NEVER_ALIGNED: Final = {"align_at": None}

_ALL: Final = (
    Comparison(
        name="fcr",
        description="FCR as it is shipped.",
        build=Architecture.build,
        blocks=_OWN,
    ),
    Comparison(
        name="fcr_no_structure",
        description="FCR without the terms that keep blocks from labels which are no cause.",
        build=Architecture.build,
        blocks=_OWN,
        weights={"structure": 0.0},
    ),
    Comparison(
        name="fcr_no_permutation",
        description="FCR without the discriminators that keep blocks apart.",
        build=Architecture.build,
        blocks=_OWN,
        weights={"permutation": 0.0},
    ),
    Comparison(
        name="fcr_no_penalties",
        description="FCR without either kind of penalty.",
        build=Architecture.build,
        blocks=_OWN,
        weights={"structure": 0.0, "permutation": 0.0},
    ),
    Comparison(
        name="fcr_no_alignment",
        description="FCR without the alignment of latents with their priors.",
        build=Architecture.build,
        blocks=_OWN,
        plan=_NEVER_ALIGNED,
    ),
    Comparison(
        name="fcr_elbo",
        description="The graph of FCR, trained by its evidence lower bound alone.",
        build=Architecture.build,
        blocks=_OWN,
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
        extra=_of_z,
    ),
)

COMPARISONS: Final[Mapping[str, Comparison]] = MappingProxyType({each.name: each for each in _ALL})
"""The comparison models by name, FCR first."""
