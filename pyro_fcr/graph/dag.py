"""The causal graph, read back from a Pyro program, and the independences that it claims."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import networkx as nx
from pyro.infer.inspect import get_model_relations
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.modes import outside_param_store

CELLS = "cells"
"""The name of the plate over cells in every model and guide."""


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
    """

    parents: Mapping[str, tuple[str, ...]]
    distributions: Mapping[str, str]
    observed: frozenset[str]
    shared: frozenset[str] = frozenset()

    @property
    def exogenous(self) -> tuple[str, ...]:
        """Observed sites without a cause: what the experiment sets."""
        return tuple(s for s, p in self.parents.items() if s in self.observed and not p)

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
        """Observed sites with a cause: the expression."""
        return tuple(s for s in self.parents if s in self.observed and self.parents[s])

    def ancestors(self, site: str) -> set[str]:
        """Return the direct and indirect causes of a site."""
        return nx.ancestors(self._digraph(), site)

    def separates(self, left: str, right: str, given: set[str]) -> bool:
        """Return whether ``given`` d-separates two sites; exogenous sites depend on each other."""
        graph = self._digraph()
        graph.add_edges_from(("design", site) for site in self.exogenous)
        return nx.is_d_separator(graph, {left}, {right}, given)

    def _digraph(self) -> nx.DiGraph:
        graph = nx.DiGraph()
        graph.add_nodes_from(self.parents)
        graph.add_edges_from((p, s) for s, parents in self.parents.items() for p in parents)
        return graph


@dataclass(frozen=True)
class Claim:
    """A conditional independence ``left _||_ right | given`` that the graph makes.

    Parameters
    ----------
    kind
        ``"structure"``: a latent block against an exogenous site that is not among its causes;
        ``"permutation"``: two latent blocks with a common cause against one another.
    left, right
        The two sites.
    given
        The exogenous sites that separate them.
    """

    kind: Literal["structure", "permutation"]
    left: str
    right: str
    given: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the claim's term in the loss, the history and the weights."""
        return f"{self.kind}_{self.left}_{self.right}"

    def __str__(self) -> str:
        given = f" | {', '.join(self.given)}" if self.given else ""
        return f"{self.left} ⟂ {self.right}{given}"

    @property
    def words(self) -> str:
        """The claim as a sentence."""
        known = f"Among cells of the same {' and '.join(self.given)}, " if self.given else ""
        text = f"{known}{self.left} says nothing about {self.right}."
        return text[0].upper() + text[1:] if known else text


def read_graph(program: nn.Module, batch: Batch) -> Graph:
    """Run a program once under provenance tracking and read off what depends on what.

    Parameters
    ----------
    program
        A model or guide that takes a batch.
    batch
        A few cells.

    Returns
    -------
    The graph. The random state and all parameters are left unchanged.
    """
    with outside_param_store():
        relations = get_model_relations(program, (batch,))
    of_cells = {*relations["plate_sample"].get(CELLS, ()), *relations["observed"]}
    return Graph(
        parents={site: tuple(p) for site, p in relations["sample_sample"].items()},
        distributions=relations["sample_dist"],
        observed=frozenset(relations["observed"]),
        shared=frozenset(relations["sample_sample"]) - of_cells,
    )


def claims(graph: Graph) -> tuple[Claim, ...]:
    """Derive the independences that the loss enforces from a graph.

    An exogenous site that is not a cause of a block tells nothing more about it once the block's
    own causes are known. Two blocks with a common exogenous cause are independent given the
    smallest set of exogenous sites that separates them. Claims that d-separation does not support
    are left out.

    Returns
    -------
    For the shipped model: ``z_x ⟂ t | x``, ``z_t ⟂ x | t``, ``z_x ⟂ z_tx | x``, ``z_tx ⟂ z_t | t``.
    """
    return (*_structure_claims(graph), *_permutation_claims(graph))


def _structure_claims(graph: Graph) -> list[Claim]:
    found = []
    for block in graph.blocks:
        given = tuple(s for s in graph.exogenous if s in graph.ancestors(block))
        found += [
            Claim("structure", block, site, given)
            for site in graph.exogenous
            if site not in given and graph.separates(block, site, set(given))
        ]
    return found


def _permutation_claims(graph: Graph) -> list[Claim]:
    found = []
    for left, right in combinations(graph.blocks, 2):
        if graph.ancestors(left) & graph.ancestors(right) & set(graph.exogenous):
            given = _smallest_separator(graph, left, right)
            found += [] if given is None else [Claim("permutation", left, right, given)]
    return found


def _smallest_separator(graph: Graph, left: str, right: str) -> tuple[str, ...] | None:
    for size in range(len(graph.exogenous) + 1):
        for given in combinations(graph.exogenous, size):
            if graph.separates(left, right, set(given)):
                return given
    return None
