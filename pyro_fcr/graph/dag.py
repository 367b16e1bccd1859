"""The causal graph, read back from a Pyro program."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from pyro import poutine
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    get_provenance,
    track_provenance,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.modes import looking, outside_param_store

CELLS = "cells"
"""The name of the plate over cells in every model and guide."""

_DESIGN = "design"


@dataclass(frozen=True)
class Graph:
    """Sites of a program and their direct causes.

    Parameters
    ----------
    parents
        The direct causes of each site, in the program's order.
    distributions
        The name of each site's distribution.
    observed
        The sites whose value is given.
    shared
        Latents outside the plate over cells, which all cells have in common.
    labels
        Observed sites that annotate cells (columns of ``obs``), with causes or without.
    conditioned
        Observed sites whose value is not read from the batch: a ``pyro.factor``, a selection. They
        are given in every run of the program.
    """

    parents: Mapping[str, tuple[str, ...]]
    distributions: Mapping[str, str]
    observed: frozenset[str]
    shared: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    conditioned: frozenset[str] = frozenset()

    @property
    def exogenous(self) -> tuple[str, ...]:
        """Observed sites without a cause: what the experiment sets."""
        given = self.observed - self.conditioned
        return tuple(s for s, p in self.parents.items() if s in given and not p)

    @property
    def known(self) -> tuple[str, ...]:
        """What is known of a cell beside its expression: exogenous sites and other labels."""
        return tuple(s for s in self.parents if s in self.labels or s in self.exogenous)

    @property
    def latents(self) -> tuple[str, ...]:
        """Sites that are not observed."""
        return tuple(s for s in self.parents if s not in self.observed)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Latents of each cell."""
        return tuple(s for s in self.latents if s not in self.shared)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Observed sites with a cause: the expression, labels that something causes, factors."""
        return tuple(s for s in self.parents if s in self.observed and self.parents[s])

    def ancestors(self, site: str) -> set[str]:
        """Return the direct and indirect causes of a site."""
        return nx.ancestors(self.digraph(), site)

    def descendants(self, sites: Iterable[str], *, fixed: Collection[str] = ()) -> set[str]:
        """Return what some sites cause, directly or not, if the ``fixed`` ones stay as they are."""
        graph = self.digraph()
        graph.remove_nodes_from(set(fixed) - set(sites))
        return {d for site in sites if site in graph for d in nx.descendants(graph, site)}

    def label_causes(self, site: str) -> tuple[str, ...]:
        """Return the known sites that cause a site without another known one in between."""
        graph = self.digraph()
        graph.remove_edges_from(list(graph.in_edges(set(self.known) - {site})))
        return tuple(s for s in self.known if s in nx.ancestors(graph, site))

    def separates(self, left: str, right: str, given: Collection[str]) -> bool:
        """Return whether ``given`` d-separates two sites.

        Exogenous sites depend on each other, as designs are unbalanced. What all cells share, and
        what is conditioned on in every run, is given, too.
        """
        return nx.is_d_separator(self.with_design(), {left}, {right}, self.always(given))

    def selected(self, site: str) -> set[str]:
        """Return the conditioned sites that a site is a cause of."""
        return self.descendants([site]) & self.conditioned

    def always(self, given: Collection[str]) -> set[str]:
        """Return some sites, and those that are given whatever else is."""
        return {*given, *self.shared, *self.conditioned}

    def with_design(self) -> nx.DiGraph:
        """Return the graph with a common cause of all exogenous sites."""
        graph = self.digraph()
        graph.add_edges_from((_DESIGN, site) for site in self.exogenous)
        return graph

    def digraph(self) -> nx.DiGraph:
        """Return sites and arrows."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.parents)
        graph.add_edges_from((p, s) for s, parents in self.parents.items() for p in parents)
        return graph


def read_graph(program: Callable, batch: Batch) -> Graph:
    """Run a program once under provenance tracking and read off what depends on what.

    Values of ``pyro.deterministic``, and of sites that a reparametrisation made deterministic, are
    functions of other sites, no causes of their own.

    Parameters
    ----------
    program
        A model or guide that takes a batch.
    batch
        A few cells.

    Returns
    -------
    The graph. The random state and all parameters are left unchanged. Dependences that provenance
    does not see are found by :func:`pyro_fcr.graph.acting.check_by_acting`.
    """
    tracking = _Tracking()
    with outside_param_store(), looking():
        # Drawn before: torch draws some families (Laplace) in another shape from tracked numbers.
        drawn = poutine.replay(program, trace=poutine.trace(program).get_trace(batch))
    with outside_param_store(), looking(), tracking:
        nodes: Any = poutine.trace(drawn).get_trace(_tracked(batch)).nodes
        sites = {name: node for name, node in nodes.items() if name in tracking.sources}
        reads = {name: get_provenance(log_density(node)) for name, node in sites.items()}
    observed = frozenset(name for name, node in sites.items() if node["is_observed"])
    conditioned = frozenset(s for s in observed if not _of_batch(tracking.sources[s]))
    of_cells = {name for name, node in sites.items() if in_plate(node)}
    return Graph(
        parents={name: tuple(s for s in sites if s in reads[name] - {name}) for name in sites},
        distributions={name: type(_innermost(node)).__name__ for name, node in sites.items()},
        observed=observed,
        shared=frozenset(sites) - observed - of_cells,
        labels=(observed - conditioned) & frozenset(batch.codes),
        conditioned=conditioned,
    )


class _Tracking(Messenger):
    """Give the value of each site a provenance of its own, and keep the one that it had."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, frozenset] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        source = get_provenance(msg["value"])
        if site_is_subsample(msg) or _is_deterministic(msg, source):
            return
        self.sources[msg["name"]] = source
        msg["value"] = ProvenanceTensor(detach_provenance(msg["value"]), frozenset({msg["name"]}))


def _is_deterministic(node: Any, source: frozenset) -> bool:
    if not node["is_observed"] or type(_innermost(node)).__name__ != "Delta":
        return False
    of_sites = any(isinstance(each, str) for each in source)
    return of_sites or bool(node["infer"].get("_deterministic"))


def _innermost(node: Any) -> Any:
    family = node["fn"]
    while hasattr(family, "base_dist"):
        family = family.base_dist
    return family


def log_density(node: Any) -> Tensor:
    """Return the log density of a site's value, also where a mask would hide it."""
    family = node["fn"]
    while type(family).__name__ == "MaskedDistribution":  # a mask hides what it depends on
        family = family.base_dist
    return family.log_prob(node["value"])


def in_plate(node: Any) -> bool:
    """Return whether a site has a value for each cell."""
    return any(frame.name == CELLS for frame in node["cond_indep_stack"])


def _tracked(batch: Batch) -> Batch:
    """Mark values and codes by where in the batch they were read, ``("values", "t")``."""

    def mark(field: str) -> dict[str, Any]:
        values = getattr(batch, field)
        return {k: track_provenance(v, frozenset({(field, k)})) for k, v in values.items()}

    return replace(batch, values=mark("values"), codes=mark("codes"), counts=None)


def _of_batch(source: frozenset) -> bool:
    return any(isinstance(each, tuple) for each in source)
