"""The independences that a graph claims, and those that it does not make."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import networkx as nx

from pyro_fcr.graph.dag import Graph


@dataclass(frozen=True)
class Claim:
    """A conditional independence ``left _||_ right | given`` that the graph makes.

    Parameters
    ----------
    kind
        ``"structure"``: a latent block against a known site that is not among its causes;
        ``"permutation"``: two latent blocks with a common cause against one another.
    left, right
        The two sites.
    given
        The known sites that separate them.
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


def claims(graph: Graph) -> tuple[Claim, ...]:
    """Derive the independences that the loss enforces from a graph.

    A known site that is not a cause of a block tells nothing more about it once the block's own
    causes are known. Two blocks with a common known cause are independent given the smallest set of
    known sites that separates them. Claims that d-separation does not support, given what all cells
    share and what is conditioned on in every run, are left out; :func:`not_claimed` has them. So
    are those that compare a block with its prior where cells are selected by the block.

    Returns
    -------
    For the shipped model: ``z_x ⟂ t | x``, ``z_t ⟂ x | t``, ``z_x ⟂ z_tx | x``, ``z_tx ⟂ z_t | t``.
    """
    return tuple(claim for claim, holds in _candidates(graph) if holds)


def not_claimed(graph: Graph) -> dict[str, str]:
    """Return the independences of blocks that a graph does not make, and what connects the two.

    Returns
    -------
    ``{"z_x ⟂ t": "z_x → kept ← z_t ← t"}`` for a graph that selects cells by z_x and z_t. A pair is
    left out where the known site is a cause of the block.
    """
    return {
        f"{claim.left} ⟂ {claim.right}": _open_path(graph, claim)
        for claim, holds in _candidates(graph)
        if not holds
    }


def _candidates(graph: Graph) -> Iterator[tuple[Claim, bool]]:
    """Yield all independences that could be, and whether they are."""
    for block in graph.blocks:
        given = graph.label_causes(block)
        for site in (s for s in graph.known if s not in given):
            claim = Claim("structure", block, site, given)
            yield claim, not graph.selected(block) and graph.separates(block, site, given)
    for left, right in combinations(graph.blocks, 2):
        if graph.ancestors(left) & graph.ancestors(right) & set(graph.known):
            found = _smallest_separator(graph, left, right)
            yield Claim("permutation", left, right, found or ()), found is not None


def _smallest_separator(graph: Graph, left: str, right: str) -> tuple[str, ...] | None:
    for size in range(len(graph.known) + 1):
        for given in combinations(graph.known, size):
            if graph.separates(left, right, given):
                return given
    return None


def _open_path(graph: Graph, claim: Claim) -> str:
    """Return the shortest connection that what is given leaves open, with its arrows."""
    arrows, given = graph.with_design(), graph.always(claim.given)
    if claim.kind == "permutation":
        given |= set(graph.label_causes(claim.left)) | set(graph.label_causes(claim.right))
    lines, ends = arrows.to_undirected(), (claim.left, claim.right)
    paths = nx.shortest_simple_paths(lines, *ends) if nx.has_path(lines, *ends) else ()
    found = (path for path in paths if _is_open(arrows, path, given))
    if (path := next(found, None)) is None:  # independent, but its prior is not what is selected
        path = nx.shortest_path(arrows, claim.left, min(graph.selected(claim.left)))
    signs = [" → " if arrows.has_edge(a, b) else " ← " for a, b in pairwise(path)]
    return "".join(part for pair in zip(path, [*signs, ""], strict=True) for part in pair)


def _is_open(arrows: nx.DiGraph, path: list[str], given: set[str]) -> bool:
    for before, site, after in zip(path, path[1:], path[2:], strict=False):
        collides = arrows.has_edge(before, site) and arrows.has_edge(after, site)
        if collides != bool(
            ({site} | (nx.descendants(arrows, site) if collides else set())) & given
        ):
            return False
    return True
