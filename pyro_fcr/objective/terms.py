"""The named terms of the loss: each takes one run of the two programs, in nats per cell."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_fcr.distributions import moments
from pyro_fcr.graph import Claim, Run
from pyro_fcr.graph.runs import is_scaled
from pyro_fcr.nn.conditionals import in_full_by
from pyro_fcr.objective import penalties

_DRAWS_OF_MOMENTS = 16


class Term(nn.Module, ABC):
    """A named part of the loss. Subclass this, or pass a function to :class:`Extra`.

    Parameters
    ----------
    name
        The name of the term in weights, history and messages.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @abstractmethod
    def forward(self, run: Run) -> Tensor:
        """Return the mean over the cells of the run, a scalar to be minimised."""

    def adversary_loss(self, run: Run) -> Tensor | None:
        """Return the loss of the term's adversary on detached latents, or None without one."""
        return None

    @property
    def strata(self) -> tuple[str, ...]:
        """The sites whose strata it reads: cells of a stratum are compared."""
        return ()


class Density(Term):
    """A part of the ELBO: what model and guide score at some sites.

    Parameters
    ----------
    name
        The term's name.
    sites
        Sites of the model.
    """

    def __init__(self, name: str, sites: tuple[str, ...]) -> None:
        super().__init__(name)
        self.sites = sites


class Reconstruction(Density):
    """Minus the log-probability of an observed site, or of a factor, given its causes.

    Parameters
    ----------
    site
        The observed site, ``y`` in the shipped model.
    name
        The term's name.
    """

    def __init__(self, site: str, *, name: str = "reconstruction") -> None:
        super().__init__(name, (site,))
        self.site = site

    def forward(self, run: Run) -> Tensor:
        """Return nats per cell."""
        summed = run.log_prob_sum(self.site)
        if summed is not None:
            return -summed / len(run.batch)
        return -run.log_density(run.of_model(self.site))


class KL(Density):
    """KL divergence of the guide from the model at latents that the guide draws together.

    It is what :class:`pyro.infer.Trace_ELBO` counts: the log-density of everything that the guide
    scores less that of the model, each with the scale of its own program. (A mask in one program
    alone counts for both; Pyro would leave the other density of the masked cells in.)

    Parameters
    ----------
    *sites
        One latent, or several that the guide draws from common auxiliary sites.
    auxiliary
        Sites of the guide alone that belong to them.
    analytic
        Whether to take it in closed form; otherwise it is taken from the drawn value. The closed
        form is valid only if the guide draws no cause of the latent from the latent itself; see
        :meth:`pyro_fcr.graph.contract.Checked.has_closed_form_kl`.
    """

    def __init__(
        self, *sites: str, auxiliary: tuple[str, ...] = (), analytic: bool = False
    ) -> None:
        super().__init__("_".join(["kl", *(sites or auxiliary)]), sites)
        self.auxiliary, self.analytic = auxiliary, analytic

    def forward(self, run: Run) -> Tensor:
        """Return nats per cell."""
        if self.analytic:
            return _closed_form(run, *self.sites)
        ours = [run.log_density(run.of_model(site)) for site in self.sites]
        theirs = [run.log_density(run.of_guide(site)) for site in (*self.sites, *self.auxiliary)]
        return torch.stack(theirs).sum() - sum(ours)


def _closed_form(run: Run, site: str) -> Tensor:
    prior, posterior = run.of_model(site), run.of_guide(site)
    found = run.per_cell(prior, kl_divergence(posterior["fn"], prior["fn"]))
    if is_scaled(prior) or is_scaled(posterior):
        # The divergence has the scale of log p; what log q has beyond it is taken at the draw.
        log_q = posterior["fn"].log_prob(posterior["value"])
        found = found + run.per_cell(posterior, log_q) - run.per_cell(prior, log_q)
    return found


