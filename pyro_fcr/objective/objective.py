"""The loss: minus the ELBO plus the penalties that follow from the graph, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.distributions import Exogenous
from pyro_fcr.graph import Claim, Graph, claims
from pyro_fcr.graph.contract import Checked, ProgramError, check_programs
from pyro_fcr.graph.runs import Run, scored_sites
from pyro_fcr.objective.terms import (
    KL,
    Density,
    Discriminator,
    Label,
    Permutation,
    Reconstruction,
    Structure,
    Term,
)
from pyro_fcr.values import Number, check_settings

Weight = float | Callable[[float], float]
"""A number, or a function of the progress of training, which goes from 0 to 1."""


@dataclass(frozen=True)
class Ramp:
    """A weight that rises linearly and then stays.

    Parameters
    ----------
    end
        The final weight.
    until
        The progress (0 to 1) at which it is reached.
    start
        The weight at the beginning.

    Examples
    --------
    >>> [Ramp(2.0, until=0.5)(p) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 1.0, 2.0, 2.0]
    """

    end: float
    until: float = 1 / 3
    start: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, progress: float) -> float:
        """Return the weight at a progress."""
        share = min(1.0, progress / self.until) if self.until > 0 else 1.0
        return self.start + share * (self.end - self.start)


DEFAULT_WEIGHTS: Mapping[str, Weight] = {
    "reconstruction": 1.0,
    "kl": 1.0,
    "structure": Ramp(5.0),
    "permutation": Ramp(2.0),
    "label": 0.0,
    "factor": 1.0,
    "extra": 1.0,
}
"""The weight of each kind of term; a term's own name takes precedence."""


