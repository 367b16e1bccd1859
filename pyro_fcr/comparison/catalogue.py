"""The comparison models by name: what each changes of FCR, and how it is built and fitted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from anndata import AnnData
from torch import Tensor, nn

from pyro_fcr.api import FCR
from pyro_fcr.comparison.graphs import Build, build_cvae, build_ivae, build_no_tx
from pyro_fcr.data import Registry, Schema, register
from pyro_fcr.graph.runs import Run
from pyro_fcr.modes import seeded
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.objective import Discriminator, Term, Weight
from pyro_fcr.programs import build_programs
from pyro_fcr.values import check_choice, checked

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
        """Return the posterior means that stand for each block of FCR, of dimensions in use.

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
        found = {
            name: fcr.get_latent_representation(name, adata, only_in_use=True) for name in names
        }
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


@checked()
def build_comparison(
    name: str, registry: Registry, *, architecture: Architecture | None = None, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build the programs of a comparison for a data set, for instance to load a saved one.

    Parameters
    ----------
    name
        Name of one of :data:`COMPARISONS`.
    registry
        Encoding of the data.
    architecture
        Sizes and likelihood; None takes those of FCR's default for the data.
    seed
        Seed of the initial parameters.

    Raises
    ------
    ValueError
        If there is no such comparison, or the architecture does not fit the data.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> registry, cells = pyro_fcr.data.register(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> model, guide = build_comparison("ivae", registry)
    >>> type(model).__name__
    'IdentifiableVAE'
    """
    comparison = _named(name)
    architecture = (architecture or Architecture()).resolve(registry)
    build_programs(registry, architecture, seed=seed)  # refuses what does not fit the data
    with seeded(seed):
        return comparison.build(
            architecture,
            registry.widths,
            target_sum=registry.target_sum,
            mean_context=torch.from_numpy(registry.mean_context("x")),
        )


@checked()
def fit_comparison(
    name: str,
    adata: AnnData | str | Path,
    schema: Schema,
    *,
    architecture: Architecture | None = None,
    seed: int = 0,
    **fit: Any,
) -> FCR:
    """Fit a comparison to cells.

    What its :meth:`~pyro_fcr.FCR.counterfactual` of another treatment means depends on the graph.
    The conditional VAEs keep a cell's z and change the labels that the decoder reads. In ``ivae``
    the treatment is a cause of z: nothing of the cell is kept but its library size and context,
    and the answer is a draw of new cells from the prior of the target. The FCR graphs keep z_x.

    Parameters
    ----------
    name
        Name of one of :data:`COMPARISONS`.
    adata, schema
        As in :class:`pyro_fcr.FCR`.
    architecture
        Sizes and likelihood; None takes those of FCR's default for the data.
    seed
        Seed of initial parameters, held-out cells, batches and draws.
    **fit
        As in :meth:`pyro_fcr.FCR.fit`, but for ``weights`` and ``extra``: fields of the plan,
        e.g. ``max_epochs=50``, ``split`` and the like.

    Returns
    -------
    The fitted model. Where the graph is not FCR's own, it is loaded with the programs of
    :func:`build_comparison`.

    Raises
    ------
    ValueError
        If there is no such comparison, or the architecture does not fit the data.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> cvae = fit_comparison("cvae", adata, schema, max_epochs=1, progress=False)
    >>> sorted(COMPARISONS["cvae"].latents(cvae))  # of one block, which stands for all three
    ['z_t', 'z_tx', 'z_x']
    """
    comparison, registry = _named(name), register(adata, schema)[0]
    architecture = (architecture or Architecture()).resolve(registry)
    with seeded(seed):
        extra = comparison.extra(architecture)
    if comparison.build is Architecture.build:
        fcr = FCR(adata, schema, architecture=architecture, seed=seed)
    else:
        model, guide = build_comparison(name, registry, architecture=architecture, seed=seed)
        fcr = FCR(adata, schema, model=model, guide=guide)
    fcr.fit(weights=comparison.weights, extra=extra, seed=seed, **{**comparison.plan, **fit})
    return fcr


def _named(name: str) -> Comparison:
    check_choice("comparison", name, COMPARISONS)
    return COMPARISONS[name]
