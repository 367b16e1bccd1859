"""How expression changes with the dose: curves from a fitted model, as tidy tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from pyro_fcr.batch import Batch
from pyro_fcr.data import Registry
from pyro_fcr.data.treatments import parse_agents
from pyro_fcr.draws import QueryError, Responder, reach
from pyro_fcr.draws.sinks import Moments, Quantiles, Sink
from pyro_fcr.queries.columns import named_levels
from pyro_fcr.queries.fitted import Fitted, drawn_blocks, make_responder
from pyro_fcr.queries.marks import mark
from pyro_fcr.queries.targets import (
    context_cells,
    contexts_of,
    find_genes,
    open_keys,
)
from pyro_fcr.values import checked, shown

_GRID = 8  # doses where none are given
_COLUMNS = ("treatment", "dose", "gene", "estimate", "lower", "upper", "extrapolated", "support")
_SKETCH = 512  # cells up to which quantiles over cells are exact

_Levels: TypeAlias = Mapping[str, str]


@checked(error=QueryError)
def dose_response(
    fcr: Fitted,
    treatment: str,
    *,
    cells: AnnData | Mapping[str, str] | None = None,
    doses: Sequence[float] | None = None,
    genes: Iterable[str] | None = None,
    n_draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Follow a treatment over a grid of doses, in each context.

    Parameters
    ----------
    fcr
        A fitted model.
    treatment
        The treatment; a combination needs ``doses``, which its parts all get.
    cells
        Whose curve. None: new cells of each context of training. A mapping with a level for
        every covariate: new cells of this context, latents from their priors. Cells (mostly
        controls): their counterfactuals, latents that the treatment does not cause held, a
        curve for each context among them.
    doses
        The grid; None takes eight doses over the trained range, evenly on the log scale.
    genes
        Which genes; None takes all.
    n_draws
        Draws per context and dose, at least: so many new cells, or given cells each drawn often
        enough. Every dose is drawn from the same noise, so that curves are smooth.
    level
        Share of the cells within the bands.
    seed
        Seed of the draws.

    Returns
    -------
    A row per context, dose and gene, dose 0 first. ``estimate`` is the log fold change (natural
    logarithm) of the cells' mean expected share of counts against dose 0 in the same context;
    for log1p data the difference of means. ``lower`` and ``upper`` enclose the middle ``level``
    of single cells, as expected given their latents and against the same mean of dose 0: how
    much cells differ, without the noise of counting, and no standard error of the curve.
    ``extrapolated`` and ``support`` are those of the condition.

    Raises
    ------
    pyro_fcr.QueryError
        The model knows no doses, or none of this treatment to span a grid.
    pyro_fcr.SchemaError
        The model cannot take a treatment, level or dose; lists the known ones.

    Examples
    --------
    >>> import numpy as np, pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> treated = adata.obs["treatment"] == "panobinostat"
    >>> adata.obs["dose"] = np.where(treated, np.where(np.arange(5000) % 2, 0.1, 1.0), 0.0)
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment",
    ...     control="control",
    ...     covariate_keys="patient",
    ...     dose_key="dose",
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> some = list(adata.var_names[:2])
    >>> curve = fcr.dose_response("panobinostat", cells={"patient": "PW030"}, genes=some)
    >>> curve.shape, sorted(set(curve["dose"]))[:2]
    ((18, 9), [0.0, 0.1])
    """
    registry = fcr.registry
    grid = np.array([0.0, *_grid(registry, treatment, doses)])
    kept = find_genes(registry, genes)
    rows = [registry.encode_treatment(treatment, float(dose)) for dose in grid[1:]]
    t = torch.from_numpy(np.stack([np.zeros_like(rows[0]), *rows])).to(fcr.device, fcr.dtype)
    tables = []
    found = reach(fcr.graph, ("t",))
    held = found.held if isinstance(cells, AnnData) else ()
    responder = make_responder(fcr, held, released=found.released)
    for levels, chunks, n_each in _contexts(fcr, cells, n_draws):
        pools = [_Pool(kept.to(fcr.device), level) for _ in grid]
        _fill(pools, responder, drawn_blocks(fcr, chunks, seed=seed), t=t, n_draws=n_each)
        for dose, values in zip(grid, _changes(pools, registry), strict=True):
            named = named_levels(levels, _COLUMNS)
            condition = {"treatment": registry.canonical(treatment), **named, "dose": dose}
            names = {"gene": np.array(registry.genes)[kept.numpy()]}
            marks = _marks(registry, treatment, levels, dose)
            tables.append(pd.DataFrame({**condition, **names, **values, **marks}))
    return pd.concat(tables, ignore_index=True)


