"""What cells would express: predictive draws of the model under a condition or an intervention.

Nothing here knows AnnData or training; batches go in, draws go to sinks, arrays come out. No trace
outlives its draw.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.batch import Batch
from pyro_fcr.draws.sinks import Sink
from pyro_fcr.draws.worlds import Expect, Released, world
from pyro_fcr.graph import read_graph
from pyro_fcr.graph.runs import drawn_sites
from pyro_fcr.modes import looking, outside_param_store

_VALUES_PER_BLOCK = 2**19


def respond(
    model: nn.Module,
    guide: nn.Module,
    batch: Batch,
    *,
    do: Mapping[str, Tensor],
    hold: Iterable[str] = (),
    released: Iterable[str] = (),
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
    released
        Observed sites that are drawn, because ``do`` reaches them.

    Returns
    -------
    Expected and drawn expression, ``(n_cells, n_genes)`` each.
    """
    held = abduct(guide, batch, tuple(hold))
    node = outcome(Released(released)(model), batch.without("y"), held=held, do=do)
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
    model: Callable,
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
    program = world(model, held=held, do=do)
    if not draw:
        program = Expect()(program)
    return poutine.trace(program).get_trace(cells).nodes["y"]


class Responder:
    """Draw what cells would express, and hand each draw to sinks.

    Parameters
    ----------
    model, guide
        The two programs.
    hold, released
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

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        *,
        hold: Iterable[str] = (),
        released: Iterable[str] = (),
    ) -> None:
        self.model, self.guide = model, guide
        self.hold, self.released = tuple(hold), tuple(released)
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
            draw = self._draws(batch, cells, do or {})
            for _ in range(n_draws):
                node = draw(bool(drawn))
                for sink in drawn:
                    sink.update(node["value"])
                mean = node["fn"].mean if expected and drawn else node["value"]
                for sink in expected:
                    sink.update(mean)

    def _draws(self, batch: Batch, cells: Batch, do: Mapping[str, Tensor]) -> Callable[[bool], Any]:
        """Make a function that draws once and returns the site y, with its noise or expected."""
        draw_held, program = self._abduction(batch), Released(self.released)(self.model)
        return lambda noise: outcome(program, cells, held=draw_held(), do=do, draw=noise)

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


def blocks_of(chunks: Iterable[tuple[Batch, slice]], size: int) -> Iterator[tuple[Batch, slice]]:
    """Cut and join chunks of cells into blocks that end at multiples of ``size``.

    Parameters
    ----------
    chunks
        Cells in their order, and their positions.
    size
        Cells per block.

    Yields
    ------
    The cells of each block and their positions.
    """
    parts: list[Batch] = []
    at = slice(0, 0)
    for chunk, at in chunks:
        cuts = [at.start, *range((at.start // size + 1) * size, at.stop, size), at.stop]
        for start, stop in pairwise(cuts):
            parts.append(chunk.take(slice(start - at.start, stop - at.start)))
            if stop % size == 0:
                yield _joined(parts, stop)
                parts = []
    if parts:
        yield _joined(parts, at.stop)


def _joined(parts: list[Batch], stop: int) -> tuple[Batch, slice]:
    block = parts[0] if len(parts) == 1 else Batch.concatenate(parts)
    return block, slice(stop - len(block), stop)


def drawn_by(guide: nn.Module, batch: Batch) -> dict[str, Any]:
    """Run the guide and return the latents that it drew, by name."""
    with outside_param_store():
        return drawn_sites(poutine.trace(guide).get_trace(batch))
