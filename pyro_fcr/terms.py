"""The named terms of the loss: each takes one run of the two programs, gives nats per cell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_fcr import penalties
from pyro_fcr.batch import Batch
from pyro_fcr.graph import CELLS, Claim
from pyro_fcr.modes import outside_param_store

_DRAWS_OF_MOMENTS = 16


def drawn_sites(trace: Trace) -> dict[str, Any]:
    """Give the latents that a program drew, by name; without an autoguide's auxiliary ones."""
    nodes: dict[str, Any] = trace.nodes
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and not node["infer"].get("is_auxiliary")
        and not site_is_subsample(node)
    }


def auxiliary_sites(trace: Trace, site: str) -> list[Any]:
    """Give what an autoguide draws a latent from, before constraining it."""
    nodes: dict[str, Any] = trace.nodes
    return [
        node
        for name, node in nodes.items()
        if node["type"] == "sample"
        and name.startswith(f"{site}_")
        and node["infer"].get("is_auxiliary")
    ]


def plates(node: Any) -> set[str]:
    """Give the names of the plates that a site stands in."""
    return {frame.name for frame in node["cond_indep_stack"]}


def _is_weighted(node: Any) -> bool:
    scaled = isinstance(node["scale"], Tensor) or node["scale"] != 1.0
    return scaled or node["mask"] is not None or CELLS not in plates(node)


@dataclass(frozen=True)
class Run:
    """One run of the guide on a batch, and the model replayed against it.

    Parameters
    ----------
    batch
        The cells.
    model_trace, guide_trace
        Traces of the two programs; the model's holds the guide's latents.
    """

    batch: Batch
    model_trace: Trace
    guide_trace: Trace

    def _node(self, site: str) -> Any:
        return self.model_trace.nodes[site]

    @classmethod
    def trace(cls, model: Callable, guide: Callable, batch: Batch) -> Run:
        """Run the guide, then the model with the guide's latents."""
        with outside_param_store():
            guide_trace = poutine.trace(guide).get_trace(batch)
            replayed = poutine.replay(model, trace=guide_trace)
            return cls(batch, poutine.trace(replayed).get_trace(batch), guide_trace)

    @classmethod
    def apart(cls, model: Callable, guide: Callable, batch: Batch) -> Run:
        """Run both programs without handing the guide's latents to the model."""
        with outside_param_store():
            traces = [poutine.trace(program).get_trace(batch) for program in (model, guide)]
        return cls(batch, *traces)

    def value(self, site: str) -> Tensor:
        """Give the drawn or observed value of a site, ``(n_cells, n_features)``."""
        return self._node(site)["value"]

    def prior(self, site: str) -> TorchDistribution:
        """Give the model's distribution of a site."""
        return self._node(site)["fn"]

    def posterior(self, site: str) -> TorchDistribution:
        """Give the guide's distribution of a latent."""
        node: Any = self.guide_trace.nodes[site]
        return node["fn"]

    def per_cell(self, site: str, log_density: Tensor) -> Tensor:
        """Average over the cells of the batch; what all cells share is spread over the data set.

        A ``poutine.scale`` or ``poutine.mask`` of the model's site is honoured.
        """
        node = self._node(site)
        total = scale_and_mask(log_density, node["scale"], node["mask"]).sum()
        return total / (len(self.batch) if CELLS in plates(node) else self.batch.n_total)

    def log_prob_sum(self, site: str) -> Tensor | None:
        """Give the log-probability of all cells together, where there is a cheap way to it.

        There is one if the batch brings sums over its counts, the site's value are these counts,
        nothing scales or masks cells, and the family offers ``log_prob_sum(value, counts)``.
        """
        node, counts = self._node(site), self.batch.counts
        if counts is None or node["value"] is not self.batch.get("y") or _is_weighted(node):
            return None
        family = getattr(node["fn"], "base_dist", node["fn"])
        offered = getattr(family, "log_prob_sum", None)
        return None if offered is None else offered(node["value"], counts)

    def joined(self, sites: tuple[str, ...]) -> Tensor:
        """Concatenate the values of sites; no site gives ``(n_cells, 0)``."""
        empty = self.batch["library"].new_zeros(len(self.batch), 0)
        return torch.cat([empty, *(self.value(site) for site in sites)], dim=-1)


class Term(nn.Module, ABC):
    """A named part of the loss. Subclass this, or pass a function to :class:`Extra`.

    Parameters
    ----------
    name
        Its name in weights, history and messages.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @abstractmethod
    def forward(self, run: Run) -> Tensor:
        """Give the mean over the cells of the run, a scalar to be made small."""

    def adversary_loss(self, run: Run) -> Tensor | None:
        """Give the loss of the term's own adversary on detached latents, where it has one."""
        return None


