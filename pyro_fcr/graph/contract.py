"""What a model and a guide owe one another, checked once before training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import networkx as nx
import pyro
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.torch import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_fcr.batch import Batch
from pyro_fcr.graph.dag import CELLS, Graph, read_graph
from pyro_fcr.graph.runs import Run, drawn_sites, is_scaled, plates, scored_sites
from pyro_fcr.modes import looking
from pyro_fcr.params import ParameterError, adopt, as_module

logger = logging.getLogger(__name__)

_WITH_KL = ("pyro.distributions.torch", "torch.distributions.")
"""Where families are from whose closed forms hold: a subclass may score values otherwise."""
_OF_PYRO = {"num_samples", "temperature", "obs", "prior"}  # infer= options that are numbers


class ProgramError(ValueError):
    """Model and guide do not fit together; the message names the site and the mend.

    Examples
    --------
    >>> from pyro_fcr import Architecture, Batch, ProgramError
    >>> model, guide = Architecture(n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1e4)
    >>> values = {"y": torch.ones(3, 5), "library": torch.full((3, 1), 5.0)}
    >>> batch = Batch({**values, "x": torch.eye(3), "t": torch.zeros(3, 1)}, {}, {}, n_total=3)
    >>> guide.z_t = Architecture(n_t=4, n_tx=2).build({"y": 5, "x": 3, "t": 1}, target_sum=1)[1].z_t
    >>> try:
    ...     check_programs(model, guide, batch)
    ... except ProgramError as error:
    ...     print(str(error).split(":")[0])
    z_t
    """


class Group(NamedTuple):
    """Latents that the guide draws together.

    Parameters
    ----------
    latents
        One latent; several if the guide draws them from common auxiliary sites.
    auxiliary
        What the guide scores beside them: auxiliary sites and factors.
    """

    latents: tuple[str, ...]
    auxiliary: tuple[str, ...]


class Checked(NamedTuple):
    """Two programs that fit together.

    Parameters
    ----------
    model, guide
        The two as modules that hold whatever they train.
    graph, guide_graph
        The graphs of model and guide.
    run
        One run of both, without a gradient.
    """

    model: nn.Module
    guide: nn.Module
    graph: Graph
    guide_graph: Graph
    run: Run

    @property
    def groups(self) -> list[Group]:
        """All that the guide scores: latents, with the sites of the guide that belong to them."""
        own = self.run.guide_only_sites()
        together = nx.Graph()
        together.add_nodes_from([*self.graph.latents, *own])
        for site in own:
            together.add_edges_from((site, other) for other in self._drawn_with(site, own))
        parts = list(nx.connected_components(together))
        order = sorted(parts, key=lambda part: min(map(list(together).index, part)))
        return [
            Group(
                tuple(s for s in self.graph.latents if s in part),
                tuple(s for s in own if s in part),
            )
            for part in order
        ]

    def _drawn_with(self, site: str, own: list[str]) -> list[str]:
        """Return the sites whose density cannot be told from that of a site of the guide alone."""
        graph, latents = self.guide_graph, self.graph.latents
        fed = [s for s in (*latents, *own) if site in graph.ancestors(s)]
        points = [s for s in fed if isinstance(_base(self.run.of_guide(s)["fn"]), Delta)]
        # What a point is computed from is its density; what merely reads it has one of its own.
        return [*(points or fed), *(s for s in graph.parents[site] if s in {*latents, *own})]

    def has_closed_form_kl(self, group: Group) -> bool:
        """Return whether the KL of a group may be taken in closed form; log a line if not.

        A closed form is valid if the group is one latent, the family has one and the guide draws no
        cause of the latent from the latent itself. (Otherwise the guide's density is not that of
        the latent given its causes.) A point (``Delta``) has none.
        """
        if not group.latents or all(
            isinstance(_base(self.run.posterior(site)), Delta) for site in group.latents
        ):
            return False
        reason = _closed_form_obstacle(group, self)
        if reason:
            names = ", ".join(group.latents)
            logger.warning(
                "KL of %s is taken from its draw, not in closed form: %s.", names, reason
            )
        return reason is None


def adopt_programs(model: Callable, guide: Callable, batch: Batch) -> tuple[nn.Module, nn.Module]:
    """Return two programs as modules that hold whatever they train, see :func:`params.adopt`.

    Parameters
    ----------
    model, guide
        Modules, plain functions, or programs under handlers; each takes a batch.
    batch
        A few cells.

    Raises
    ------
    ProgramError
        A program does not run, or computes with a parameter that belongs to nothing.
    """
    programs = as_module(model), as_module(guide)
    with looking(*programs, device=batch["library"].device):
        # Each on its own: a latent of the wrong size would fail inside a network, and an autoguide
        # makes its parameters when it is first run.
        _run_apart(*programs, batch)
    return programs


def check_programs(model: Callable, guide: Callable, batch: Batch) -> Checked:
    """Run both programs once and compare them site by site.

    Parameters
    ----------
    model, guide
        The two programs, as in :func:`adopt_programs`.
    batch
        A few cells.

    Raises
    ------
    ProgramError
        If a latent is missing in one of the two, differs in shape or plate, or cannot be
        reparametrised, or if an outcome is missing or lies outside the plate over cells.
    """
    model, guide = adopt_programs(model, guide, batch)
    with looking(model, guide, device=batch["library"].device):
        alone = Run.apart(model, guide, batch)
        graph, guide_graph = read_graph(model, batch), read_graph(guide, batch)
        _check_sites(graph, guide_graph, alone)
        for site in graph.latents:
            _check_latent(site, alone)
        for site in alone.guide_only_sites():
            _check_gradient(site, alone)
        for site in (s for s in graph.outcomes if s not in graph.conditioned):
            _check_plate(site, alone.of_model(site))
        for trace in (alone.model_trace, alone.guide_trace):
            for site, node in scored_sites(trace).items():
                _check_options(site, node)
        return Checked(model, guide, graph, guide_graph, Run.trace(model, guide, batch))


def _run_apart(model: nn.Module, guide: nn.Module, batch: Batch) -> None:
    try:
        with pyro.validation_enabled(is_validate=True):
            adopt(model, batch)
            adopt(guide, batch, beside=[model])
    except ParameterError as error:
        raise ProgramError(str(error)) from None
    except RuntimeError as error:
        if "Multiple sample sites" not in str(error):
            raise
        raise ProgramError(
            f"{str(error).splitlines()[0]}: a program may use a name once, and opening a plate "
            "again counts as a second use. Put all sites of a cell under one "
            f"`with pyro.plate({CELLS!r}, len(batch)):`."
        ) from error
    except ValueError as error:
        text = str(error).splitlines()[0]
        raise ProgramError(
            f"{text}. In the plate over cells a site has one row per cell. End its distribution "
            "with .to_event(1), and check the input sizes of the networks."
        ) from error


def describe_programs(model: Callable, guide: Callable, batch: Batch) -> list[dict[str, Any]]:
    """Describe both programs site by site, after checking them.

    Parameters
    ----------
    model, guide, batch
        As in :func:`check_programs`.

    Returns
    -------
    One record per site of the model: ``site``, ``parents``, ``distribution``, ``guide`` (the
    guide's distribution), ``shape`` (per cell, or of the whole site if cells share it),
    ``observed``, ``per_cell`` and ``parameters`` (number in the attributes of model and guide that
    bear the site's name).
    """
    checked = check_programs(model, guide, batch)
    model, guide, graph, run = checked.model, checked.guide, checked.graph, checked.run
    return [
        {
            "site": site,
            "parents": ", ".join(parents),
            "distribution": graph.distributions[site],
            "guide": _family(run.posterior(site)) if site in graph.latents else "",
            "shape": tuple(run.prior(site).event_shape),
            "observed": site in graph.observed,
            "per_cell": CELLS in plates(run.model_trace.nodes[site]),
            "parameters": _n_parameters(model, site) + _n_parameters(guide, site),
        }
        for site, parents in graph.parents.items()
    ]


def _n_parameters(program: nn.Module, site: str) -> int:
    part = getattr(program, site, None)
    return sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0


def _closed_form_obstacle(group: Group, checked: Checked) -> str | None:
    if group.auxiliary:
        return f"the guide draws it from {_names(set(group.auxiliary))}, as autoguides do"
    (site,) = group.latents
    for cause in checked.graph.parents[site]:
        if cause in checked.guide_graph.parents and site in checked.guide_graph.ancestors(cause):
            return f"the guide draws {cause}, a cause of {site} in the model, from {site}"
    posterior, prior = checked.run.posterior(site), checked.run.prior(site)
    try:
        kl_divergence(posterior, prior)
    except NotImplementedError:
        known = False
    else:
        known = all(_base(d).__module__.startswith(_WITH_KL) for d in (posterior, prior))
    return None if known else f"there is none for {_family(posterior)} against {_family(prior)}"


def _check_sites(graph: Graph, guide_graph: Graph, run: Run) -> None:
    latents, drawn = set(graph.latents), set(drawn_sites(run.guide_trace))
    if missing := sorted(latents - drawn):
        if _is_discrete(run.prior(missing[0])):
            raise ProgramError(f"{missing[0]}: {_SUM_OUT.format(site=missing[0])}")
        raise ProgramError(
            f"The model draws {_names(set(missing))}, but the guide does not. Add "
            f"`pyro.sample({missing[0]!r}, ...)` to the guide. It draws {_names(drawn)}."
        )
    conditioned = (drawn - latents) & graph.observed
    if unknown := drawn - latents - conditioned:
        raise ProgramError(
            f"The guide draws {_names(unknown)}, which is not a latent of the model. Rename or "
            "drop it, or mark it with infer={'is_auxiliary': True}. The model's latents are "
            f"{_names(latents)}."
        )
    for site in sorted(conditioned):
        _check_conditioned(site, guide_graph)
    if not graph.outcomes:
        raise ProgramError(
            "The model observes nothing that depends on a latent. Pass obs=batch.get('y')."
        )


def _check_latent(site: str, run: Run) -> None:
    prior, posterior = run.prior(site), run.posterior(site)
    for what in ("event_shape", "batch_shape"):
        shapes = tuple(getattr(prior, what)), tuple(getattr(posterior, what))
        if shapes[0] != shapes[1]:
            raise ProgramError(
                f"{site}: {what} is {shapes[0]} in the model and {shapes[1]} in the guide. Both "
                "need the same size and the same .to_event(1)."
            )
    _check_gradient(site, run)
    _report_one_sided(site, run)
    ours, theirs = plates(run.of_model(site)), plates(run.of_guide(site))
    if ours != theirs:
        raise ProgramError(
            f"{site}: its plates are {_names(ours)} in the model and {_names(theirs)} in the "
            "guide. They must agree."
        )


def _report_one_sided(site: str, run: Run) -> None:
    ours, theirs = run.of_model(site), run.of_guide(site)
    if (ours["mask"] is None) != (theirs["mask"] is None):
        logger.warning("%s: poutine.mask stands in one program only; it counts for both.", site)
    if is_scaled(ours) != is_scaled(theirs):
        logger.warning(
            "%s: poutine.scale stands in one program only, so that log p and log q weigh "
            "differently and the loss is no bound. Write it in both, or weights={'kl_%s': ...}.",
            *(site, site),
        )


def _check_gradient(site: str, run: Run) -> None:
    posterior = run.posterior(site)
    if not posterior.has_rsample:
        raise ProgramError(
            f"{site}: the guide's {_family(posterior)} has no reparametrised draws, so no "
            "gradient would reach its encoder. "
            + (
                _SUM_OUT.format(site=site)
                if _is_discrete(posterior)
                else "Use a family with rsample (Normal, a flow)."
            )
        )


def _check_conditioned(site: str, guide_graph: Graph) -> None:
    """Leave out a draw of the guide whose site the model observes, as under `pyro.condition`."""
    if readers := [s for s in guide_graph.latents if site in guide_graph.ancestors(s)]:
        raise ProgramError(
            f"The model observes {site}, but the guide draws it and {_names(set(readers))} from "
            f"it. Pass the guide without it, or leave {site} a latent of the model."
        )
    logger.warning("The model observes %s: the guide's draw of it does not count.", site)


def _check_options(site: str, node: Any) -> None:
    for frame in node["cond_indep_stack"]:
        if frame.name == CELLS and frame.size != frame.full_size:
            raise ProgramError(
                f"{site}: the plate {CELLS!r} draws {frame.size} of {frame.full_size} cells "
                "(subsample_size= or subsample=). A batch is a subsample already, and losses are "
                f"means per cell: write pyro.plate({CELLS!r}, len(batch))."
            )
    for option, value in node["infer"].items():
        number = isinstance(value, float | int | Tensor) and not isinstance(value, bool)
        if number and option not in _OF_PYRO and not option.startswith("_"):
            raise ProgramError(
                f"{site}: infer={{{option!r}: ...}} has no effect in Pyro. To weigh the KL of a "
                f"latent, call fit(weights={{'kl_{site}': ...}}); to scale what the site "
                "contributes, write `with poutine.scale(scale=...)` around it."
            )


def _check_plate(site: str, node: Any) -> None:
    names = plates(node)
    if CELLS not in names:
        raise ProgramError(
            f"{site} is not in a plate named {CELLS!r} (found {_names(names)}). Open it with "
            f"`with pyro.plate({CELLS!r}, len(batch)):` so that the loss is a mean over cells."
        )


def _base(distribution: Any) -> Any:
    """Return the distribution of single numbers under event and batch dimensions."""
    while isinstance(distribution, Independent | ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


_SUM_OUT = (
    "discrete latents have no gradient. Sum it out (model=pyro_fcr.SumOut(model, {site!r}), and no "
    "such site in the guide), or relax it (dist.RelaxedOneHotCategorical). An outcome has values "
    "in the batch: Schema(outcome_keys={{{site!r}: ...}})."
)


def _is_discrete(distribution: TorchDistribution) -> bool:
    support = distribution.support
    return bool(getattr(support, "is_discrete", False))


def _family(distribution: TorchDistribution) -> str:
    return type(_base(distribution)).__name__


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
