"""Decoders: what is expressed, given the latents and the library size."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pyro_fcr.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from pyro_fcr.modes import in_full
from pyro_fcr.nn.conditionals import in_full_by, join, mlp


class Decoder(nn.Module):
    """Map latent blocks to the distribution of each gene's expression; a family is a subclass.

    Each block has hidden layers of its own, and their linear read-outs add up. What a treatment
    does to the cells of one context can then only be carried by the block that knows both, z_tx.
    Hidden layers over all blocks together would let the decoder learn it from z_x and z_t, and a
    context that was never seen under the treatment would get an arbitrary response.

    Parameters
    ----------
    n_latents
        Number of dimensions of each block, in the order in which they are passed. A single number
        stands for one block of all latents joined: an unconstrained decoder.
    n_genes
        Number of genes.
    n_hidden, n_layers, dropout
        Width, number and dropout probability of the hidden layers of each block.
    linear
        Positions of blocks without hidden layers. The shipped model has z_tx here: its prior has
        mean zero over contexts (:class:`InteractionPrior`), and so then has its effect on log
        expression. Through hidden layers it could still carry what a treatment does everywhere.
    """

    n_heads = 1
    """Number of parameters per cell and gene that the family takes from the latents."""
    expression = "counts"
    """The scale of its values, as in the schema: ``"counts"`` or ``"log1p"``."""

    def __init__(
        self,
        n_latents: Sequence[int],
        n_genes: int,
        *,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout: float = 0.0,
        linear: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            nn.Identity() if i in linear else mlp(n_latent, n_hidden, n_layers, dropout=dropout)
            for i, n_latent in enumerate(n_latents)
        )
        sizes = [n if i in linear else n_hidden for i, n in enumerate(n_latents)]
        # One matrix over the joined hidden features is the sum of a matrix per block.
        self.heads = nn.ModuleList(nn.Linear(sum(sizes), n_genes) for _ in range(self.n_heads))

    def forward(self, *latents_and_library: Tensor) -> TorchDistribution:
        """Return p(y | latents, library): batch ``(*, n_cells)``, event ``(n_genes,)``."""
        *latents, library = latents_and_library
        blocks = latents if len(self.hidden) > 1 else [join(*latents)]
        h = join(*(layers(z) for layers, z in zip(self.hidden, blocks, strict=True)))
        heads = [in_full_by(cast(nn.Linear, head), h) for head in self.heads]
        with in_full(library.device):
            return self.family(heads, library).to_event(1)

    def family(self, heads: list[Tensor], library: Tensor) -> TorchDistribution:
        """Return the distribution of ``(*, n_cells, n_genes)`` values.

        Parameters
        ----------
        heads
            The ``n_heads`` parameters of the family, ``(*, n_cells, n_genes)`` each.
        library
            Number of counts per cell, ``(n_cells, 1)``.
        """
        # Not abstract: Pyro turns modules into its own by their class (``to_pyro_module_``).
        raise NotImplementedError(f"Write {type(self).__name__}.family(heads, library).")


class NegativeBinomialDecoder(Decoder):
    """Counts: mean = library size times softmax over genes, one dispersion per gene.

    Parameters
    ----------
    n_latents, n_genes, **layers
        As in :class:`Decoder`.
    """

    def __init__(self, n_latents: Sequence[int], n_genes: int, **layers: Any) -> None:
        super().__init__(n_latents, n_genes, **layers)
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))

    def family(self, heads: list[Tensor], library: Tensor) -> TorchDistribution:
        """Return a negative binomial."""
        return NegativeBinomial(_log_mean(heads[0], library), self.log_dispersion)


class ZeroInflatedNegativeBinomialDecoder(NegativeBinomialDecoder):
    """Counts that may be lost: negative binomial, and a dropout probability per cell and gene.

    Parameters
    ----------
    n_latents, n_genes, **layers
        As in :class:`Decoder`.
    """

    n_heads = 2

    def family(self, heads: list[Tensor], library: Tensor) -> TorchDistribution:
        """Return a zero-inflated negative binomial."""
        log_mean = _log_mean(heads[0], library)
        return ZeroInflatedNegativeBinomial(log_mean, self.log_dispersion, heads[1])


class NormalDecoder(Decoder):
    """Expression on the log1p scale: one standard deviation per gene, no library size.

    Parameters
    ----------
    n_latents, n_genes, **layers
        As in :class:`Decoder`.
    """

    expression = "log1p"

    def __init__(self, n_latents: Sequence[int], n_genes: int, **layers: Any) -> None:
        super().__init__(n_latents, n_genes, **layers)
        self.raw_scale = nn.Parameter(torch.zeros(n_genes))

    def family(self, heads: list[Tensor], library: Tensor) -> TorchDistribution:
        """Return a Normal."""
        return Normal(heads[0], F.softplus(self.raw_scale) + 1e-3)


def _log_mean(logits: Tensor, library: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1) + torch.log(library)


DECODERS: Mapping[str, type[Decoder]] = {
    "nb": NegativeBinomialDecoder,
    "zinb": ZeroInflatedNegativeBinomialDecoder,
    "normal": NormalDecoder,
}
"""The decoder of each likelihood that :class:`pyro_fcr.Architecture` names."""
