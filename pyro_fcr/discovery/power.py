"""How many cells, replicates and contexts it takes to find an interaction of a given size.

A pilot tells how much cells, and replicates, of one condition differ, gene by gene. What a larger
screen can find follows: an interaction is the effect in one context less the mean effect in the
others, tested gene by gene and pair by pair with Benjamini and Hochberg's procedure, whose
threshold depends in turn on how many there are and how many of them are found.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from pyro_fcr.data import Cells, Schema, register
from pyro_fcr.data.design import read_labels
from pyro_fcr.data.pairs import Layout, read_layout
from pyro_fcr.discovery.contrasts import ConditionCells
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.values import Number, checked

_FEWEST_OF_REPLICATE: Final = 5
_FEWEST: Final = 20  # cells of a condition that tell how much cells differ
_N_STEPS: Final = 200  # of the search for the threshold
_MOST_DF: Final = 1e6  # counts as a normal distribution
_N_DRAWS: Final = 400  # of replicates, whose errors are known badly; 100 were .05 of power off
_DF: Final = np.geomspace(0.25, _MOST_DF, 1000)


class Noise(NamedTuple):
    """Variances, ``(n_genes,)``: of a cell's log mean, the least of it, of replicates' effects."""

    cell: FloatArray
    poisson: FloatArray
    replicate: FloatArray


@dataclass(frozen=True, kw_only=True)
class PlannedScreen:
    """A screen to be made.

    Parameters
    ----------
    n_cells
        Cells of each condition, all its replicates together.
    n_contexts
        Contexts that have the treatment and its control, 2 or more.
    n_replicates
        Replicates of each condition; 1 takes cells as independent.

    Raises
    ------
    pyro_fcr.QueryError
        A number is too small, or there are more replicates than cells.
    """

    n_cells: int
    n_contexts: int
    n_replicates: int = 1

    def __post_init__(self) -> None:
        for name, least in (("n_cells", 2), ("n_contexts", 2), ("n_replicates", 1)):
            Number(whole=True, least=least).read(name, getattr(self, name), error=QueryError)
        if self.n_replicates * 2 > self.n_cells:
            raise QueryError(
                f"n_replicates is {self.n_replicates} for {self.n_cells} cells of a condition; "
                "expected two cells or more of each."
            )


@checked(error=QueryError)
def interaction_power(
    adata: AnnData,
    schema: Schema,
    screens: Sequence[PlannedScreen],
    *,
    sizes: Sequence[float] = (0.25, 0.5, 1.0),
    share: float = 0.01,
    level: float = 0.1,
    replicate_key: str | None = None,
    min_counts: float = 10.0,
) -> pd.DataFrame:
    """Predict how many interactions of a size a screen would find.

    Parameters
    ----------
    adata
        Cells of a pilot: some conditions with 20 cells or more. Not changed.
    schema
        Names the columns and the control.
    screens
        The screens to compare.
    sizes
        Interactions: differences of log fold changes (natural logarithm) of a gene between one
        context and the others.
    share
        Share of all genes and pairs that interact.
    level
        False discovery rate.
    replicate_key
        Column of ``obs`` with the pilot's replicates, from which it is learnt how much effects
        differ between replicates. Without it they are taken not to.
    min_counts
        Genes with fewer counts in a condition, or in a replicate of it, are not tested.

    Returns
    -------
    A row per screen and size: ``size``, ``n_cells``, ``n_contexts``, ``n_replicates``; ``power``,
    the share of interactions of that size that are found, over the genes that can be tested
    (``n_genes``) as if each was as likely to interact; ``threshold``, the p-value up to which they
    are found; ``n_total``, cells of the pilot's treatments and controls in all contexts; and
    ``max_dimensions`` of ``z_tx`` that so many conditions can identify (2 n + 1 for n, all controls
    being one).

    It is the power of a test of measured cells. :func:`pyro_fcr.rank_interactions`, which shrinks
    towards what a model expects, chooses its own contexts of reference and halves the cells, is
    another test; for it these are figures to compare designs by.

    Raises
    ------
    pyro_fcr.QueryError
        There is no control, no condition of 20 cells, or how much replicates differ is not known.
    """
    if schema.control is None:
        raise QueryError("interaction_power needs untreated cells: name them with control.")
    layout = read_layout(adata.obs, schema)
    if wrong := [size for size in sizes if not size > 0]:
        raise QueryError(f"sizes has {wrong[0]!r}; expected numbers above 0.")
    if replicate_key is None and any(screen.n_replicates > 1 for screen in screens):
        raise QueryError(
            "n_replicates is above 1, but replicate_key names no column of the pilot: how much "
            "replicates differ is not known"
        )
    _, cells = register(adata, schema)
    replicate = None
    if replicate_key is not None:
        replicate = read_labels(adata.obs, replicate_key, role="replicate_key").codes
    noise, mean_counts = read_noise(cells, layout, schema, replicate)
    rows = []
    n_treatments = len({pair.treatment for pair in layout.treated().values()})
    for screen in screens:
        tested = mean_counts * screen.n_cells >= min_counts * screen.n_replicates
        some = Noise(*(values[tested] for values in noise))
        about = asdict(screen) | {
            "n_genes": int(tested.sum()),
            "n_total": (n_treatments + 1) * screen.n_cells * screen.n_contexts,
            "max_dimensions": n_treatments * screen.n_contexts // 2,
        }
        for size in sizes:
            power, threshold = _found(some, screen, size, share=share, level=level)
            rows.append({"size": size, **about, "power": power, "threshold": threshold})
    return pd.DataFrame(rows)


def read_noise(
    cells: Cells, layout: Layout, schema: Schema, replicate: Codes | None = None
) -> tuple[Noise, FloatArray]:
    """Return the noise of a pilot's cells, and counts of a gene in a cell, ``(n_genes,)``."""
    size = layout.n_cells()
    large = np.flatnonzero(size >= _FEWEST)
    if not len(large):
        raise QueryError(
            f"The largest condition of the pilot has {size.max()} cells; {_FEWEST} are needed to "
            "tell how much cells differ."
        )
    library = cells.library.numpy().astype(np.float64).ravel()
    log = schema.expression == "counts"
    pooled = ConditionCells(cells.expression, library, layout.codes, len(size), log=log)
    single = pooled.error.variance[large] * size[large, None]
    counts = pooled.totals[large].sum(axis=0) / size[large].sum()
    if not log:
        counts = np.full_like(counts, np.inf)
    # Pooled, not the mean: a condition without a count of a gene has no variance to tell.
    weight = pooled.totals[large] + 1e-9 if log else np.ones_like(single)
    cell = (single * weight).sum(axis=0) / weight.sum(axis=0)
    between = np.zeros_like(cell)
    if replicate is not None:
        between = _between_replicates(pooled, layout, replicate)
    poisson = 1 / np.maximum(counts, 1e-9) if log else np.zeros_like(cell)
    return Noise(cell, poisson, between), counts


