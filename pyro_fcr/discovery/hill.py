"""Hill curves: how strong a treatment is, where its effect is half, and whether contexts differ.

``y(d) = bottom + top * d**slope / (d**slope + ec50**slope)``, gene by gene and context by
context. For every slope and EC50 the best bottom and top are a linear regression, so the two that
are left are searched on a grid: nothing has to converge, and intervals are those of the profile
likelihood, which may be open to one side where doses do not reach far enough.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import special, stats

from pyro_fcr.data import Schema, register
from pyro_fcr.data.design import Design, read_design, read_labels
from pyro_fcr.data.errors import listed
from pyro_fcr.data.treatments import canonical_label
from pyro_fcr.discovery.contrasts import ConditionCells
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.queries.columns import named_levels
from pyro_fcr.queries.targets import find_genes
from pyro_fcr.values import checked

_SLOPES: Final = np.geomspace(0.3, 6.0, 31)
_N_EC50: Final = 121
_BEYOND: Final = 10.0  # how far beyond the doses an EC50 is looked for, as a factor
_CHUNK: Final = 256  # curves at a time
_VALUES: Final = ("treatment", "dose", "gene", "estimate", "se", "n_cells")
_NAMES: Final = ("bottom", "top", "slope", "log10_ec50")
_MARKS: Final = frozenset({
    "dose", "estimate", "se", "lower", "upper", "extrapolated", "support", "n_cells"
})  # fmt: skip


@checked(error=QueryError)
def measured_doses(
    adata: AnnData,
    schema: Schema,
    treatment: str,
    *,
    genes: Iterable[str] | None = None,
    replicate_key: str | None = None,
) -> pd.DataFrame:
    """Measure a treatment's curve from cells, without a model.

    Parameters
    ----------
    adata
        Cells; not changed.
    schema
        Names the columns, the dose among them, and the control.
    treatment
        One agent.
    genes
        Which genes; None takes all.
    replicate_key
        Column of ``obs`` with the replicate; errors then come from the spread between these.

    Returns
    -------
    As of :meth:`pyro_fcr.FCR.dose_response`, a row per context, dose and gene, control as dose 0:
    ``estimate`` (log of pooled expression, less that of the context's control; difference of means
    for log1p data), its own ``se`` without that of the control, and ``n_cells``.

    Raises
    ------
    pyro_fcr.QueryError
        There are no doses, no control, or no cells of the treatment.
    """
    if schema.dose_key is None or schema.control is None:
        raise QueryError("measured_doses needs a schema with dose_key and control.")
    registry, cells = register(adata, schema)
    design, kept = read_design(adata.obs, schema), find_genes(registry, genes).numpy()
    replicate = None
    if replicate_key is not None:
        replicate = read_labels(adata.obs, replicate_key, role="replicate_key").codes
    condition = design.t * len(design.contexts) + design.x
    pooled = ConditionCells(
        cells.expression[:, kept],
        cells.library.numpy().astype(np.float64).ravel(),
        condition,
        len(design.treatments) * len(design.contexts),
        replicate,
        log=schema.expression == "counts",
    )
    size = np.bincount(condition, minlength=pooled.n_conditions)
    label, tables = registry.canonical(treatment), []
    for number, levels in enumerate(design.contexts):
        rows = _rows_of(label, design, number, size, schema)
        if len(rows) < 2 or rows[0][0]:
            continue  # not treated here, or no control
        context = dict(zip(schema.covariate_keys, levels, strict=True))
        start = pooled.mean[rows[0][1]]
        tables += [
            pd.DataFrame({
                "treatment": label,
                **named_levels(context, _VALUES),
                "dose": dose,
                "gene": np.array(registry.genes)[kept],
                "estimate": pooled.mean[row] - start,
                "se": np.sqrt(pooled.error.variance[row]),
                "n_cells": size[row],
            })
            for dose, row in rows
        ]  # fmt: skip
    if not tables:
        raise QueryError(f"No context has cells of {label!r} beside control cells.")
    return pd.concat(tables, ignore_index=True)


def _rows_of(
    label: str, design: Design, context: int, size: np.ndarray, schema: Schema
) -> list[tuple[float, int]]:
    """Return doses and conditions of a treatment in a context, control first as dose 0."""
    found = []
    for number, each in enumerate(design.treatments):
        row = number * len(design.contexts) + context
        if size[row] and canonical_label(each.agents, schema) in (label, schema.control):
            found.append((float(each.doses[0]) if each.doses else 0.0, row))
    return sorted(found)


class _Fits(NamedTuple):
    """Curves on one grid of doses: estimates and ends of intervals, ``(n_curves, 4)`` each."""

    values: FloatArray
    lower: FloatArray
    upper: FloatArray
    se: FloatArray  # of log10 EC50, (n_curves,)
    p_value: FloatArray
    explained: FloatArray


@checked(error=QueryError)
def hill_curves(
    curves: pd.DataFrame | Sequence[pd.DataFrame], *, level: float = 0.9
) -> pd.DataFrame:
    """Fit a Hill curve to every gene in every context.

    Parameters
    ----------
    curves
        A table of :meth:`pyro_fcr.FCR.dose_response` or :func:`measured_doses`: columns
        ``treatment``, ``dose``, ``gene``, ``estimate``, the context, and ``se`` where it is known;
        dose 0 among the doses. Or several such tables of the same conditions, from refits
        (:func:`pyro_fcr.bootstrap`).
    level
        Probability of the intervals.

    Returns
    -------
    A row per treatment, context and gene: ``bottom`` (the level without a dose), ``top`` (the
    largest effect, counted from the bottom), ``slope`` (from 0.3 to 6), ``ec50`` (a tenth of the
    smallest to ten times the largest dose), each with ``_lower`` and ``_upper``; ``log10_ec50``
    with ``se_log10_ec50``; ``r2``, the share of the variance over doses that the curve explains;
    ``pvalue`` of no effect of the dose, where it
    is known. Where the doses leave an end of an interval open it is 0 or infinite, and
    ``se_log10_ec50`` is infinite.

    What intervals mean depends on what is given. With ``se`` they are profile-likelihood intervals
    of sampled cells. Several tables: t intervals over the refits. One table without ``se``: only
    how far the curve is from a Hill curve.

    Raises
    ------
    pyro_fcr.QueryError
        A column is missing, there are fewer than three doses above 0, or tables differ.

    Examples
    --------
    >>> dose = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0])
    >>> table = pd.DataFrame({
    ...     "treatment": "A", "line": "u", "dose": dose, "gene": "g",
    ...     "estimate": 2 * dose / (dose + 1), "se": 0.05,
    ... })
    >>> hill_curves(table)[["ec50", "top", "slope"]].round(1).to_dict("records")
    [{'ec50': 1.0, 'top': 2.0, 'slope': 1.0}]
    """
    tables = [curves] if isinstance(curves, pd.DataFrame) else list(curves)
    if not tables:
        raise QueryError("hill_curves: no table is given.")
    fitted = [_fit_table(table, level) for table in tables]
    if len(fitted) == 1:
        return _table(*fitted[0])
    names, fits = fitted[0][0], [each for _, each in fitted]
    if any(not names.equals(other) for other, _ in fitted):
        raise QueryError("hill_curves: the tables differ in their treatments, contexts or genes.")
    return _table(names, _over_refits(fits, level))


def _fit_table(table: pd.DataFrame, level: float) -> tuple[pd.DataFrame, _Fits]:
    needed = ["treatment", "dose", "gene", "estimate"]
    if lacking := [name for name in needed if name not in table]:
        raise QueryError(
            f"hill_curves: the table has no column {lacking[0]!r}; columns: {listed(table)}. Give "
            "what fcr.dose_response or measured_doses return."
        )
    keys = [name for name in table if name not in _MARKS]
    if table.duplicated([*keys, "dose"]).any():
        twice = table[table.duplicated([*keys, "dose"])].iloc[0]
        raise QueryError(
            f"hill_curves: gene {twice['gene']!r} has dose {twice['dose']:g} of "
            f"{twice['treatment']!r} twice in one context; give tables of refits as a list"
        )
    places, parts, names = [key for key in keys if key != "gene"], [], []
    for place, own in table.groupby(places, sort=False, dropna=False):
        parts.append(_fit_place(", ".join(map(str, np.atleast_1d(place))), own, level))
        names.append(own.drop_duplicates("gene")[keys])
    fits = _Fits(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return pd.concat(names, ignore_index=True), fits


def _fit_place(place: str, own: pd.DataFrame, level: float) -> _Fits:
    """Fit the curves of a treatment in a context."""
    wide = own.pivot(index="gene", columns="dose", values="estimate").loc[own["gene"].unique()]
    if (n_doses := (wide.columns > 0).sum()) < 3:
        raise QueryError(
            f"hill_curves: {place} has {n_doses} doses above 0; a curve needs 3 or more"
        )
    if (lacking := wide.isna().any(axis=1)).any():
        raise QueryError(
            f"hill_curves: {place}, gene {lacking.idxmax()!r} lacks a dose that other genes have, "
            "or its estimate; leave the gene or the dose out"
        )
    se = None
    if "se" in own:
        se = own.pivot(index="gene", columns="dose", values="se").loc[wide.index].to_numpy()
    return _fit(wide.columns.to_numpy(float), wide.to_numpy(), se, level)


def _fit(doses: FloatArray, y: FloatArray, se: FloatArray | None, level: float) -> _Fits:
    """Fit curves that share their doses, some at a time."""
    chunks = range(0, len(y), _CHUNK)
    some = [
        _fit_some(doses, y[at : at + _CHUNK], None if se is None else se[at : at + _CHUNK], level)
        for at in chunks
    ]
    return _Fits(*(np.concatenate(values) for values in zip(*some, strict=True)))


def _fit_some(doses: FloatArray, y: FloatArray, se: FloatArray | None, level: float) -> _Fits:
    """Search slope and EC50 on a grid, ``(n_slopes, n_ec50)``; bottom and top are regressions."""
    ec50 = _ec50_grid(doses)
    lines = _lines(doses, y, se, ec50)
    n_curves, rows = len(y), np.arange(len(y))
    flat = lines.loss.reshape(n_curves, -1)
    best = flat.argmin(1)
    least, df = flat[rows, best], max(len(doses) - 4, 1)
    # With unknown errors, how far the points are from the curve has to tell them.
    crit = stats.chi2.ppf(level, 1) if se is not None else stats.f.ppf(level, 1, df)
    scale = np.ones(n_curves) if se is not None else np.maximum(least / df, 1e-300)
    most = least + crit * scale
    room = np.maximum(most[:, None, None] - lines.loss, -1.0)
    ends = [
        _ends(lines.bottom, lines.v_bottom, room),
        _ends(lines.top, lines.v_top, room),
        _crossings(np.log(_SLOPES), lines.loss.min(2), most),
        _crossings(np.log10(ec50), lines.loss.min(1), most),
    ]
    lower, upper = map(np.column_stack, zip(*ends, strict=True))
    lower[:, 2], upper[:, 2] = np.exp(lower[:, 2]), np.exp(upper[:, 2])
    bottom, top = (v.reshape(n_curves, -1)[rows, best] for v in (lines.bottom, lines.top))
    slope = np.exp(_vertex(np.log(_SLOPES), lines.loss.min(2)))
    center = _vertex(np.log10(ec50), lines.loss.min(1))
    values = np.column_stack([bottom, top, slope, center])
    p_value = stats.chi2.sf(lines.total - least, 3) if se is not None else np.full(n_curves, np.nan)
    explained = 1 - least / np.maximum(lines.total, 1e-300)
    spread = (upper[:, 3] - lower[:, 3]) / (2 * np.sqrt(crit))
    return _Fits(values, lower, upper, spread, p_value, explained)


def _ec50_grid(doses: FloatArray) -> FloatArray:
    positive = doses[doses > 0]
    return np.geomspace(positive.min() / _BEYOND, positive.max() * _BEYOND, _N_EC50)


class _Lines(NamedTuple):
    """Regressions of curves on every shape of the grid, ``(n_curves, n_slopes, n_ec50)``.

    ``loss`` is the weighted sum of squares that is left, ``total`` that of a constant, of each
    curve; ``v_`` are variances for errors of their size.
    """

    loss: FloatArray
    total: FloatArray
    bottom: FloatArray
    top: FloatArray
    v_bottom: FloatArray
    v_top: FloatArray


def _lines(doses: FloatArray, y: FloatArray, se: FloatArray | None, ec50: FloatArray) -> _Lines:
    log_ratio = np.log(np.maximum(doses, 1e-12)) - np.log(ec50)[:, None]
    shape = np.where(doses > 0, special.expit(_SLOPES[:, None, None] * log_ratio), 0.0)
    weight = np.ones_like(y) if se is None else 1 / np.maximum(se, 1e-12) ** 2
    n, sy = (each.sum(1)[:, None, None] for each in (weight, weight * y))
    sx, sxx, sxy = (
        np.tensordot(left, right, axes=(1, 2))
        for left, right in ((weight, shape), (weight, shape**2), (weight * y, shape))
    )
    spread = np.maximum(sxx - sx**2 / n, 1e-12 * n)
    top = (sxy - sx * sy / n) / spread
    total = (weight * y**2).sum(1) - (sy**2 / n)[:, 0, 0]
    loss = np.maximum(total[:, None, None] - top**2 * spread, 0.0)
    v_bottom, v_top = 1 / n + (sx / n) ** 2 / spread, 1 / spread
    return _Lines(loss, total, (sy - top * sx) / n, top, v_bottom, v_top)


def _vertex(grid: FloatArray, profile: FloatArray) -> FloatArray:
    """Return where the parabola through the best place and its neighbours is lowest."""
    at = profile.argmin(1)
    inner, rows = np.clip(at, 1, len(grid) - 2), np.arange(len(profile))
    left, middle, right = (profile[rows, inner + k] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    move = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    place = grid[inner] + move.clip(-0.5, 0.5) * (grid[1] - grid[0])
    return np.where(at == inner, place, grid[at])


def _ends(center: FloatArray, variance: FloatArray, room: FloatArray) -> tuple[FloatArray, ...]:
    """Return the ends of a profile interval of what is linear at each place of the grid."""
    half = np.sqrt(np.maximum(room, 0.0) * variance)
    inside = room >= 0
    low, high = (np.where(inside, center + sign * half, -sign * np.inf) for sign in (-1, 1))
    return low.min(axis=(1, 2)), high.max(axis=(1, 2))


def _crossings(grid: FloatArray, loss: FloatArray, most: FloatArray) -> tuple[FloatArray, ...]:
    """Return where a profile, ``(n_curves, n_grid)``, crosses its limit; infinite where nowhere."""
    found = []
    for step in (1, -1):
        values, profile = grid[::step], loss[:, ::step]
        rows, at = np.arange(len(loss)), (profile <= most[:, None]).argmax(1)
        before = np.maximum(at - 1, 0)
        above, below = profile[rows, before] - most, profile[rows, at] - most
        part = np.divide(above, above - below, out=np.zeros_like(above), where=above > below)
        place = values[before] + part * (values[at] - values[before])
        found.append(np.where(at > 0, place, -step * np.inf))
    return tuple(found)


def _over_refits(fits: Sequence[_Fits], level: float) -> _Fits:
    """Average refits, with t intervals: one more refit would lie within."""
    values = np.stack([each.values for each in fits])
    center, sd = values.mean(0), values.std(0, ddof=1)
    half = stats.t.ppf((1 + level) / 2, len(fits) - 1) * sd
    unknown = np.full(len(center), np.nan)
    explained = np.mean([each.explained for each in fits], axis=0)
    return _Fits(center, center - half, center + half, sd[:, 3], unknown, explained)


def _table(names: pd.DataFrame, fits: _Fits) -> pd.DataFrame:
    """Name the columns; EC50 also as a dose."""
    found = names.copy()
    for number, name in enumerate(_NAMES):
        for end, values in (("", fits.values), ("_lower", fits.lower), ("_upper", fits.upper)):
            shown = name.removeprefix("log10_")
            column = values[:, number]
            found[f"{shown}{end}"] = 10.0**column if name != shown else column
    return found.assign(
        log10_ec50=fits.values[:, 3],
        se_log10_ec50=fits.se,
        r2=fits.explained,
        pvalue=fits.p_value,
    )


@checked(error=QueryError)
def compare_ec50(hill: pd.DataFrame, *, level: float = 0.1) -> pd.DataFrame:
    """Find genes whose EC50 differs between contexts.

    Parameters
    ----------
    hill
        From :func:`hill_curves`.
    level
        Responses to the dose count where their own q-value is at most this, if it is known.

    Returns
    -------
    A row per treatment, gene and two contexts: ``difference`` of log10 EC50, ``ratio`` of EC50
    (first by second), ``se``, ``z``, ``pvalue``, and ``qvalue`` (Benjamini and Hochberg 1995, JRSS
    B 57:289, over all rows that are tested). A row is tested where both curves respond and both
    intervals of the EC50 are closed; elsewhere these columns are nan.

    Raises
    ------
    pyro_fcr.QueryError
        A column is missing, or there is one context only.
    """
    needed = ["treatment", "gene", "log10_ec50", "se_log10_ec50", "pvalue"]
    if lacking := [name for name in needed if name not in hill]:
        raise QueryError(f"compare_ec50: no column {lacking[0]!r}; give what hill_curves returns.")
    keys = list(hill.columns[: list(hill.columns).index("bottom")])
    contexts = [key for key in keys if key not in ("treatment", "gene")]
    curves = hill.assign(
        context=hill[contexts].astype(str).agg(" / ".join, axis=1), responds=_responds(hill, level)
    )
    names = list(dict.fromkeys(curves["context"]))
    if len(names) < 2:
        raise QueryError(f"compare_ec50: {listed(names)} is the only context; two are compared.")
    by = {name: own.set_index(["treatment", "gene"]) for name, own in curves.groupby("context")}
    found = pd.concat([_difference(by[a], by[b], a, b) for a, b in combinations(names, 2)])
    tested = found["pvalue"].notna()
    q_values = stats.false_discovery_control(found.loc[tested, "pvalue"]) if tested.any() else []
    found.loc[tested, "qvalue"] = q_values
    return found.reset_index()


def _responds(hill: pd.DataFrame, level: float) -> np.ndarray:
    """Tell which curves respond to the dose, with error control; all where it is not known."""
    p_value, responds = hill["pvalue"].to_numpy(), np.ones(len(hill), dtype=bool)
    if (known := np.isfinite(p_value)).any():
        responds[known] = stats.false_discovery_control(p_value[known]) <= level
    return responds


def _difference(one: pd.DataFrame, other: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    shared = one.index.intersection(other.index, sort=False)
    one, other = one.loc[shared], other.loc[shared]
    difference = one["log10_ec50"] - other["log10_ec50"]
    se = np.hypot(one["se_log10_ec50"], other["se_log10_ec50"])
    tested = one["responds"] & other["responds"] & np.isfinite(se) & (se > 0)
    z = (difference / se.where(tested)).where(tested)
    return pd.DataFrame({
        "context": a,
        "other": b,
        "difference": difference,
        "ratio": 10.0**difference,
        "se": se,
        "z": z,
        "pvalue": 2 * stats.norm.sf(z.abs()),
        "qvalue": np.nan,
    })  # fmt: skip
