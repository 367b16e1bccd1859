"""Sizes and families of the shipped model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pyro_fcr import nn as fnn
from pyro_fcr.guide import Guide
from pyro_fcr.model import Model

Likelihood = Literal["nb", "zinb", "normal"]

_DECODERS: Mapping[str, type[fnn.Decoder]] = {
    "nb": fnn.NegativeBinomialDecoder,
    "zinb": fnn.ZeroInflatedNegativeBinomialDecoder,
    "normal": fnn.NormalDecoder,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and families of the shipped model and guide; saved with the model.

    Parameters
    ----------
    n_x, n_t, n_tx
        Dimensions of z_x, z_t and z_tx.
    n_embedding
        Dimensions of the embeddings whose product the prior of z_tx is made of.
    n_hidden, n_layers, dropout
        Hidden layers of the encoders and of a joint decoder; an additive one has one layer less, at
        least one.
    decoder
        ``"additive"``: the blocks' effects on log expression add up, that of z_tx is linear, and
        interactions are z_tx's alone;
        ``"joint"``: hidden layers over all blocks together. See :class:`pyro_fcr.nn.Decoder`.
    likelihood
        ``"nb"`` (negative binomial) or ``"zinb"`` (zero-inflated) on counts, ``"normal"`` on log1p.

    Examples
    --------
    >>> model, guide = Architecture(n_tx=2).build({"y": 300, "x": 5, "t": 1}, target_sum=1e4)
    """

    n_x: int = 8
    n_t: int = 8
    n_tx: int = 8
    n_embedding: int = 32
    n_hidden: int = 128
    n_layers: int = 2
    dropout: float = 0.0
    decoder: Literal["additive", "joint"] = "additive"
    likelihood: Likelihood = "nb"

    def __post_init__(self) -> None:
        if self.likelihood not in _DECODERS:
            raise ValueError(f"likelihood {self.likelihood!r} is none of {', '.join(_DECODERS)}.")
        if self.decoder not in ("additive", "joint"):
            raise ValueError(f"decoder {self.decoder!r} is none of additive, joint.")

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
            Where each agent was seen, see :class:`pyro_fcr.nn.InteractionPrior`.
        """
        x, t, genes = widths["x"], widths["t"], widths["y"]
        layers: dict[str, Any] = {"n_hidden": self.n_hidden, "dropout": self.dropout}
        blocks = [self.n_x, self.n_tx, self.n_t]
        decoder = _DECODERS[self.likelihood](
            blocks if self.decoder == "additive" else [sum(blocks)],
            genes,
            n_layers=max(1, self.n_layers - 1) if self.decoder == "additive" else self.n_layers,
            linear=(1,) if self.decoder == "additive" else (),
            **layers,
        )
        model = Model(
            z_x=fnn.LinearPrior(x, self.n_x),
            z_tx=fnn.InteractionPrior(
                t, x, self.n_tx, n_embedding=self.n_embedding, mean_context=mean_context
            ),
            z_t=fnn.LinearPrior(t, self.n_t),
            y=decoder,
        )
        layers["n_layers"] = self.n_layers
        features: nn.Module = fnn.Identity() if target_sum is None else fnn.LogNormalize(target_sum)
        guide = Guide(
            features=features,
            z_x=fnn.Encoder(genes + x, self.n_x, **layers),
            z_tx=fnn.Encoder(genes + t + x, self.n_tx, **layers),
            z_t=fnn.Encoder(genes + t, self.n_t, **layers),
        )
        return model, guide
