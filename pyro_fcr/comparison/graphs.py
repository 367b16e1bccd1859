"""The programs that FCR is compared with, one line per site, and how they are built.

All are made of the same conditionals as FCR. They have n_x + n_t + n_tx latent dimensions, and
hidden layers of FCR's widths.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.distributions import Exogenous
from pyro_fcr.nn import Encoder, InteractionPrior, LinearPrior, join
from pyro_fcr.nn.architecture import Architecture

Widths: TypeAlias = Mapping[str, int]
Programs: TypeAlias = tuple[nn.Module, nn.Module]
Build: TypeAlias = Callable[..., Programs]
"""Makes a model and a guide with fresh parameters; it is called as :meth:`Architecture.build`."""


class ConditionalVAE(nn.Module):
    """One block that knows no cause; the labels enter the decoder (Sohn et al. 2015, NeurIPS).

    ::

        z ~ N(0, I)
        y ~ p(y | z, x, t, library)

    Parameters
    ----------
    z, y
        Conditionals; ``z`` takes no parent.
    """

    def __init__(self, *, z: nn.Module, y: nn.Module) -> None:
        super().__init__()
        self.z, self.y = z, y

    def forward(self, batch: Batch) -> Tensor:
        """Run the program; expression is drawn where the batch holds none."""
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z = pyro.sample("z", self.z())
            return pyro.sample("y", self.y(z, x, t, batch["library"]), obs=batch.get("y"))


class IdentifiableVAE(nn.Module):
    """One block whose prior the labels set (Khemakhem et al. 2020, arXiv 1907.04809).

    ::

        z ~ p(z | x, t)
        y ~ p(y | z, library)

    Parameters
    ----------
    z, y
        Conditionals.
    """

    def __init__(self, *, z: nn.Module, y: nn.Module) -> None:
        super().__init__()
        self.z, self.y = z, y

    def forward(self, batch: Batch) -> Tensor:
        """Run the program; expression is drawn where the batch holds none."""
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z = pyro.sample("z", self.z(x, t))
            return pyro.sample("y", self.y(z, batch["library"]), obs=batch.get("y"))


class OneBlockGuide(nn.Module):
    """Approximate posterior q(z | y, x, t).

    Parameters
    ----------
    features
        Module that turns expression and library size into what the encoder reads.
    z
        The encoder.
    """

    def __init__(self, *, features: nn.Module, z: nn.Module) -> None:
        super().__init__()
        self.features, self.z = features, z

    def forward(self, batch: Batch) -> None:
        """Run the program; its trace holds the latent."""
        y, x, t = self.features(batch["y"], batch["library"]), batch["x"], batch["t"]
        with pyro.plate("cells", len(batch)):
            pyro.sample("z", self.z(y, x, t))


class NoInteraction(nn.Module):
    """FCR without z_tx: contexts and treatments act side by side.

    ::

        z_x ~ p(z_x | x)
        z_t ~ p(z_t | t)
        y   ~ p(y | z_x, z_t, library)

    Parameters
    ----------
    z_x, z_t, y
        Conditionals.
    """

    def __init__(self, *, z_x: nn.Module, z_t: nn.Module, y: nn.Module) -> None:
        super().__init__()
        self.z_x, self.z_t, self.y = z_x, z_t, y

    def forward(self, batch: Batch) -> Tensor:
        """Run the program; expression is drawn where the batch holds none."""
        with pyro.plate("cells", len(batch)):
            x = pyro.sample("x", Exogenous(batch["x"]), obs=batch["x"])
            t = pyro.sample("t", Exogenous(batch["t"]), obs=batch["t"])
            z_x = pyro.sample("z_x", self.z_x(x))
            z_t = pyro.sample("z_t", self.z_t(t))
            return pyro.sample("y", self.y(z_x, z_t, batch["library"]), obs=batch.get("y"))


class NoInteractionGuide(nn.Module):
    """Approximate posterior q(z_x | y, x) q(z_t | y, t).

    Parameters
    ----------
    features
        Module that turns expression and library size into what the encoders read.
    z_x, z_t
        The encoders.
    """

    def __init__(self, *, features: nn.Module, z_x: nn.Module, z_t: nn.Module) -> None:
        super().__init__()
        self.features, self.z_x, self.z_t = features, z_x, z_t

    def forward(self, batch: Batch) -> None:
        """Run the program; its trace holds the latents."""
        y, x, t = self.features(batch["y"], batch["library"]), batch["x"], batch["t"]
        with pyro.plate("cells", len(batch)):
            pyro.sample("z_x", self.z_x(y, x))
            pyro.sample("z_t", self.z_t(y, t))


class StandardPrior(nn.Module):
    """The standard normal, for a block without causes.

    Parameters
    ----------
    n_latent
        Dimensions of the block.

    Examples
    --------
    >>> StandardPrior(2)().mean
    tensor([0., 0.])
    """

    zero: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(n_latent))

    def forward(self) -> TorchDistribution:
        """Return p(z): no batch shape, which the plate over cells adds; event ``(n_latent,)``."""
        return Normal(self.zero, 1.0).to_event(1)


class ConditionPrior(nn.Module):
    """Gaussian given context and treatment: the priors of FCR's three blocks in one.

    The mean is the sum of two effects, linear in the labels and of the product of their
    embeddings; the scale is the geometric mean of the two. A pair that was never seen gets what
    both say of it, as in FCR.

    Parameters
    ----------
    n_x, n_t
        Features of covariates and treatment.
    n_latent
        Dimensions of the block.
    n_embedding, mean_context
        As in :class:`pyro_fcr.nn.InteractionPrior`.

    Examples
    --------
    >>> ConditionPrior(3, 1, 4)(torch.eye(3), torch.ones(3, 1)).mean.shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        n_x: int,
        n_t: int,
        n_latent: int,
        *,
        n_embedding: int = 32,
        mean_context: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.main = LinearPrior(n_x + n_t, n_latent)
        self.interaction = InteractionPrior(
            n_t, n_x, n_latent, n_embedding=n_embedding, mean_context=mean_context
        )

    def forward(self, x: Tensor, t: Tensor) -> TorchDistribution:
        """Return p(z | x, t): batch shape ``(*, n_cells)``, event shape ``(n_latent,)``."""
        main, interaction = self.main(join(x, t)), self.interaction(t, x)
        scale = (main.stddev * interaction.stddev).sqrt()
        return Normal(main.mean + interaction.mean, scale).to_event(1)


