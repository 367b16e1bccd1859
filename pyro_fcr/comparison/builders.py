"""How the comparison models are made of the same conditionals as FCR, at the same sizes.

Each starts from the shipped pair, which says what family of outcomes and what features the data
need. All have n_x + n_t + n_tx latent dimensions, and hidden layers of FCR's widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pyro_fcr.comparison.graphs import (
    ConditionalVAE,
    ConditionPrior,
    IdentifiableVAE,
    NoInteraction,
    NoInteractionGuide,
    OneBlockGuide,
    StandardPrior,
)
from pyro_fcr.nn import Encoder, LinearPrior
from pyro_fcr.nn.architecture import Architecture


class Build(Protocol):
    """Makes a model and a guide with fresh parameters, as :meth:`Architecture.build` does."""

    def __call__(
        self,
        architecture: Architecture,
        widths: Mapping[str, int],
        /,
        *,
        target_sum: float | None,
        mean_context: Tensor | None = None,
    ) -> tuple[nn.Module, nn.Module]:
        """Give model and guide."""


def n_latent(architecture: Architecture) -> int:
    """Give the dimensions of all blocks of FCR together."""
    return sum(architecture.blocks.values())


def build_cvae(
    architecture: Architecture,
    widths: Mapping[str, int],
    *,
    target_sum: float | None,
    mean_context: Tensor | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Make a conditional VAE; FactorVAE and beta-VAE have the same programs."""
    labels, genes, n = widths["x"] + widths["t"], widths["y"], n_latent(architecture)
    model, guide = architecture.build(widths, target_sum=target_sum)
    decoder = _decoder(architecture, type(model.y), [n + labels], genes)
    encoder = _encoder(architecture, genes + labels, n)
    return (
        ConditionalVAE(z=StandardPrior(n), y=decoder),
        OneBlockGuide(features=guide.features, z=encoder),
    )


def build_ivae(
    architecture: Architecture,
    widths: Mapping[str, int],
    *,
    target_sum: float | None,
    mean_context: Tensor | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Make an identifiable VAE."""
    x, t, genes, n = widths["x"], widths["t"], widths["y"], n_latent(architecture)
    model, guide = architecture.build(widths, target_sum=target_sum)
    prior = ConditionPrior(x, t, n, n_embedding=architecture.n_embedding, mean_context=mean_context)
    decoder = _decoder(architecture, type(model.y), [n], genes)
    encoder = _encoder(architecture, genes + x + t, n)
    return IdentifiableVAE(z=prior, y=decoder), OneBlockGuide(features=guide.features, z=encoder)


def build_no_tx(
    architecture: Architecture,
    widths: Mapping[str, int],
    *,
    target_sum: float | None,
    mean_context: Tensor | None = None,
) -> tuple[nn.Module, nn.Module]:
    """Make FCR without z_tx; z_x and z_t share its dimensions out."""
    x, t, genes = widths["x"], widths["t"], widths["y"]
    n_x, n_tx, n_t = architecture.blocks.values()
    n_x, n_t = n_x + (n_tx + 1) // 2, n_t + n_tx // 2
    model, guide = architecture.build(widths, target_sum=target_sum)
    blocks = [n_x, n_t] if architecture.decoder == "additive" else [n_x + n_t]
    decoder = _decoder(architecture, type(model.y), blocks, genes)
    encoders = {
        "z_x": _encoder(architecture, genes + x, n_x),
        "z_t": _encoder(architecture, genes + t, n_t),
    }
    return (
        NoInteraction(z_x=LinearPrior(x, n_x), z_t=LinearPrior(t, n_t), y=decoder),
        NoInteractionGuide(features=guide.features, **encoders),
    )


def _encoder(architecture: Architecture, n_in: int, n_latent: int) -> Encoder:
    return Encoder(
        n_in,
        n_latent,
        n_hidden=architecture.n_hidden,
        n_layers=architecture.n_layers,
        dropout=architecture.dropout,
    )


def _decoder(architecture: Architecture, family: Any, blocks: list[int], genes: int) -> Any:
    return family(
        blocks,
        genes,
        n_hidden=architecture.n_hidden,
        n_layers=max(1, architecture.n_layers - 1),
        dropout=architecture.dropout,
    )