def _between_replicates(pooled: ConditionCells, layout: Layout, part: Codes) -> FloatArray:
    """Return how much effects differ between replicates beyond what their cells do."""
    n_parts = int(part.max()) + 1
    codes = pooled.condition * n_parts + part
    each = ConditionCells(
        pooled.expression, pooled.library, codes, pooled.n_conditions * n_parts, log=pooled.log
    )
    shape = (pooled.n_conditions, n_parts, -1)
    mean, variance = (v.reshape(shape) for v in (each.mean, each.error.variance))
    n_units = np.bincount(codes, minlength=each.n_conditions).reshape(shape[:2])
    excess, weights = [], []
    for i, pair in layout.treated().items():
        control = layout.control_of(pair)
        rows = [i] if control is None else [i, control]
        there = np.flatnonzero((n_units[rows] >= _FEWEST_OF_REPLICATE).all(axis=0))
        if control is not None and len(there) >= 2:
            effect = mean[i, there] - mean[control, there]
            own = (variance[i, there] + variance[control, there]).mean(axis=0)
            excess.append(effect.var(axis=0, ddof=1) - own)
            weights.append((len(there) - 1) / (own + np.median(own)) ** 2)
    if not excess:
        raise QueryError(
            "No treatment has two replicates of 5 cells beside control: how much replicates differ "
            "is not known; leave replicate_key out, or give a pilot with replicates."
        )
    # One number for all genes, each weighing as exactly as it is known: few replicates tell little
    # of a single gene, and a median of variances is lower than their mean.
    return np.full(mean.shape[-1], max(float(np.average(excess, weights=weights)), 0.0))