def build_cvae(architecture: Architecture, widths: Widths, **learnt: Any) -> Programs:
    """Build a conditional VAE; FactorVAE and beta-VAE have the same programs.

    Parameters
    ----------
    architecture, widths, **learnt
        Sizes, and what the data say, as :meth:`Architecture.build` takes them.
    """
    labels, genes, n = widths["x"] + widths["t"], widths["y"], sum(architecture.blocks.values())
    model, guide = architecture.build(widths, **learnt)
    decoding, encoding = _layers(architecture)
    y = type(model.y)([n + labels], genes, **decoding)
    z = Encoder(genes + labels, n, **encoding)
    return ConditionalVAE(z=StandardPrior(n), y=y), OneBlockGuide(features=guide.features, z=z)


def build_ivae(architecture: Architecture, widths: Widths, **learnt: Any) -> Programs:
    """Build an identifiable VAE, see :func:`build_cvae`."""
    x, t, genes, n = widths["x"], widths["t"], widths["y"], sum(architecture.blocks.values())
    model, guide = architecture.build(widths, **learnt)
    decoding, encoding = _layers(architecture)
    context = learnt.get("mean_context")
    prior = ConditionPrior(x, t, n, n_embedding=architecture.n_embedding, mean_context=context)
    y = type(model.y)([n], genes, **decoding)
    z = Encoder(genes + x + t, n, **encoding)
    return IdentifiableVAE(z=prior, y=y), OneBlockGuide(features=guide.features, z=z)


def build_no_tx(architecture: Architecture, widths: Widths, **learnt: Any) -> Programs:
    """Build FCR without z_tx, whose dimensions z_x and z_t share, see :func:`build_cvae`."""
    x, t, genes = widths["x"], widths["t"], widths["y"]
    n_x, n_tx, n_t = architecture.blocks.values()
    n_x, n_t = n_x + (n_tx + 1) // 2, n_t + n_tx // 2
    model, guide = architecture.build(widths, **learnt)
    decoding, encoding = _layers(architecture)
    blocks = [n_x, n_t] if architecture.decoder == "additive" else [n_x + n_t]
    y = type(model.y)(blocks, genes, **decoding)
    own = NoInteractionGuide(
        features=guide.features,
        z_x=Encoder(genes + x, n_x, **encoding),
        z_t=Encoder(genes + t, n_t, **encoding),
    )
    return NoInteraction(z_x=LinearPrior(x, n_x), z_t=LinearPrior(t, n_t), y=y), own


def _layers(architecture: Architecture) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the hidden layers of a decoder, which has one less as in FCR, and of an encoder."""
    both = {"n_hidden": architecture.n_hidden, "dropout": architecture.dropout}
    n = architecture.n_layers
    return {**both, "n_layers": max(1, n - 1)}, {**both, "n_layers": n}
