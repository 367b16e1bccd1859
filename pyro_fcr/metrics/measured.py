"""Real responses of all pairs in a set of cells, with draws of the cells; and training conditions.

Bootstrap draws are of cells within each condition; the draws of a context's controls are shared
by its pairs. They say how far the measurement of the real response can be off with so many cells,
not how far another donor or library would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyro_fcr.data.pairs import Layout, Mask, Pair
from pyro_fcr.metrics.baselines import ConditionMeans
from pyro_fcr.metrics.metrics import FloatArray
from pyro_fcr.metrics.profiles import (
    SCALES,
    Scale,
    Values,
    bootstrap_weights,
    half_weights,
    profile,
    t_statistics,
)
from pyro_fcr.metrics.scoring import gene_weights


@dataclass(frozen=True, eq=False)
class Measured:
    """Real responses of some pairs.

    Parameters
    ----------
    pairs
        Treated pairs with two cells and two control cells or more, sorted.
    treated, control
        Log1p expression of each pair's cells, and of the control cells of each context.
    weights
        Of each pair's treated cells, ``(1 + n_draws, n_cells)``; the first row is even.
    change
        By scale, change against control, ``(n_pairs, 1 + n_draws, n_genes)``; the first is of the
        cells as they are.
    genes
        Weights of the genes, ``(n_pairs, n_genes)``, see `pyro_fcr.metrics.scoring`.
    """

    pairs: tuple[Pair, ...]
    treated: tuple[Values, ...]
    control: Mapping[tuple[str, ...], Values]
    weights: tuple[FloatArray, ...]
    change: Mapping[Scale, FloatArray]
    genes: FloatArray


def measure(
    values: Values, layout: Layout, cells: Mask, *, n_draws: int, rng: np.random.Generator
) -> Measured:
    """Measure the response of every treated pair in the chosen cells.

    Parameters
    ----------
    values
        Log1p expression, ``(n_cells, n_genes)``.
    layout
        Pair of each cell.
    cells
        Which cells to use, treated and control, ``(n_cells,)``.
    n_draws
        Bootstrap draws.
    rng
        Of the draws.
    """
    size = layout.n_cells(cells)
    controls = {
        layout.pairs[i].context: values[cells & (layout.codes == i)]
        for i in np.flatnonzero(layout.is_control & (size > 1)).tolist()
    }
    found = {
        pair: values[cells & (layout.codes == i)]
        for i, pair in layout.treated().items()
        if size[i] > 1 and pair.context in controls
    }
    weights = [bootstrap_weights(v.shape[0], n_draws, rng=rng) for v in found.values()]
    untreated = {
        context: bootstrap_weights(v.shape[0], n_draws, rng=rng) for context, v in controls.items()
    }
    change = {}
    for scale in SCALES:
        base = {c: profile(v, scale, weights=untreated[c]) for c, v in controls.items()}
        change[scale] = np.array(
            [
                profile(v, scale, weights=w) - base[pair.context]
                for (pair, v), w in zip(found.items(), weights, strict=True)
            ]
        )
    genes = [gene_weights(t_statistics(v, controls[pair.context])) for pair, v in found.items()]
    return Measured(
        pairs=tuple(found),
        treated=tuple(found.values()),
        control=controls,
        weights=tuple(weights),
        change=change,
        genes=np.array(genes),
    )


def half_changes(
    treated: Values, control: Values, *, n_splits: int, rng: np.random.Generator
) -> tuple[dict[Scale, tuple[FloatArray, FloatArray]], FloatArray]:
    """Give the change in random halves of the cells, and in the other halves.

    Returns
    -------
    By scale, both changes, ``(n_splits, n_genes)`` each; and the weights of the treated cells,
    ``(2, n_splits, n_cells)``.
    """
    treated_weights = half_weights(treated.shape[0], n_splits, rng=rng)
    control_weights = half_weights(control.shape[0], n_splits, rng=rng)
    changes = {}
    for scale in SCALES:
        first, second = (
            profile(treated, scale, weights=a) - profile(control, scale, weights=b)
            for a, b in zip(treated_weights, control_weights, strict=True)
        )
        changes[scale] = (first, second)
    return changes, treated_weights


def training_means(values: Values, layout: Layout, train: Mask, *, scale: Scale) -> ConditionMeans:
    """Average the training cells of every pair on one scale.

    Parameters
    ----------
    values
        Log1p expression, ``(n_cells, n_genes)``.
    layout
        Pair of each cell.
    train
        Which cells train, ``(n_cells,)``.
    scale
        See `pyro_fcr.metrics.profiles`.
    """
    size = layout.n_cells(train)
    seen = np.flatnonzero(size).tolist()
    return ConditionMeans(
        treatments=tuple(layout.agents[i] for i in seen),
        contexts=tuple(layout.pairs[i].context for i in seen),
        n_cells=size[seen].astype(np.float64),
        means=np.array([profile(values[train & (layout.codes == i)], scale) for i in seen]),
    )


def mean_shift(conditions: ConditionMeans) -> FloatArray:
    """Average the change of all treated conditions against their controls, ``(n_genes,)``."""
    rows = zip(conditions.treatments, conditions.contexts, strict=True)
    shifts = [conditions.shift(*row) for row in rows if row[0]]
    seen = [shift for shift in shifts if shift is not None]
    return np.mean(seen, axis=0) if seen else np.full(conditions.means.shape[1], np.nan)
