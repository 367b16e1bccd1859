"""One world of a model: what is set, held, drawn anew or overruled there, and whom it reaches."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_fcr.graph import Graph


class QueryError(ValueError):
    """A question that the model cannot answer as it is asked; the message says why.

    Examples
    --------
    >>> import pyro_fcr
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(pyro_fcr.datasets.gbm_panobinostat(), schema)
    >>> try:
    ...     fcr.counterfactual()
    ... except pyro_fcr.QueryError as error:
    ...     print(error)
    The query has no target: give treatment=, dose= or covariates=.
    """


@dataclass(frozen=True)
class Reach:
    """What an intervention leaves as it is in a cell, and what is drawn anew.

    Parameters
    ----------
    held
        Latents that the cell keeps.
    released
        Observed sites that the intervention reaches: their measured value is that of another world.
    """

    held: tuple[str, ...]
    released: tuple[str, ...]


def reach(graph: Graph, intervened: Iterable[str], hold: Iterable[str] | None = None) -> Reach:
    """Follow an intervention along the arrows of a graph.

    Parameters
    ----------
    graph
        The graph of the model.
    intervened
        The sites that are set.
    hold
        Latents that cells keep, and labels that stay as measured although the intervention would
        reach them: then only what does not go through these is asked for. None, or labels alone,
        holds every latent that is not reached.

    Raises
    ------
    QueryError
        What is held is no latent or label, or is what the intervention acts through.
    """
    sites, named = set(intervened), tuple(hold or ())
    labels = tuple(site for site in named if site in graph.known and site not in sites)
    reached = graph.descendants(sites, fixed=labels)
    allowed = tuple(z for z in graph.blocks if z not in reached)
    latents = tuple(site for site in named if site not in labels)
    for site in latents:
        _check_held(graph, site, sites, allowed)
    by_default = hold is None or (labels and not latents)
    held = allowed if by_default else latents
    released = (graph.observed & reached) - sites - graph.conditioned
    return Reach(held, tuple(site for site in graph.parents if site in released))


def _check_held(graph: Graph, site: str, sites: set[str], allowed: tuple[str, ...]) -> None:
    if site not in graph.blocks:
        labels = [label for label in graph.known if label not in sites]
        raise QueryError(
            f"hold: unknown latent {site!r}. The model's latents are {', '.join(graph.blocks)}; "
            f"labels that may be held are {', '.join(labels) or 'none'}."
        )
    if site not in allowed:
        causes = ", ".join(sorted(graph.ancestors(site) & sites))
        raise QueryError(
            f"hold: {site} is caused by {causes}, which the query changes. Holding it would "
            "return a part of the cells as they are. What can be held: "
            f"{', '.join(allowed) or 'nothing'}."
        )


def world(model: Callable, *, held: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Any:
    """Return the model with values of latents held and sites set."""
    return poutine.do(poutine.condition(model, dict(held)), dict(do))


class Released(Messenger):
    """Draw observed sites as if they had not been observed."""

    def __init__(self, sites: Iterable[str]) -> None:
        super().__init__()
        self.sites = frozenset(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


class Expect(Messenger):
    """Set the outcome to its expectation where drawing its noise would be wasted."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "y" and not msg["is_observed"]:
            msg["value"], msg["done"] = msg["fn"].mean, True


class Overruled(Messenger):
    """Put values in place of draws, which are made all the same: later sites keep their noise."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["fn"]()
            msg["value"], msg["done"] = self.values[msg["name"]], True
