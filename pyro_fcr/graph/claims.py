"""The independences that a graph claims, and those that it does not make."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, TypeAlias

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
    """Return the fewest known sites that separate two; None where no known sites do.

    If any do, then all those among the causes of what is looked at do (Lauritzen et al. 1990,
    Networks 20:491), and the fewest are some of these.
    """
    causes = set().union(*(graph.ancestors(site) for site in graph.always((left, right))))
    near = [site for site in graph.known if site in causes]
    if not graph.separates(left, right, near):
        return None
    sets = (some for size in range(len(near)) for some in combinations(near, size))
    return next((some for some in sets if graph.separates(left, right, some)), tuple(near))


def _open_path(graph: Graph, claim: Claim) -> str:
    """Return the shortest connection that what is given leaves open, with its arrows."""
    arrows, given = graph.with_design(), graph.always(claim.given)
    if claim.kind == "permutation":
        given |= set(graph.label_causes(claim.left)) | set(graph.label_causes(claim.right))
    ends = (claim.left, ""), (claim.right, "")
    try:
        path = [site for site, _ in nx.shortest_path(_open_steps(arrows, given, *ends), *ends)]
        path[-2:] = path[-1:]  # the end stands twice: as reached, and as the end
    except nx.NetworkXNoPath:  # independent, but its prior is not what is selected
        path = nx.shortest_path(arrows, claim.left, min(graph.selected(claim.left)))
    signs = [" → " if arrows.has_edge(a, b) else " ← " for a, b in pairwise(path)]
    return "".join(part for pair in zip(path, [*signs, ""], strict=True) for part in pair)


_Place: TypeAlias = tuple[str, str]  # a site, and the end of the arrow by which it was reached


def _open_steps(arrows: nx.DiGraph, given: set[str], start: _Place, end: _Place) -> nx.DiGraph:
    """Return the steps that a path may take which what is given leaves open.

    A path may turn at a site where two arrows meet if that, or something that it causes, is given;
    it may pass any other site that is not given. A shortest walk of such steps is a path.
    """
    told = given.union(*(nx.ancestors(arrows, site) for site in given if site in arrows))
    steps = nx.DiGraph()
    steps.add_nodes_from([start, end])
    for site in arrows:
        passed = site not in given
        ways = {"head": (passed, site in told), "tail": (passed, passed)}
        if site == start[0]:
            ways[start[1]] = (True, True)
        for reached, (down, up) in ways.items():
            after = arrows.successors(site) if down else ()
            before = arrows.predecessors(site) if up else ()
            steps.add_edges_from(((site, reached), (each, "head")) for each in after)
            steps.add_edges_from(((site, reached), (each, "tail")) for each in before)
    steps.add_edges_from(((end[0], kind), end) for kind in ("head", "tail"))
    return steps