class Losses(NamedTuple):
    """The result of one evaluation of the loss.

    Parameters
    ----------
    total
        The weighted sum, a scalar with a gradient.
    terms
        Each term by name, unweighted, nats per cell.
    run
        The run of the two programs from which they were computed.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    run: Run


class Objective(nn.Module):
    """The loss of a model and a guide, ``objective(batch).total``.

    It is a module that holds model, guide, discriminators and heads. In several
    processes (``torchrun``) :func:`pyro_fcr.training.fit` gives each a part of every batch, and the
    penalties compare the cells of all parts. A wrapper such as ``DistributedDataParallel`` gives
    it batches that know nothing of one another: the ELBO is right then, but penalties compare the
    cells of one process, and no wrapper sees :meth:`adversary_loss`: discriminators part.

    Parameters
    ----------
    model, guide
        The two Pyro programs.
    terms
        The terms of the loss.
    weights
        The weight of a term by its name or kind (the part of the name before the first ``_``): a
        number, or a schedule over the progress of training. Kinds that are left out keep
        :data:`DEFAULT_WEIGHTS`.

    Examples
    --------
    >>> from pyro_fcr import Architecture, Batch
    >>> model, guide = Architecture(n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1e4)
    >>> values = {"y": torch.ones(3, 5), "library": torch.full((3, 1), 5.0)}
    >>> codes = {"x": torch.arange(3), "t": torch.zeros(3, dtype=torch.long)}
    >>> levels, t = {"x": 3, "t": 2}, torch.zeros(3, 1)
    >>> batch = Batch({**values, "x": torch.eye(3), "t": t}, codes, levels, n_total=3)
    >>> objective = Objective.from_programs(model, guide, batch)
    >>> sorted(objective(batch).terms)[:4]
    ['kl_z_t', 'kl_z_tx', 'kl_z_x', 'permutation_z_tx_z_t']
    """

    current_weights: Tensor

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        *,
        terms: Sequence[Term],
        weights: Mapping[str, Weight] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.weights = resolve_weights([term.name for term in terms], weights or {})
        # The ELBO needs its terms whatever they weigh. Names of modules have no dots; sites' may.
        kept = [t for t in terms if isinstance(t, Density) or self.weights[t.name] != 0.0]
        self._terms = nn.ModuleDict({term.name.replace(".", "/"): term for term in kept})
        self.weights = {term.name: self.weights[term.name] for term in kept}
        self.register_buffer("current_weights", torch.zeros(len(self.terms)), persistent=False)
        self.set_progress(0.0)

    @classmethod
    def from_programs(
        cls,
        model: Callable,
        guide: Callable,
        batch: Batch,
        *,
        weights: Mapping[str, Weight] | None = None,
        enforced: Iterable[Claim] | None = None,
        extra: Iterable[Term] = (),
    ) -> Objective:
        """Check two programs and build the loss that their graph asks for.

        Parameters
        ----------
        model, guide
            The two Pyro programs: modules, plain functions, or either under handlers.
        batch
            A few cells, on the device of the programs.
        weights
            As in the class.
        enforced
            The independences to enforce. None enforces those that the graph claims.
        extra
            Further terms, for instance :class:`pyro_fcr.objective.terms.Extra`.

        Raises
        ------
        pyro_fcr.graph.contract.ProgramError
            If model and guide do not fit together.
        """
        checked = check_programs(model, guide, batch)
        return cls.of_checked(checked, batch, weights=weights, enforced=enforced, extra=extra)

    @classmethod
    def of_checked(
        cls,
        checked: Checked,
        batch: Batch,
        *,
        weights: Mapping[str, Weight] | None = None,
        enforced: Iterable[Claim] | None = None,
        extra: Iterable[Term] = (),
    ) -> Objective:
        """Build the loss of programs that are checked already; see :meth:`from_programs`."""
        graph, run = checked.graph, checked.run
        enforced = claims(graph) if enforced is None else tuple(enforced)
        terms = [
            *_density_terms(checked),
            *(_claim_term(claim, enforced, run) for claim in enforced),
            *_label_terms(graph, run),
            *extra,
        ]
        built = cls(checked.model, checked.guide, terms=terms, weights=weights)
        for term in built.terms.values():
            _check_strata(term, batch)
            term.to(batch["library"])
        return built.to(batch["library"].device)

    @property
    def terms(self) -> dict[str, Term]:
        """The terms by name."""
        return {term.name: term for term in self._terms.values() if isinstance(term, Term)}

    def forward(self, batch: Batch) -> Losses:
        """Run guide and model on a batch and evaluate every term.

        Of a part of a batch that several processes share, loss and terms are what its cells add to
        those of the batch: their sums over processes are those of one process.
        """
        with batch.noise():
            return self.evaluate(Run.trace(self.model, self.guide, batch))

    def evaluate(self, run: Run) -> Losses:
        """Evaluate every term on a run that was made elsewhere."""
        values = {name: run.batch.shared(term(run)) for name, term in self.terms.items()}
        stacked = torch.stack(list(values.values()))
        total = (stacked * self.current_weights.to(stacked)).sum()
        return Losses(total, values, run)

    def adversary_loss(self, run: Run) -> Tensor | None:
        """Return the sum of the adversaries' losses on detached latents, or None without any."""
        found = [
            loss for term in self.terms.values() if (loss := term.adversary_loss(run)) is not None
        ]
        return run.batch.shared(torch.stack(found).sum()) if found else None

    def elbo(self, losses: Losses) -> Tensor:
        """Return the ELBO with all weights 1, nats per cell (higher is better)."""
        parts = [losses.terms[n] for n, t in self.terms.items() if isinstance(t, Density)]
        return -torch.stack(parts).sum()

    def set_progress(self, progress: float) -> None:
        """Set all scheduled weights to their values at a progress between 0 and 1."""
        values = [float(w(progress) if callable(w) else w) for w in self.weights.values()]
        # From pinned memory, so that a step does not wait for a GPU that is at work on the last.
        pinned = torch.tensor(values, pin_memory=self.current_weights.is_cuda)
        self.current_weights.copy_(pinned, non_blocking=True)

    @property
    def settled_after(self) -> float:
        """The progress from which on no weight changes any more."""
        return max((w.until for w in self.weights.values() if isinstance(w, Ramp)), default=0.0)

    def adversary_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the discriminators."""
        adversaries = [getattr(term, "adversary", None) for term in self.terms.values()]
        return [p for a in adversaries if a is not None for p in a.parameters()]

    def main_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of model, guide and heads: all but those of the discriminators."""
        adversarial = {id(p) for p in self.adversary_parameters()}
        return [p for p in self.parameters() if id(p) not in adversarial]