class _Pool(Sink):
    """Takes cells and draws alike as draws: what is kept is per gene."""

    def __init__(self, genes: Tensor, level: float) -> None:
        tail = (1.0 - level) / 2.0
        self.genes = genes
        self.sinks: list[Sink] = [Moments(), Quantiles((tail, 1.0 - tail), size=_SKETCH)]

    def update(self, values: Tensor) -> None:
        """Take a draw of cells, ``(n_cells, n_genes)``."""
        for cell in values[:, self.genes].split(1):
            for sink in self.sinks:
                sink.update(cell)

    def result(self) -> dict[str, Tensor]:
        """Return mean, sd and two quantiles over cells, ``(1, n_kept)`` each."""
        return {k: v for sink in self.sinks for k, v in sink.result().items()}

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the memory per gene."""
        return sum(sink.bytes_per_value(n_draws) for sink in self.sinks)


def _grid(registry: Registry, treatment: str, doses: Sequence[float] | None) -> list[float]:
    schema = registry.schema
    if schema.dose_key is None:
        raise QueryError(
            "dose_response: the model does not know doses, its schema has no dose_key."
        )
    label = registry.canonical(treatment)
    agents = parse_agents(label, schema)
    if not agents:
        raise QueryError(f"dose_response: {treatment!r} is the control, which has no dose.")
    if doses is not None:
        if not any(doses):
            raise QueryError("doses: none of them is above 0.")
        return sorted({float(dose) for dose in doses if dose > 0})
    if len(agents) > 1:
        raise QueryError(f"dose_response: {label!r} is a combination; give doses= for its parts.")
    low, high = registry.doses.get(label, (np.nan, np.nan))
    if not low < high:
        known = "no trained dose" if np.isnan(low) else f"the one trained dose {low:g}"
        raise QueryError(f"dose_response: {label!r} has {known}, no range; give doses=.")
    return list(np.geomspace(low, high, _GRID))


def _contexts(
    fcr: Fitted, cells: AnnData | _Levels | None, n_draws: int
) -> Iterator[tuple[_Levels, Iterable[tuple[Batch, slice]], int]]:
    """Yield each context, its cells in chunks, and how often each cell is to be drawn."""
    if isinstance(cells, AnnData):
        fcr.registry.encode_sites(cells.obs)  # all levels are known before long work
        keys = fcr.registry.schema.covariate_keys
        design, changed = fcr.registry.read_design(cells.obs), open_keys(fcr, ("t",))
        named = [
            {k: level for k, level in zip(keys, levels, strict=True) if k not in changed}
            for levels in design.contexts
        ]
        groups, codes = np.unique([str(each) for each in named], return_inverse=True)
        for group in range(len(groups)):
            at = np.flatnonzero(codes[design.x] == group)
            yield named[design.x[at[0]]], fcr.chunks(cells[at]), -(-n_draws // len(at))
        return
    if not isinstance(cells, Mapping | None):
        raise QueryError(
            f"cells is {shown(cells)}; expected an AnnData, or a level by covariate for new cells."
        )
    for context in contexts_of(fcr) if cells is None else [cells]:
        yield context, [(context_cells(fcr, context, n_draws), slice(0, n_draws))], 1


def _fill(
    pools: list[_Pool],
    responder: Responder,
    blocks: Iterable[tuple[Batch, slice, int]],
    *,
    t: Tensor,
    n_draws: int,
) -> None:
    for block, _, seed in blocks:
        one = torch.ones_like(block["library"])  # of a library of 1, expectations are shares
        for pool, row in zip(pools, t, strict=True):
            do = {"t": row.expand(len(block), -1)}
            responder.feed(block, expected=[pool], do=do, library=one, n_draws=n_draws, seed=seed)


def _changes(pools: list[_Pool], registry: Registry) -> list[dict[str, np.ndarray]]:
    """Return estimate and band of each dose against the mean of the first."""
    found = [[v[0].double().cpu().numpy() for v in pool.result().values()] for pool in pools]
    base, of_counts = found[0][0], registry.schema.expression == "counts"

    def change(values: np.ndarray) -> np.ndarray:
        return np.log(values / base) if of_counts else values - base

    return [
        {"estimate": change(mean), "lower": change(low), "upper": change(high)}
        for mean, _, low, high in found
    ]


def _marks(
    registry: Registry, treatment: str, levels: _Levels, dose: float
) -> dict[str, bool | float]:
    control = registry.schema.control
    if dose == 0 and control is None:
        return {"extrapolated": True, "support": 0.0}  # training had no cell without treatment
    return mark(registry, treatment if dose > 0 else str(control), levels, dose=dose)
