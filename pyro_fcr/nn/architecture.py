"""Sizes and families of the shipped model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import TYPE_CHECKING, Any, Literal

from pyro_fcr import nn as fnn
from pyro_fcr.values import Number, check_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyro_fcr.data import Registry
    from pyro_fcr.guide import Guide
    from pyro_fcr.model import Model

_MOST_TX = 8  # dimensions of z_tx where the data may choose
_DROPOUT, _FEW_CELLS, _MANY_CELLS = 0.2, 2_500, 10_000


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and families of the shipped model and guide; saved with the model.

    Parameters
    ----------
    n_x
        Dimensions of z_x.
    n_t
        Dimensions of z_t.
    n_tx
        Dimensions of z_tx; None chooses by the data: as many as the conditions identify, at most
        8.
    n_embedding
        Dimensions of the embeddings whose product the prior of z_tx is made of.
    n_hidden
        Units per hidden layer.
    n_layers
        Hidden layers of the encoders and of a joint decoder; an additive one has one layer fewer,
        but at least one.
    dropout
        Share of hidden units that training drops; None chooses by the number of cells: 0.2 up to
        2,500 training cells, which are soon overfitted, falling to 0 at 10,000.
    decoder
        ``joint``: hidden layers over all blocks together; ``additive``: the blocks' effects on log
        expression add up, that of z_tx is linear, and interactions are z_tx's alone.
    likelihood
        ``nb`` (negative binomial) or ``zinb`` (zero-inflated) on counts, ``normal`` on log1p; None
        chooses by the data: nb on counts, normal on log1p.

    Examples
    --------
    >>> model, guide = Architecture(n_tx=2).build({"y": 300, "x": 5, "t": 1}, target_sum=1e4)
    """

    n_x: int = 8
    n_t: int = 8
    n_tx: int | None = None
    n_embedding: int = 32
    n_hidden: int = 128
    n_layers: int = 2
    dropout: float | None = None
    decoder: Literal["joint", "additive"] = "joint"
    likelihood: Literal["nb", "zinb", "normal"] | None = None

    def __post_init__(self) -> None:
        check_settings(self, n_layers=Number(whole=True, least=1))

    def resolve(self, registry: Registry) -> Architecture:
        """Return the architecture with what was left to the data chosen by a data set."""
        n_identified = max(1, (registry.n_prior_conditions - 1) // 2)
        by_scale = _likelihood(counts=registry.schema.expression == "counts")
        return replace(
            self,
            n_tx=self.n_tx or min(_MOST_TX, n_identified),
            likelihood=self.likelihood or by_scale,
            dropout=_dropout(registry) if self.dropout is None else self.dropout,
        )

    @property
    def blocks(self) -> dict[str, int]:
        """Dimensions of each block.

        Raises
        ------
        ValueError
            ``n_tx`` is left to the data.
        """
        if self.n_tx is None:
            raise ValueError("n_tx is left to the data; give a number, or call resolve(registry).")
        return {"z_x": self.n_x, "z_tx": self.n_tx, "z_t": self.n_t}

    def build(
        self,
        widths: Mapping[str, int],
        *,
        target_sum: float | None,
        mean_context: Tensor | None = None,
    ) -> tuple[Model, Guide]:
        """Make a model and a guide with fresh parameters.

        Parameters
        ----------
        widths
            Number of genes ``"y"`` and of columns of ``"x"`` and ``"t"``.
        target_sum
            Counts per cell that encoders see cells scaled to; None for log1p data.
        mean_context
            The contexts in which each agent was seen; see :class:`pyro_fcr.nn.InteractionPrior`.
        """
        from pyro_fcr.guide import Guide  # noqa: PLC0415 (reads torch and Pyro)
        from pyro_fcr.model import Model  # noqa: PLC0415
        from pyro_fcr.nn.decoders import DECODERS  # noqa: PLC0415

        x, t, genes = widths["x"], widths["t"], widths["y"]
        layers: dict[str, Any] = {"n_hidden": self.n_hidden, "dropout": self.dropout or 0.0}
        n_x, n_tx, n_t = self.blocks.values()
        likelihood = self.likelihood or _likelihood(counts=target_sum is not None)
        decoder = DECODERS[likelihood](
            [n_x, n_tx, n_t] if self.decoder == "additive" else [n_x + n_tx + n_t],
            genes,
            n_layers=max(1, self.n_layers - 1) if self.decoder == "additive" else self.n_layers,
            linear=(1,) if self.decoder == "additive" else (),
            **layers,
        )
        model = Model(
            z_x=fnn.LinearPrior(x, n_x),
            z_tx=fnn.InteractionPrior(
                t, x, n_tx, n_embedding=self.n_embedding, mean_context=mean_context
            ),
            z_t=fnn.LinearPrior(t, n_t),
            y=decoder,
        )
        layers["n_layers"] = self.n_layers
        features: nn.Module = fnn.Identity() if target_sum is None else fnn.LogNormalize(target_sum)
        guide = Guide(
            features=features,
            z_x=fnn.Encoder(genes + x, n_x, **layers),
            z_tx=fnn.Encoder(genes + t + x, n_tx, **layers),
            z_t=fnn.Encoder(genes + t, n_t, **layers),
        )
        return model, guide


def _likelihood(*, counts: bool) -> Literal["nb", "normal"]:
    return "nb" if counts else "normal"


def _dropout(registry: Registry) -> float:
    n_cells = sum(condition.n_cells for condition in registry.conditions)
    share = log(_MANY_CELLS / max(n_cells, 1)) / log(_MANY_CELLS / _FEW_CELLS)
    return round(_DROPOUT * min(1.0, max(0.0, share)), 2)
