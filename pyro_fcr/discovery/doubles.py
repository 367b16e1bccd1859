"""Genetic interactions: what two perturbations do together, beside what each does alone.

Norman et al. (2019, Science 365:786) write the change under both as ``c1 * a + c2 * b`` of the
changes under each and read the interaction off the coefficients, off how well they fit, how alike a
and b are, and how equally they contribute. Their fits are of measured changes, whose noise pulls
coefficients towards 0 and fits apart: with few cells every pair looks suppressive and new. Here all
sums of products have the noise of the cells taken out, and errors are those of leaving out parts of
the cells (of replicates, where there are some).
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from pyro_fcr.data import Schema, register
from pyro_fcr.data.design import random_rank, read_labels
from pyro_fcr.data.pairs import Layout, read_layout
from pyro_fcr.discovery.combinations import q_values
from pyro_fcr.discovery.contrasts import ConditionCells
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.queries.targets import find_genes
from pyro_fcr.values import checked

_N_PARTS: Final = 10
_FEWEST_CELLS: Final = 20  # of each arm
NEW, DOMINANT, ALIKE, CLEAR = 0.3, 0.25, 0.8, 0.25  # bounds of kinds; see genetic_interactions


class _Arms(NamedTuple):
    """Changes under both, a and b, their noise and that of control, ``(n_genes,)`` each."""

    changes: FloatArray  # (3, n_genes)
    noise: FloatArray  # (3, n_genes), without that of control
    control: FloatArray


@checked(error=QueryError)
def genetic_interactions(
    adata: AnnData,
    schema: Schema,
    *,
    genes: Iterable[str] | None = None,
    replicate_key: str | None = None,
    level: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """Classify every combination of two agents by what it does beyond its parts.

    Parameters
    ----------
    adata
        Cells, measured or predicted; not changed. Doses of a treatment are taken together.
    schema
        Names the columns and the control.
    genes
        Which genes; None takes all.
    replicate_key
        Column of ``obs`` with the replicate; errors are those of leaving out one at a time. None
        leaves out tenths of the cells, which are taken as independent.
    level
        False discovery rate of calls that a combination is not additive.
    seed
        Seed of the parts.

    Returns
    -------
    A row per combination and context with 20 cells or more of both, of each part and of control:

    - ``c1``, ``c2`` with ``_se``: coefficients of the parts in alphabetical order, both 1 where
      changes (of log pooled expression) add up; ``magnitude``, the length of the two;
    - ``strength`` with ``_se``: projection of the change on the sum of the parts' changes, 1 where
      these add up;
    - ``unexplained`` with ``_se``: share of the change that no weights of the parts reach;
    - ``similarity``: cosine of the parts' changes; ``contribution``: smaller by larger coefficient;
    - ``pvalue``, ``qvalue``: of additivity, from both strength and unexplained share;
    - ``kind``: ``"additive"`` where q is above `level` and the strength is known to 0.5, or
      ``"unclear"`` where it is not; else ``"neomorphic"`` (unexplained above
      0.3), ``"epistatic"`` (contribution below 0.25: one part masks the other), ``"redundant"``
      (weaker than additive, parts alike: similarity above 0.8), ``"suppressive"`` (weaker), or
      ``"synergistic"`` (stronger).

    Raises
    ------
    pyro_fcr.QueryError
        There is no control, or no combination that can be judged.
    """
    if schema.control is None:
        raise QueryError("genetic_interactions needs untreated cells: name them with control.")
    registry, cells = register(adata, schema)
    layout, kept = read_layout(adata.obs, schema), find_genes(registry, genes).numpy()
    doubles = list(_doubles(layout))
    if not doubles:
        raise QueryError(
            "No combination of two agents has 20 cells or more, as have both parts and control."
        )
    part = _parts(adata, layout, replicate_key, seed)
    n_parts = int(part.max()) + 1
    pooled = ConditionCells(
        cells.expression[:, kept],
        cells.library.numpy().astype(np.float64).ravel(),
        layout.codes,
        len(layout.pairs),
        log=schema.expression == "counts",
    )
    sums = _Sums(pooled, part, n_parts)
    rows = [
        {"treatment": layout.pairs[both].treatment, "context": layout.pairs[both].place}
        | _measures(sums, (both, *parts), control)
        for both, parts, control in doubles
    ]
    table = pd.DataFrame(rows)
    table["qvalue"] = q_values(table["pvalue"].to_numpy())
    table["kind"] = [_kind(row, level) for row in table.to_dict("records")]
    return table


def _doubles(layout: Layout) -> Iterator[tuple[int, list[int], int]]:
    """Yield the positions of each combination, its two parts and their control."""
    size = layout.n_cells()
    place = {
        (agents, p.context): i
        for i, (agents, p) in enumerate(zip(layout.agents, layout.pairs, strict=True))
    }
    for i, agents in enumerate(layout.agents):
        context = layout.pairs[i].context
        parts = [place.get(((agent,), context)) for agent in agents]
        control = layout.control_of(layout.pairs[i])
        found = [each for each in (*parts, control) if each is not None]
        if len(agents) == 2 and len(found) == 3 and size[[i, *found]].min() >= _FEWEST_CELLS:
            yield i, found[:2], found[2]


def _parts(adata: AnnData, layout: Layout, replicate_key: str | None, seed: int) -> Codes:
    """Return which part of the cells each belongs to: a replicate, or a tenth of its condition."""
    if replicate_key is not None:
        return read_labels(adata.obs, replicate_key, role="replicate_key").codes
    return random_rank(layout.codes, seed) % _N_PARTS


class _Sums:
    """Log means of conditions, of all cells and without a part of them."""

    def __init__(self, pooled: ConditionCells, part: Codes, n_parts: int) -> None:
        self.n_parts, self._pooled = n_parts, pooled
        by_part = ConditionCells(
            pooled.expression, pooled.library, pooled.condition * n_parts + part,
            pooled.n_conditions * n_parts, log=pooled.log,
        )  # fmt: skip
        self._totals = by_part.totals.reshape(pooled.n_conditions, n_parts, -1)
        self._sizes = by_part.sizes.reshape(pooled.n_conditions, n_parts, 1)

    def arms(self, rows: tuple[int, ...], control: int, *, without: int | None) -> _Arms:
        """Return changes and noise of some conditions, without a part if one is named."""
        every = [*rows, control]
        mean, variance = self._pooled.mean[every], self._pooled.error.variance[every]
        if without is not None:
            left = np.delete(np.arange(self.n_parts), without)
            totals, sizes = (v[every][:, left].sum(axis=1) for v in (self._totals, self._sizes))
            sizes = np.maximum(sizes, 1e-12)
            mean = np.log((totals + 0.5) / sizes) if self._pooled.log else totals / sizes
            variance = variance * self._sizes[every].sum(axis=1) / sizes
        return _Arms(mean[:-1] - mean[-1], variance[:-1], variance[-1])


def _measures(sums: _Sums, rows: tuple[int, ...], control: int) -> dict[str, float]:
    """Measure a combination, with errors of leaving out parts."""
    whole = sums.arms(rows, control, without=None)
    weights = 1 / (whole.noise.sum(axis=0) + whole.control)
    names = ("c1", "c2", "strength", "unexplained", "similarity")
    found = _read(whole, weights)
    left = np.array([
        _read(sums.arms(rows, control, without=k), weights) for k in range(sums.n_parts)
    ])  # fmt: skip
    se = np.sqrt((sums.n_parts - 1) * left.var(axis=0))
    values, errors = (dict(zip(names, each, strict=True)) for each in (found, se))
    c = np.abs(found[:2])
    tests = [
        2
        * stats.t.sf(
            abs(values["strength"] - 1) / max(errors["strength"], 1e-12), sums.n_parts - 1
        ),
        stats.t.sf(values["unexplained"] / max(errors["unexplained"], 1e-12), sums.n_parts - 1),
    ]
    return {
        **values,
        **{f"{name}_se": errors[name] for name in names[:4]},
        "magnitude": float(np.hypot(*found[:2])),
        "contribution": float(c.min() / max(c.max(), 1e-12)),
        "pvalue": float(min(1.0, 2 * min(tests))),
    }


def _read(arms: _Arms, weights: FloatArray) -> FloatArray:
    """Return coefficients, strength, unexplained share and similarity, free of noise."""
    noise = np.einsum("ig,g->i", arms.noise, weights)
    products = np.einsum("ig,jg,g->ij", arms.changes, arms.changes, weights)
    products = products - np.diag(noise) - (arms.control * weights).sum()
    (both, ours), singles = (products[0, 0], products[0, 1:]), products[1:, 1:]
    coefficients = np.linalg.lstsq(singles, ours, rcond=1e-3)[0]
    strength = ours.sum() / singles.sum()
    unexplained = 1 - ours @ coefficients / both
    lengths = np.diag(singles)
    # Where noise is all of a part's change, there is no direction to compare.
    similarity = singles[0, 1] / np.sqrt(np.prod(lengths)) if (lengths > 0).all() else np.nan
    return np.array([*coefficients, strength, unexplained, np.clip(similarity, -1, 1)])


def _kind(row: dict[str, float], level: float) -> str:
    if not row["qvalue"] <= level:
        return "additive" if row["strength_se"] < CLEAR else "unclear"
    if row["unexplained"] > NEW:
        return "neomorphic"
    if row["contribution"] < DOMINANT:
        return "epistatic"
    if row["strength"] < 1:
        return "redundant" if row["similarity"] > ALIKE else "suppressive"
    return "synergistic"