class _Contrast(NamedTuple):
    """Contrasts of the genes, ``(n_genes,)``, and their errors as tests will estimate them.

    ``error`` is in units of ``se``, which is the true one; it and ``df`` have a row per draw of
    replicates, ``(n_draws, n_genes)``.
    """

    shift: FloatArray
    error: FloatArray
    df: FloatArray


def _contrast(noise: Noise, screen: PlannedScreen, size: float) -> _Contrast:
    """Return what a screen shows of an interaction, with the errors of :class:`ConditionCells`."""
    n = screen.n_cells
    weights = np.full((screen.n_contexts, 1), 1 / (screen.n_contexts - 1)) ** 2
    weights[0] = 1.0
    least = np.tile(2 * noise.poisson / n, (screen.n_contexts, 1))
    effect = np.tile(2 * noise.cell / n + noise.replicate / screen.n_replicates, (len(least), 1))
    # What takes counts away makes them less sure, and the other way round.
    for values in (least, effect):
        values[0] += noise.poisson * np.expm1(-size) / n
    se = np.sqrt((weights * effect).sum(axis=0))
    if screen.n_replicates == 1:
        return _Contrast(size / se, np.ones((1, len(se))), np.full((1, len(se)), _MOST_DF))
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(_N_DRAWS, screen.n_contexts, screen.n_replicates))
    apart -= apart.mean(axis=-1, keepdims=True)
    second = (apart**2).sum(axis=-1)
    kurtosis = (apart**4).sum(axis=-1) / second**2
    doubt = np.maximum(1 / (screen.n_replicates - 1), (kurtosis - 1 / screen.n_replicates) / 2)
    variance, spread = np.zeros((2, _N_DRAWS, len(se)))
    for x, weight in enumerate(weights[:, 0]):
        own = np.outer(second[:, x] / (screen.n_replicates - 1), effect[x])
        own = weight * np.maximum(own, least[x])
        variance += own
        spread += own**2 * doubt[:, x, None]
    return _Contrast(size / se, np.sqrt(variance) / se, variance**2 / spread)


def _found(
    noise: Noise, screen: PlannedScreen, size: float, *, share: float, level: float
) -> tuple[float, float]:
    """Return power and the p-value up to which Benjamini and Hochberg's procedure finds."""
    if not len(noise.cell):
        return 0.0, 0.0
    contrasts = [_contrast(noise, screen, change) for change in (size, -size)]
    threshold = level
    for _ in range(_N_STEPS):
        power = float(np.mean([_power(contrast, threshold) for contrast in contrasts]))
        new = level * (share * power + (1 - share) * threshold)
        if abs(new - threshold) <= 1e-3 * threshold:
            break
        threshold = new
    return power, threshold


def _power(contrast: _Contrast, threshold: float) -> float:
    """Return the mean chance of a two-sided p-value up to a threshold."""
    quantiles = np.log(stats.t.isf(threshold / 2, _DF))
    bound = np.exp(np.interp(np.log(contrast.df), np.log(_DF), quantiles)) * contrast.error
    ends = bound - contrast.shift, bound + contrast.shift
    return float(sum(stats.norm.sf(end) for end in ends).mean())
