"""What cells would express: predictive draws of the model under a condition or an intervention.

Nothing here knows AnnData or training; batches go in, draws go to sinks, arrays come out. No trace
outlives its draw.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.sinks import Sink
from pyro_fcr.graph import Graph, read_graph
from pyro_fcr.graph.runs import drawn_sites
from pyro_fcr.modes import looking, outside_param_store

REFERENCE, TOTAL, DIRECT = "reference", "total", "direct"
_VALUES_PER_BLOCK = 2**19


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


def held_by_default(graph: Graph, intervened: Iterable[str]) -> tuple[str, ...]:
    """Return the latents that no intervened site is a cause of: what a cell keeps."""
    changed = set(intervened)
    return tuple(z for z in graph.blocks if not changed & graph.ancestors(z))


def check_held(graph: Graph, held: Iterable[str], intervened: Iterable[str]) -> None:
    """Refuse to hold what is not a latent or what the intervention acts through.

    Raises
    ------
    QueryError
        Names the latent and what may be held.
    """
    allowed = held_by_default(graph, intervened)
    for site in held:
        if site not in graph.blocks:
            raise QueryError(
                f"hold: unknown latent {site!r}. The model's latents are {', '.join(graph.blocks)}."
            )
        if site not in allowed:
            causes = ", ".join(sorted(graph.ancestors(site) & set(intervened)))
            raise QueryError(
                f"hold: {site} is caused by {causes}, which the query changes. Holding it would "
                "return a part of the cells as they are. What can be held: "
                f"{', '.join(allowed) or 'nothing'}."
            )


def respond(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    *,
    do: Mapping[str, Tensor],
    hold: Iterable[str] = (),
) -> tuple[Tensor, Tensor]:
    """Draw once: abduct the held latents, act, predict the outcome.

    Parameters
    ----------
    model, guide
        The two programs.
    batch
        The cells. Their expression is read only if something is held.
    do
        Values to set exogenous sites to, ``(n_cells, n_features)``.
    hold
        Latents drawn from the guide given the cells' expression; the others are drawn from their
        conditional priors under ``do``. Latents that all cells share must be among them.

    Returns
    -------
    Expected and drawn expression, ``(n_cells, n_genes)`` each.
    """
    held = abduct(guide, batch, tuple(hold))
    node = outcome(model, batch.without("y"), held=held, do=do)
    return node["fn"].mean, node["value"]


def abduct(guide: nn.Module, batch: Batch, sites: tuple[str, ...]) -> dict[str, Tensor]:
    """Draw latents from the guide, given the cells' expression.

    Parameters
    ----------
    guide
        The program; it does not run where there are no sites.
    batch
        The cells.
    sites
        Names of latents.

    Returns
    -------
    A draw of each, ``{site: (n_cells, n_latent)}``; a latent that all cells share keeps its own
    shape.
    """
    nodes = drawn_by(guide, batch) if sites else {}
    return {site: nodes[site]["value"] for site in sites}


def outcome(
    model: nn.Module,
    cells: Batch,
    *,
    held: Mapping[str, Tensor],
    do: Mapping[str, Tensor],
    draw: bool = True,
) -> Any:
    """Run the model once on cells without expression and return its site y.

    Parameters
    ----------
    model
        The program.
    cells
        A batch without expression.
    held
        Values of latents; the others are drawn from their conditional priors.
    do
        Values to set exogenous sites to, ``(n_cells, n_features)``.
    draw
        Whether to draw expression; otherwise its expectation takes its place.

    Returns
    -------
    The site: ``["fn"]`` is the distribution, ``["value"]`` the draw, ``(n_cells, n_genes)``.
    """
    program = _world(model, held=held, do=do)
    if not draw:
        program = _Expect()(program)
    return poutine.trace(program).get_trace(cells).nodes["y"]


def path_responses(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    graph: Graph,
    *,
    reference: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Predict the same cells in two worlds, and with one block at a time from the other world.

    Both worlds are drawn from the same noise, so that what the intervention does not reach is equal
    in both: the difference is the response, not sampling noise.

    Parameters
    ----------
    model, guide
        The two programs. Latents of cells are drawn from the model; only latents that all cells
        share are taken from the guide.
    batch
        The cells; library sizes and exogenous sites are read.
    graph
        The graph of the model.
    reference, target
        Values that the exogenous sites are set to in the two worlds, ``(n_cells, n_features)``.
    seed
        Seed of the draws; the global random state is left alone.

    Returns
    -------
    Expected expression ``(n_cells, n_genes)`` by world or path: ``"reference"``, ``"total"`` (all
    of the target world), the name of each block that the intervention reaches (this block alone
    from the target world), and ``"direct"`` where the outcome itself has an intervened parent.
    """
    cells, device = batch.without("y"), batch["library"].device
    with looking(model, guide, seed=seed, device=device):
        shared = abduct(guide, batch, tuple(graph.shared))

    def draw(do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with looking(model, seed=seed, device=device):
            trace = poutine.trace(_world(model, held=shared, do=do)).get_trace(cells)
        drawn = {name: node["value"] for name, node in drawn_sites(trace).items() if name != "y"}
        return {**shared, **drawn}

    def expect(latents: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Tensor:
        with looking(model, seed=seed, device=device):
            return outcome(model, cells, held=latents, do=do, draw=False)["fn"].mean

    before, after = draw(reference), draw(target)
    found = {REFERENCE: expect(before, reference), TOTAL: expect(after, target)}
    for block in graph.blocks:
        if block not in held_by_default(graph, target):
            found[block] = expect({**before, block: after[block]}, reference)
    if any(set(graph.parents[y]) & set(target) for y in graph.outcomes):
        found[DIRECT] = expect(before, target)
    return found


class Responder:
    """Draw what cells would express, and hand each draw to sinks.

    Parameters
    ----------
    model, guide
        The two programs.
    hold
        As in :func:`respond`.

    Examples
    --------
    >>> import torch
    >>> from pyro_fcr.nn.architecture import Architecture
    >>> from pyro_fcr.draws.sinks import Quantiles
    >>> model, guide = Architecture(n_tx=2).build({"y": 5, "x": 2, "t": 1}, target_sum=10.0)
    >>> sites = {"x": torch.eye(2), "t": torch.ones(2, 1)}
    >>> cells = new_cells(sites, torch.full((2, 1), 10.0), n_genes=5)
    >>> median = Quantiles((0.5,))
    >>> Responder(model, guide).feed(cells, expected=[median], n_draws=100)
    >>> median.result()["q50"].shape
    torch.Size([2, 5])
    """

    def __init__(self, model: nn.Module, guide: nn.Module, *, hold: Iterable[str] = ()) -> None:
        self.model, self.guide, self.hold = model, guide, tuple(hold)
        self._apart: bool | None = None

    def feed(
        self,
        batch: Batch,
        *,
        expected: Sequence[Sink] = (),
        drawn: Sequence[Sink] = (),
        do: Mapping[str, Tensor] | None = None,
        library: Tensor | None = None,
        n_draws: int = 1,
        seed: int = 0,
    ) -> None:
        """Draw repeatedly.

        Parameters
        ----------
        batch
            The cells. Their expression is read only if something is held.
        expected, drawn
            Sinks of the expected expression given the drawn latents, and of the drawn expression,
            ``(n_cells, n_genes)`` a draw. Without ``drawn`` no expression is drawn.
        do
            Values to set exogenous sites to, ``(n_cells, n_features)``.
        library
            Counts per cell of the answer, ``(n_cells, 1)``; None leaves each cell its own.
        n_draws
            Draws per cell.
        seed
            Seed of the draws; the global random state is left alone.
        """
        cells = batch.without("y")
        if library is not None:
            cells = replace(cells, values={**cells.values, "library": library})
        with looking(self.model, self.guide, seed=seed, device=batch["library"].device):
            draw_held = self._abduction(batch)
            for _ in range(n_draws):
                node = outcome(self.model, cells, held=draw_held(), do=do or {}, draw=bool(drawn))
                for sink in drawn:
                    sink.update(node["value"])
                mean = node["fn"].mean if expected and drawn else node["value"]
                for sink in expected:
                    sink.update(mean)

    def _abduction(self, batch: Batch) -> Callable[[], dict[str, Tensor]]:
        """Make a function that draws what is held; the guide runs once if that is enough."""
        if not self.hold:
            return dict
        if self._apart is None:
            graph = read_graph(self.guide, batch)
            latents = set(graph.latents)
            self._apart = not any(graph.ancestors(site) & latents for site in self.hold)
        if self._apart:
            known = drawn_by(self.guide, batch)
            return lambda: {site: known[site]["fn"].sample() for site in self.hold}
        return lambda: abduct(self.guide, batch, self.hold)


def new_cells(sites: Mapping[str, Tensor], library: Tensor, *, n_genes: int) -> Batch:
    """Make cells that were never measured.

    Parameters
    ----------
    sites
        The values of the exogenous sites, ``(n_cells, n_features)`` each.
    library
        Counts per cell, ``(n_cells, 1)``.
    n_genes
        Number of genes.
    """
    # Expression that only a guide of shared latents reads, to no effect.
    values = {"y": library.new_ones(len(library), n_genes), "library": library, **sites}
    return Batch(values, codes={}, n_levels={}, n_total=len(library))


def block_size(n_genes: int) -> int:
    """Return how many cells are drawn from one seed, a power of two.

    It depends on the number of genes alone, so that draws do not change with the memory that an
    answer may take.
    """
    fitting = max(1, _VALUES_PER_BLOCK // n_genes)
    return min(2048, max(64, 2 ** (fitting.bit_length() - 1)))


def block_seed(seed: int, number: int) -> int:
    """Return the seed of a block of cells, which differs between blocks and between seeds."""
    return int(np.random.SeedSequence((seed % 2**64, number)).generate_state(1, np.uint64)[0] >> 1)


def blocks_of(batch: Batch, size: int) -> Iterator[tuple[Batch, slice]]:
    """Cut a batch into blocks of ``size`` cells, with their positions in it."""
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        yield batch.take(rows), rows


class _Expect(Messenger):
    """Set the outcome to its expectation where drawing its noise would be wasted."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "y" and not msg["is_observed"]:
            msg["value"], msg["done"] = msg["fn"].mean, True


def _world(model: nn.Module, *, held: Mapping[str, Tensor], do: Mapping[str, Tensor]) -> Any:
    return poutine.do(poutine.condition(model, dict(held)), dict(do))


def drawn_by(guide: nn.Module, batch: Batch) -> dict[str, Any]:
    """Run the guide and return the latents that it drew, by name."""
    with outside_param_store():
        return drawn_sites(poutine.trace(guide).get_trace(batch))