def resolve_weights(names: Sequence[str], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weight of every term: by its name, else by its kind, else the default.

    Raises
    ------
    ValueError
        If a weight belongs to no term, or is no number of 0 or more.
    """
    kinds = {name.split("_", 1)[0] for name in names}
    known = {*names, *kinds, *DEFAULT_WEIGHTS}
    if unknown := set(weights) - known:
        raise ValueError(
            f"Weights {sorted(unknown)} fit no term. The terms are {sorted(names)}; the kinds "
            f"{sorted(kinds)} stand for all terms whose names begin with them."
        )
    for name, weight in weights.items():
        for progress in (0.0, 0.5, 1.0):
            value = weight(progress) if callable(weight) else weight
            Number(least=0).read(f"weight {name!r}", value)
    merged = {**DEFAULT_WEIGHTS, **weights}
    return {n: merged.get(n, merged.get(n.split("_", 1)[0], 1.0)) for n in names}


def _density_terms(checked: Checked) -> list[Term]:
    """Return the parts of the ELBO: together, all that the two programs score."""
    graph, run = checked.graph, checked.run
    nodes = scored_sites(run.model_trace)
    observed = [s for s in nodes if s in graph.observed and not _has_no_density(nodes[s])]
    return [
        *(Reconstruction(site, name=_name_of_observed(site, graph)) for site in observed),
        *(
            KL(
                *group.latents,
                auxiliary=group.auxiliary,
                analytic=len(group.latents) == 1 and checked.has_closed_form_kl(group),
            )
            for group in checked.groups
        ),
    ]


def _has_no_density(node: Any) -> bool:
    return isinstance(node["fn"], Exogenous)


def _name_of_observed(site: str, graph: Graph) -> str:
    if graph.distributions[site] == "Unit":
        return f"factor_{site}"
    outcomes = set(graph.outcomes) - graph.labels - graph.conditioned
    return "reconstruction" if outcomes == {site} else f"reconstruction_{site}"


def _claim_term(claim: Claim, enforced: Sequence[Claim], run: Run) -> Term:
    if claim.kind == "structure":
        about = claim.kind, claim.left, claim.given
        alike = (c for c in enforced if (c.kind, c.left, c.given) == about)
        return Structure(claim, (*claim.given, *(c.right for c in alike)))
    sites = (claim.left, claim.right, *claim.given)
    n_in = run.joined(sites).shape[-1]
    return Permutation(claim, Discriminator(n_in))


def _check_strata(term: Term, batch: Batch) -> None:
    if missing := [site for site in term.strata if site not in batch.codes]:
        raise ProgramError(
            f"{missing[0]}: the batch has no strata of it (codes, n_levels), within which "
            f"{term.name} compares cells. Give them, with few values, or drop the term: "
            f"weights={{{term.name!r}: 0.0}}."
        )


def _label_terms(graph: Graph, run: Run) -> list[Term]:
    heads: list[Term] = []
    for site in graph.known:
        blocks = tuple(z for z in graph.blocks if graph.parents[z] and site in graph.parents[z])
        own = tuple(z for z in blocks if graph.parents[z] == (site,)) or blocks
        if own and site in run.batch.n_levels:
            n_in = run.joined(own).shape[-1]
            heads.append(Label(site, own, n_in=n_in, n_levels=run.batch.n_levels[site]))
    return heads