class Reconstruction(Term):
    """Minus the log-probability of an outcome given the latents.

    Parameters
    ----------
    site
        The observed site, ``y`` in the shipped model.
    name
        The term's name.
    """

    def __init__(self, site: str, *, name: str = "reconstruction") -> None:
        super().__init__(name)
        self.site = site

    def forward(self, run: Run) -> Tensor:
        """Give nats per cell."""
        summed = run.log_prob_sum(self.site)
        if summed is not None:
            return -summed / len(run.batch)
        return -run.per_cell(self.site, run.prior(self.site).log_prob(run.value(self.site)))


class KL(Term):
    """KL divergence of a latent's guide from its conditional prior.

    Parameters
    ----------
    site
        The latent.
    analytic
        In closed form; otherwise from the drawn value. Closed form is right only if no cause of
        the latent is drawn in the guide from the latent itself: see
        :meth:`pyro_fcr.contract.Checked.has_closed_form_kl`.
    """

    def __init__(self, site: str, *, analytic: bool = True) -> None:
        super().__init__(f"kl_{site}")
        self.site, self.analytic = site, analytic

    def forward(self, run: Run) -> Tensor:
        """Give nats per cell."""
        posterior, prior = run.posterior(self.site), run.prior(self.site)
        if self.analytic:
            return run.per_cell(self.site, kl_divergence(posterior, prior))
        value = run.value(self.site)
        log_ratio = posterior.log_prob(value).sum() - prior.log_prob(value).sum()
        for node in auxiliary_sites(run.guide_trace, self.site):
            log_ratio = log_ratio + node["fn"].log_prob(node["value"]).sum()
        return run.per_cell(self.site, log_ratio)


class Structure(Term):
    """Keeps a block from depending on an exogenous site that is no cause of it.

    Parameters
    ----------
    claim
        The independence, of the kind ``"structure"``.
    exogenous
        All exogenous sites: their joint value is a condition.
    """

    def __init__(self, claim: Claim, exogenous: tuple[str, ...]) -> None:
        super().__init__(claim.name)
        self.block, self.condition = claim.left, exogenous

    def forward(self, run: Run) -> Tensor:
        """Give nats per cell."""
        posterior, prior = _moments(run.posterior(self.block)), _moments(run.prior(self.block))
        stratum, n_strata = run.batch.stratum(self.condition)
        return penalties.structure_divergence(posterior, prior, stratum, n_strata)


def _moments(distribution: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and variance per cell; from draws where the family has no closed form (flows)."""
    try:
        return distribution.mean, distribution.variance
    except NotImplementedError:
        draws = distribution.rsample(torch.Size([_DRAWS_OF_MOMENTS]))
        return draws.mean(dim=0), draws.var(dim=0)


class Discriminator(nn.Module):
    """Tells pairs of blocks of the same cell from pairs of different cells of a stratum.

    Parameters
    ----------
    n_in
        Features of both blocks and of what is conditioned on.
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
        """Give the logit of "same cell", ``(n_cells,)``."""
        return self.net(torch.cat([left, right, given], dim=-1)).squeeze(-1)


class Permutation(Term):
    """Keeps two blocks independent within strata, against a discriminator of its own.

    Parameters
    ----------
    claim
        The independence, of the kind ``"permutation"``.
    discriminator
        The adversary; it is trained by :meth:`adversary_loss` only.
    """

    def __init__(self, claim: Claim, discriminator: nn.Module) -> None:
        super().__init__(claim.name)
        self.claim, self.adversary = claim, discriminator

    def forward(self, run: Run) -> Tensor:
        """Give the mean log density ratio; its gradient reaches the encoders."""
        return penalties.log_density_ratio(self.adversary, *self._inputs(run))

    def adversary_loss(self, run: Run) -> Tensor:
        """Give the discriminator's cross-entropy."""
        stratum, _ = run.batch.stratum(self.claim.given)
        return penalties.discriminator_loss(self.adversary, *self._inputs(run), stratum)

    def _inputs(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        left, right = run.value(self.claim.left), run.value(self.claim.right)
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
        Features of these latents, distinct values of the site.
    """

    def __init__(self, site: str, blocks: tuple[str, ...], *, n_in: int, n_levels: int) -> None:
        super().__init__(f"label_{site}")
        self.site, self.blocks, self.head = site, blocks, nn.Linear(n_in, n_levels)

    def forward(self, run: Run) -> Tensor:
        """Give nats per cell."""
        logits = self.head(run.joined(self.blocks))
        return F.cross_entropy(logits, run.batch.codes[self.site])


class Extra(Term):
    """A user's own term.

    Parameters
    ----------
    name
        Its name.
    function
        Takes a run, returns a scalar that is a mean over cells.
    """

    def __init__(self, name: str, function: Callable[[Run], Any]) -> None:
        super().__init__(name)
        self.function = function

    def forward(self, run: Run) -> Tensor:
        """Call the function."""
        return self.function(run)
