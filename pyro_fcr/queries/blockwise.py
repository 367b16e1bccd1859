"""Questions to a fitted model in the words of AnnData, and their answers as AnnData.

Cells are drawn block by block, each from a seed of its own: an answer depends on the seed and on
which cells stand in which order, not on the memory that it may take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry
from pyro_fcr.draws import (
    QueryError,
    Responder,
    block_seed,
    block_size,
    blocks_of,
    new_cells,
)
from pyro_fcr.draws.sinks import Rows
from pyro_fcr.queries.answers import Part, assemble, read_part
from pyro_fcr.queries.fitted import Fitted
from pyro_fcr.queries.support import support
from pyro_fcr.queries.targets import Query


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Cells and what is done to them: annotation, held latents, values and library sizes set."""

    obs: pd.DataFrame
    held: tuple[str, ...] = ()
    do: Mapping[str, Tensor] = field(default_factory=dict)
    library: Tensor | None = None


def library_column(size: npt.ArrayLike, n_cells: int) -> Tensor:
    """Return counts per cell, ``(n_cells, 1)``, of a number or of one for each cell."""
    sizes = np.asarray(size, dtype=np.float32)
    if sizes.shape not in ((), (n_cells,)):
        raise QueryError(
            f"library has the shape {sizes.shape}, wanted a number or one for each of {n_cells} "
            "cells."
        )
    if not (sizes > 0).all():
        raise QueryError("library: counts per cell must be positive.")
    return torch.from_numpy(np.broadcast_to(sizes, n_cells).copy()).unsqueeze(1)


def chunks_of_new_cells(
    fcr: Fitted, sites: Mapping[str, Tensor], library: Tensor
) -> Iterator[tuple[Batch, slice]]:
    """Yield cells without expression whose sites have the given values, block by block."""
    n_genes = len(fcr.registry.genes)
    size = block_size(n_genes)
    for start in range(0, len(library), size):
        rows = slice(start, start + size)
        cut = {name: values[rows] for name, values in sites.items()}
        yield new_cells(cut, library[rows], n_genes=n_genes).to(fcr.device), rows


def answer(
    fcr: Fitted, query: Query, asked: Asked, chunks: Iterable[tuple[Batch, slice]]
) -> AnnData:
    """Draw what is asked of cells, and put it together as the query wants it."""
    obs = asked.obs.assign(**condition_marks(asked.obs, fcr.registry))
    if query.answer.form == "draws":
        obs = _row_per_draw(obs, query.n_draws)
    genes = pd.DataFrame(index=pd.Index(fcr.registry.genes, dtype=str))
    frame = AnnData(obs=obs, var=genes, uns={"pyro_fcr": _record(query, asked.held)})
    answer = assemble(frame, _parts(fcr, query, asked, chunks), store=query.answer.store)
    layer = fcr.registry.schema.layer
    if layer is not None and query.answer.store is None:
        answer.layers[layer] = answer.X  # where the model, and whoever joins it to the cells, looks
    return answer


def _parts(
    fcr: Fitted, query: Query, asked: Asked, chunks: Iterable[tuple[Batch, slice]]
) -> Iterator[Part]:
    """Draw block by block; a block whose draws do not fit into memory is drawn anew per part."""
    output, n_genes = query.answer, len(fcr.registry.genes)
    responder = Responder(fcr.model, fcr.guide, hold=(*asked.held, *fcr.graph.shared))
    as_counts = fcr.registry.schema.expression == "counts" and output.kind == "observation"
    for number, (batch, cells) in enumerate(_blocks(chunks, block_size(n_genes))):
        act = {name: values[cells].to(fcr.device) for name, values in asked.do.items()}
        library = None if asked.library is None else asked.library[cells].to(fcr.device)
        seed = block_seed(query.seed, number)
        for rows in output.rows(len(batch), n_genes, n_draws=query.n_draws):
            sinks = output.sinks(query.n_draws)
            taken = {_FED[output.kind]: [Rows(sink, rows) for sink in sinks]}
            responder.feed(
                batch, do=act, library=library, n_draws=query.n_draws, seed=seed, **taken
            )
            yield read_part(sinks, as_counts=as_counts)


_FED: Final = {"latent": "expected", "observation": "drawn"}


def _blocks(chunks: Iterable[tuple[Batch, slice]], size: int) -> Iterator[tuple[Batch, slice]]:
    for chunk, at in chunks:
        for batch, rows in blocks_of(chunk, size):
            start = at.start + rows.start
            yield batch, slice(start, start + len(batch))


def _row_per_draw(obs: pd.DataFrame, n_draws: int) -> pd.DataFrame:
    if n_draws == 1:
        return obs
    repeated = obs.iloc[np.repeat(np.arange(len(obs)), n_draws)]
    draw = np.tile(np.arange(n_draws), len(obs))
    names = [f"{cell}-draw{i}" for cell, i in zip(repeated.index, draw, strict=True)]
    return repeated.assign(draw=draw).set_axis(pd.Index(names, dtype=str))


def _record(query: Query, held: tuple[str, ...]) -> dict[str, Any]:
    return {
        "treatment": "" if query.treatment is None else query.treatment,
        "dose": "" if query.dose is None else str(query.dose),
        "covariates": {key: str(level) for key, level in query.covariates.items()},
        "held": list(held),
        "output": query.answer.form,
        "uncertainty": query.answer.kind,
        "n_draws": query.n_draws,
        "seed": query.seed,
    }


def condition_marks(obs: pd.DataFrame, registry: Registry) -> dict[str, np.ndarray]:
    """Say of each cell's condition whether training lacked it, and what supports an answer.

    Returns
    -------
    ``extrapolated`` and ``support``, ``(n_cells,)`` each; see
    :meth:`pyro_fcr.data.Registry.is_extrapolated` and :func:`pyro_fcr.queries.support.support`.
    """
    schema = registry.schema
    keys = [schema.treatment_key, *schema.covariate_keys]
    keys += [] if schema.dose_key is None else [schema.dose_key]
    texts = obs[keys].astype(str)
    condition = texts.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    _, first = np.unique(condition, return_index=True)
    verdicts = []
    for row in obs[keys].iloc[first].to_dict("records"):
        levels = {key: str(row[key]) for key in schema.covariate_keys}
        asked = (registry, str(row[schema.treatment_key]), levels)
        dose = row[schema.dose_key] if schema.dose_key else None
        outside = registry.is_extrapolated(*asked[1:], dose=dose)
        verdicts.append((outside, support(*asked, dose=dose)))
    extrapolated, score = (np.array(column)[condition] for column in zip(*verdicts, strict=True))
    return {"extrapolated": extrapolated, "support": score}
