"""Are the latents the true ones? One table on simulated truth, agreement of fits without it.

Every number stands between its floor and its ceiling: what an estimate scores that knows only the
labels (for the strong MCC: that has the block but mixes its dimensions), and what the truth itself
scores through the same regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyro_fcr.metrics.arrays import (
    Blocks,
    Codes,
    FloatArray,
    check_rows,
    condition_codes,
    group_means,
    joint_codes,
    matrices,
    matrix,
)
from pyro_fcr.metrics.dci import dci
from pyro_fcr.metrics.recovery import Method, block_r2, leakage, mcc, rotation_floor, weak_mcc

Scores = dict[tuple[str, str], float]
_Blocks = dict[str, FloatArray]


def identifiability_table(
    truth: Blocks, estimate: Blocks, *, x: npt.ArrayLike, t: npt.ArrayLike, seed: int = 0
) -> pd.DataFrame:
    """All measures of an estimate against simulated truth, between floor and ceiling.

    *Within* conditions means: of the same x and t.

    Parameters
    ----------
    truth, estimate
        Block name to ``(n_cells, n_dims)``, of the same names. The dimensions may differ.
    x, t
        Covariate and treatment of each cell, ``(n_cells,)``; numbers or names.
    seed
        Of the division of cells, the floors and the regressions.

    Returns
    -------
    Columns ``metric, block, value, floor, ceiling``. Metrics:

    ``mcc_pearson``, ``mcc_spearman``, ``mcc_within_pearson``, ``mcc_within_spearman``
        :func:`mcc` of the block; floor: random rotations of the true block.
    ``weak_mcc``, ``weak_mcc_within``
        :func:`weak_mcc`.
    ``r2``, ``r2_within``
        Diagonal of :func:`block_r2`.
    ``leak_within``
        Off-diagonal of :func:`block_r2` within conditions; block ``"z_t -> z_x"`` says that
        estimated z_t holds true z_x. The ceiling is what the true blocks hold of one another.
    ``leak_within_max``, ``leak_within_mean``
        :func:`leakage`; block ``"all"``.
    ``dci_dimensions_*``, ``dci_blocks_*``
        :func:`dci` within conditions; block ``"all"``.

    Floors, where nothing else is said: condition means of the true block plus independent Normal
    noise of its standard deviations within conditions. Ceilings: the truth as the estimate.

    Raises
    ------
    ValueError
        The blocks differ in name or rows, an entry is not finite, a label is missing, there is one
        condition only, or too few cells are left in conditions of at least 7.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, t = rng.integers(2, size=(2, 2000))
    >>> truth = {"z_x": x[:, None] + rng.normal(size=(2000, 2)), "z_t": rng.normal(size=(2000, 1))}
    >>> noisy = {block: z + 0.5 * rng.normal(size=z.shape) for block, z in truth.items()}
    >>> table = identifiability_table(truth, noisy, x=x, t=t).set_index(["metric", "block"])
    >>> table.loc[("r2_within", "z_x"), ["value", "floor", "ceiling"]].round(1).abs().tolist()
    [0.8, 0.0, 1.0]
    """
    true, estimated = matrices(truth, "truth"), matrices(estimate, "estimate")
    _check_names(true, estimated)
    check_rows({"truth": next(iter(true.values())), "estimate": next(iter(estimated.values()))})
    codes = condition_codes(joint_codes(x, t), len(next(iter(true.values()))))
    label_only = _label_only(true, codes, seed=seed)
    columns = {
        "value": _scores(true, estimated, codes, seed=seed),
        "floor": _scores(true, label_only, codes, seed=seed) | _rotated(true, codes, seed=seed),
        "ceiling": _scores(true, true, codes, seed=seed),
    }
    return _by_metric(pd.DataFrame(columns))


def _check_names(truth: _Blocks, estimate: _Blocks) -> None:
    if set(truth) != set(estimate) or len(truth) < 2:
        raise ValueError(
            f"truth has blocks {list(truth)} and estimate {list(estimate)}, wanted the same names, "
            "two or more"
        )


def label_only_estimate(
    truth: npt.ArrayLike, condition: npt.ArrayLike, *, seed: int = 0
) -> FloatArray:
    """Latents that know the labels and nothing else: the floor of every measure.

    Parameters
    ----------
    truth
        ``(n_cells, n_dims)``.
    condition
        Label of each cell, ``(n_cells,)``.
    seed
        Of the noise.

    Returns
    -------
    ``(n_cells, n_dims)``: the truth's condition means, plus independent Normal noise with the
    truth's standard deviation within conditions.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, or there is one condition only.

    Examples
    --------
    >>> label_only_estimate([[1.0], [1.0], [4.0], [4.0]], ["a", "a", "b", "b"]).ravel()
    array([1., 1., 4., 4.])
    """
    values = matrix(truth, "truth")
    codes = condition_codes(condition, len(values))
    means = group_means(values, codes)[codes]
    noise = np.random.default_rng(seed).normal(size=values.shape)
    return means + (values - means).std(axis=0) * noise


def _label_only(truth: _Blocks, codes: Codes, *, seed: int) -> _Blocks:
    """All blocks, each with noise of its own."""
    return {
        block: label_only_estimate(values, codes, seed=seed + number)
        for number, (block, values) in enumerate(truth.items())
    }


def _rotated(truth: _Blocks, codes: Codes, *, seed: int) -> Scores:
    """Floors of the strong MCC."""
    return {
        (name, block): rotation_floor(z, method=method, condition=condition, seed=seed)
        for block, z in truth.items()
        for name, method, condition in _strong(codes)
    }


def _strong(codes: Codes) -> list[tuple[str, Method, Codes | None]]:
    """Name, correlation and condition of every form of the strong MCC."""
    methods: tuple[Method, ...] = ("pearson", "spearman")
    raw = [(f"mcc_{method}", method, None) for method in methods]
    return [*raw, *((f"mcc_within_{method}", method, codes) for method in methods)]


def _scores(truth: _Blocks, estimate: _Blocks, codes: Codes, *, seed: int) -> Scores:
    parts = dci(truth, estimate, condition=codes, seed=seed)
    importances = {
        (f"dci_{level}_{part}", "all"): float(parts.loc[level, part])
        for level in parts.index
        for part in parts.columns
    }
    return {
        **_mcc_scores(truth, estimate, codes, seed=seed),
        **_r2_scores(truth, estimate, codes, seed=seed),
        **importances,
    }


def _mcc_scores(truth: _Blocks, estimate: _Blocks, codes: Codes, *, seed: int) -> Scores:
    strong = {
        (name, block): mcc(z, estimate[block], method=method, condition=condition)
        for name, method, condition in _strong(codes)
        for block, z in truth.items()
    }
    weak = {
        (name, block): weak_mcc(z, estimate[block], condition=condition, seed=seed)
        for name, condition in (("weak_mcc", None), ("weak_mcc_within", codes))
        for block, z in truth.items()
    }
    return strong | weak


def _r2_scores(truth: _Blocks, estimate: _Blocks, codes: Codes, *, seed: int) -> Scores:
    raw = block_r2(truth, estimate, seed=seed)
    within = block_r2(truth, estimate, condition=codes, seed=seed)
    diagonals = {
        (name, block): float(table.loc[block, block])
        for name, table in (("r2", raw), ("r2_within", within))
        for block in truth
    }
    leaks = {
        ("leak_within", f"{a} -> {b}"): float(within.loc[a, b]) for a, b in permutations(truth, 2)
    }
    summary = {(f"leak_within_{name}", "all"): value for name, value in leakage(within).items()}
    return diagonals | leaks | summary


def agreement_between_seeds(
    fits: Sequence[Blocks], *, condition: npt.ArrayLike | None = None, seed: int = 0
) -> pd.DataFrame:
    """How far fits of different seeds found the same latents; needs no truth, so fits real data.

    Every fit is scored as an estimate of every other one, in both directions. What is identified
    agrees between fits; what agrees need not be the truth.

    Parameters
    ----------
    fits
        Two or more mappings of block name to ``(n_cells, n_dims)``, of the same blocks and cells.
    condition
        Labels, ``(n_cells,)``, for agreement *within conditions*: without them, fits agree already
        because both know the labels.
    seed
        Of the division of cells and the regressions.

    Returns
    -------
    Columns ``metric, block, mean, min, max`` over ordered pairs. Metrics: ``mcc`` and ``weak_mcc``
    (Pearson), ``r2`` (diagonal of :func:`block_r2`), ``leak`` (its off-diagonal, block
    ``"z_t -> z_x"``: one fit's z_t holds the other's z_x).

    Raises
    ------
    ValueError
        There are fewer than two fits, or they differ in blocks or cells; and as for
        :func:`block_r2`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> one = {"z_x": rng.normal(size=(2000, 2)), "z_t": rng.normal(size=(2000, 1))}
    >>> other = {"z_x": one["z_x"][:, ::-1], "z_t": -one["z_t"]}
    >>> table = agreement_between_seeds([one, other]).set_index(["metric", "block"])
    >>> table.loc[[("mcc", "z_x"), ("r2", "z_t")], "min"].round(2).tolist()
    [1.0, 1.0]
    """
    checked = [matrices(fit, f"fit {number}") for number, fit in enumerate(fits)]
    _check_fits(checked)
    scores = [_agreement(a, b, condition, seed=seed) for a, b in permutations(checked, 2)]
    return _by_metric(pd.DataFrame(scores).agg(["mean", "min", "max"]).T)


def _check_fits(fits: Sequence[_Blocks]) -> None:
    if len(fits) < 2:
        raise ValueError(f"got {len(fits)} fits, wanted two or more to compare")
    if any(set(fit) != set(fits[0]) for fit in fits):
        raise ValueError(f"fits must have the same blocks, got {[list(fit) for fit in fits]}")
    check_rows({f"fit {number}": next(iter(fit.values())) for number, fit in enumerate(fits)})


def _agreement(
    one: _Blocks, other: _Blocks, condition: npt.ArrayLike | None, *, seed: int
) -> Scores:
    table = block_r2(one, other, condition=condition, seed=seed)
    leaks = {("leak", f"{a} -> {b}"): float(table.loc[a, b]) for a, b in permutations(one, 2)}
    strong = {("mcc", block): mcc(z, other[block], condition=condition) for block, z in one.items()}
    weak = {
        ("weak_mcc", block): weak_mcc(z, other[block], condition=condition, seed=seed)
        for block, z in one.items()
    }
    return strong | weak | {("r2", block): float(table.loc[block, block]) for block in one} | leaks


def _by_metric(table: pd.DataFrame) -> pd.DataFrame:
    """Turn rows that are pairs of metric and block into two columns."""
    pairs = pd.MultiIndex.from_tuples(list(table.index), names=["metric", "block"])
    return table.set_axis(pairs).reset_index()
