"""What a question needs of a fitted model, and the cells that it is asked about."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry, Split
from pyro_fcr.draws import Responder, block_seed, block_size, blocks_of
from pyro_fcr.graph import Claim, Graph
from pyro_fcr.metrics.chances import Chances

Source: TypeAlias = AnnData | str | Path | None
"""Cells, their file, or None for the model's own."""


class Fitted(Protocol):
    """A fitted :class:`pyro_fcr.FCR`, as far as questions look at it."""

    model: nn.Module
    guide: nn.Module
    registry: Registry
    history: pd.DataFrame | None
    split: Split | None
    chances: Chances | None

    @property
    def graph(self) -> Graph:
        """The causal graph."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters."""

    def claims(self) -> tuple[Claim, ...]:
        """Return the independences that the graph claims."""

    def source(self, adata: Source) -> AnnData:
        """Return the cells that a question is about."""

    def chunks(
        self, adata: Source = None, *, labelled: bool = True, rows: slice = slice(None)
    ) -> Iterator[tuple[Batch, slice]]:
        """Yield cells in order, with their positions."""

    def split_of(self, adata: Source = None) -> Split:
        """Return the training and held-out cells among some."""

    def elbo(self, adata: Source = None, *, seed: int = 0) -> float:
        """Return the evidence lower bound, nats per cell."""


def make_responder(
    fcr: Fitted, hold: Iterable[str] = (), *, released: Iterable[str] = ()
) -> Responder:
    """Return what draws responses; it holds some latents of cells, and all that cells share."""
    hold = (*hold, *fcr.graph.shared)
    return Responder(fcr.model, fcr.guide, hold=hold, released=released)


def drawn_blocks(
    fcr: Fitted, chunks: Iterable[tuple[Batch, slice]], *, seed: int
) -> Iterator[tuple[Batch, slice, int]]:
    """Yield the blocks of cells that are drawn together, with their positions and own seeds.

    A block's noise is that of its position among all cells of the question: an answer depends on
    the seed and on which cells stand in which order, not on how they come in chunks, nor on which
    blocks are drawn here.
    """
    size = block_size(len(fcr.registry.genes))
    for batch, cells in blocks_of(chunks, size):
        yield batch, cells, block_seed(seed, cells.start // size)
