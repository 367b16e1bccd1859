"""What a model and a guide owe one another, checked once before training."""

import logging
from typing import Any, NamedTuple

import pyro
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import kl_divergence

from pyro_fcr.batch import Batch
from pyro_fcr.graph.dag import CELLS, Graph, read_graph
from pyro_fcr.graph.runs import Run, auxiliary_sites, drawn_sites, plates
from pyro_fcr.modes import looking

logger = logging.getLogger(__name__)


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


class Checked(NamedTuple):
    """Two programs that fit together.

    Parameters
    ----------
    graph, guide_graph
        The graphs of model and guide.
    run
        One run of both, without a gradient.
    """

    graph: Graph
    guide_graph: Graph
    run: Run

    def has_closed_form_kl(self, site: str) -> bool:
        """Return whether the KL of a latent may be taken in closed form; log a line if not.

        A closed form is valid if the family has one and if the guide draws no cause of the latent
        from the latent itself. (Otherwise the guide's density is not that of the latent given its
        causes.)
        """
        reason = _closed_form_obstacle(site, *self)
        if reason:
            logger.warning("KL of %s is taken from its draw, not in closed form: %s.", site, reason)
        return reason is None


def check_programs(model: nn.Module, guide: nn.Module, batch: Batch) -> Checked:
    """Run both programs once and compare them site by site.

    Parameters
    ----------
    model, guide
        The two programs; each takes a batch.
    batch
        A few cells.

    Raises
    ------
    ProgramError
        If a latent is missing in one of the two, differs in shape or plate, or cannot be
        reparametrised, or if an outcome is missing or lies outside the plate over cells.
    """
    with looking(model, guide, device=batch["library"].device):
        # Each on its own first: a latent of the wrong size would fail inside a network, and an
        # autoguide makes its parameters when it is first run.
        alone = _run_apart(model, guide, batch)
        graph, guide_graph = read_graph(model, batch), read_graph(guide, batch)
        _check_sites(graph, alone)
        for site in graph.latents:
            _check_latent(site, alone)
        for site in graph.outcomes:
            _check_plate(site, alone.model_trace.nodes[site])
        return Checked(graph, guide_graph, Run.trace(model, guide, batch))


def _run_apart(model: nn.Module, guide: nn.Module, batch: Batch) -> Run:
    try:
        with pyro.validation_enabled(is_validate=True):
            return Run.apart(model, guide, batch)
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


def describe_programs(model: nn.Module, guide: nn.Module, batch: Batch) -> list[dict[str, Any]]:
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
    graph, run = checked.graph, checked.run
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


def _closed_form_obstacle(site: str, graph: Graph, guide_graph: Graph, run: Run) -> str | None:
    for cause in graph.parents[site]:
        if cause in guide_graph.parents and site in guide_graph.ancestors(cause):
            return f"the guide draws {cause}, a cause of {site} in the model, from {site}"
    if auxiliary_sites(run.guide_trace, site):
        return f"the guide draws {site} from an auxiliary site, as autoguides do"
    posterior, prior = run.posterior(site), run.prior(site)
    try:
        kl_divergence(posterior, prior)
    except NotImplementedError:
        return f"there is none for {_family(posterior)} against {_family(prior)}"
    return None


def _check_sites(graph: Graph, run: Run) -> None:
    latents, drawn = set(graph.latents), set(drawn_sites(run.guide_trace))
    if missing := latents - drawn:
        raise ProgramError(
            f"The model draws {_names(missing)}, but the guide does not. Add "
            f"`pyro.sample({sorted(missing)[0]!r}, ...)` to the guide. It draws {_names(drawn)}."
        )
    if unknown := drawn - latents:
        raise ProgramError(
            f"The guide draws {_names(unknown)}, which is not a latent of the model. Rename "
            f"or drop it. The model's latents are {_names(latents)}."
        )
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
    if not posterior.has_rsample:
        raise ProgramError(
            f"{site}: the guide's {_family(posterior)} has no reparametrised draws, so no "
            "gradient would reach its encoder. Use a family with rsample (Normal, a flow)."
        )
    ours, theirs = (plates(trace.nodes[site]) for trace in (run.model_trace, run.guide_trace))
    if ours != theirs:
        raise ProgramError(
            f"{site}: its plates are {_names(ours)} in the model and {_names(theirs)} in the "
            "guide. They must agree."
        )


def _check_plate(site: str, node: Any) -> None:
    names = plates(node)
    if CELLS not in names:
        raise ProgramError(
            f"{site} is not in a plate named {CELLS!r} (found {_names(names)}). Open it with "
            f"`with pyro.plate({CELLS!r}, len(batch)):` so that the loss is a mean over cells."
        )


def _family(distribution: TorchDistribution) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