class Structure(Term):
    """Keep a block from depending on a known site that is not among its causes.

    Parameters
    ----------
    claim
        The independence, of the kind ``"structure"``.
    condition
        Known sites whose joint value is a condition: those given, and all that the block is
        independent of given these.
    """

    def __init__(self, claim: Claim, condition: tuple[str, ...]) -> None:
        super().__init__(claim.name)
        self.block, self.condition = claim.left, condition

    @property
    def strata(self) -> tuple[str, ...]:
        """The sites whose joint value is a condition."""
        return self.condition

    def forward(self, run: Run) -> Tensor:
        """Return nats per cell."""
        posterior, prior = (
            moments(family, n_draws=_DRAWS_OF_MOMENTS)
            for family in (run.posterior(self.block), run.prior(self.block))
        )
        stratum, n_strata = run.batch.stratum(self.condition)
        return penalties.structure_divergence(
            posterior, prior, stratum, n_strata, part=run.batch.part
        )


class Discriminator(nn.Module):
    """Tell pairs of blocks of the same cell from pairs of different cells of a stratum.

    Parameters
    ----------
    n_in
        Number of features of both blocks and of the sites that are conditioned on.
    n_hidden
        Width of the two hidden layers.
    """

    def __init__(self, n_in: int, *, n_hidden: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_in, n_hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(n_hidden, n_hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(n_hidden, 1),
        )

    def forward(self, left: Tensor, right: Tensor, given: Tensor) -> Tensor:
        """Return the logit of "same cell", ``(n_cells,)``."""
        h = torch.cat([left, right, given], dim=-1)
        *hidden, last = self.net
        for layer in hidden:
            h = layer(h)
        return in_full_by(cast(nn.Linear, last), h).squeeze(-1)


class Permutation(Term):
    """Keep two blocks independent within strata, against a discriminator of its own.

    Parameters
    ----------
    claim
        The independence, of the kind ``"permutation"``.
    discriminator
        The adversary. Only :meth:`adversary_loss` trains it.
    """

    def __init__(self, claim: Claim, discriminator: nn.Module) -> None:
        super().__init__(claim.name)
        self.claim, self.adversary = claim, discriminator

    @property
    def strata(self) -> tuple[str, ...]:
        """The sites that are given."""
        return self.claim.given

    def forward(self, run: Run) -> Tensor:
        """Return the mean log density ratio; its gradient reaches the encoders."""
        return penalties.log_density_ratio(self.adversary, *self._inputs(run))

    def adversary_loss(self, run: Run) -> Tensor:
        """Return the discriminator's cross-entropy."""
        stratum, _ = run.batch.stratum(self.claim.given)
        inputs = *self._inputs(run), stratum
        return penalties.discriminator_loss(self.adversary, *inputs, part=run.batch.part)

    def _inputs(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        left, right = run.features(self.claim.left), run.features(self.claim.right)
        return left, right, run.joined(self.claim.given)


class Label(Term):
    """Cross-entropy of reading an exogenous site's value off some blocks.

    Parameters
    ----------
    site
        The exogenous site.
    blocks
        The latents that the linear head reads.
    n_in, n_levels
        Number of features of these latents, and of distinct values of the site.
    """

    def __init__(self, site: str, blocks: tuple[str, ...], *, n_in: int, n_levels: int) -> None:
        super().__init__(f"label_{site}")
        self.site, self.blocks, self.head = site, blocks, nn.Linear(n_in, n_levels)

    def forward(self, run: Run) -> Tensor:
        """Return nats per cell."""
        logits = in_full_by(self.head, run.joined(self.blocks))
        return F.cross_entropy(logits, run.batch.codes[self.site])


class Extra(Term):
    """A user's own term.

    Parameters
    ----------
    name
        The name of the term.
    function
        A function that takes a run and returns a scalar, the mean over its cells.
    """

    def __init__(self, name: str, function: Callable[[Run], Any]) -> None:
        super().__init__(name)
        self.function = function

    def forward(self, run: Run) -> Tensor:
        """Call the function."""
        return self.function(run)
