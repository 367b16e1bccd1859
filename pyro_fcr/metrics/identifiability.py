"""Are the latents the true ones? One table on simulated truth, agreement of fits without it.

Every number stands between its floor and its ceiling: what an estimate scores that knows only the
labels (for the strong MCC: that has the block but mixes its dimensions), and what the truth itself
scores through the same regression.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.arrays import Blocks, Codes, FloatArray
from pyro_fcr.metrics.recovery import (
    block_r2,
    block_r2_tables,
    leakage,
    mcc,
    rotation_floor,
    weak_mcc,
)
from pyro_fcr.metrics.regression import dci
from pyro_fcr.values import checked

Scores = dict[tuple[str, str], float]
_Blocks = dict[str, FloatArray]


@checked()
def identifiability_table(
    truth: Blocks,
    estimate: Blocks,
    *,
    x: ArrayLike,
    t: ArrayLike,
    supervised: Blocks | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure an estimate against simulated truth in every way, between floor and ceiling.

    *Within* conditions means: of the same x and t.

    Parameters
    ----------
    truth, estimate
        Block name to ``(n_cells, n_dims)``, of the same names. The dimensions may differ.
    x, t
        Covariate and treatment of each cell, ``(n_cells,)``; numbers or names.
    supervised
        What was predicted of the truth by a model that was trained on it, see
        :func:`pyro_fcr.metrics.supervised_latents`.
    seed
        Seed of the division of cells, the floors and the regressions.

    Returns
    -------
    Columns ``metric, block, value, floor, ceiling`` and, if it is given, ``supervised``: its own
    scores, of what noise leaves to be found. Metrics:

    ``mcc_pearson``, ``mcc_spearman``, ``mcc_within_pearson``, ``mcc_within_spearman``
        :func:`mcc` of the block; floor: random rotations of the true block.
    ``weak_mcc``, ``weak_mcc_within``
        :func:`weak_mcc`.
    ``r2``, ``r2_within``, ``r2_one_map``
        Diagonal of :func:`block_r2`; the last within conditions by one map for all of them.
    ``leak_within``, ``leak_one_map``
        Off-diagonal of the last two; block ``"z_t -> z_x"`` says that estimated z_t holds true z_x.
        The ceiling is what the true blocks hold of one another.
    ``leak_within_max``, ``leak_within_mean``, ``leak_one_map_max``, ``leak_one_map_mean``
        :func:`leakage`; block ``"all"``.
    ``dci_dimensions_*``, ``dci_blocks_*``
        :func:`dci` within conditions; block ``"all"``.

    Floors, unless another is named: condition means of the true block plus independent Normal
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
    true, estimated, codes = arrays.checked_blocks(truth, estimate, arrays.joint_codes(x, t))
    if set(true) != set(estimated) or len(true) < 2:
        raise ValueError(
            f"truth has blocks {list(true)} and estimate {list(estimated)}; expected the same "
            "names, two or more."
        )
    floors = _scores(true, _label_only(true, codes, seed=seed), codes, seed=seed)
    for name, form in _strong(codes).items():
        floors |= _each(name, rotation_floor, true, seed=seed, **form)
    columns = {
        "value": _scores(true, estimated, codes, seed=seed),
        "floor": floors,
        "ceiling": _scores(true, true, codes, seed=seed),
    }
    if supervised is not None:
        known = arrays.matrices(supervised, "supervised")
        columns["supervised"] = _scores(true, known, codes, seed=seed)
    return _by_metric(pd.DataFrame(columns))


def label_only_estimate(truth: ArrayLike, condition: ArrayLike, *, seed: int = 0) -> FloatArray:
    """Draw latents that know the labels and nothing else: the floor of every measure.

    Parameters
    ----------
    truth
        ``(n_cells, n_dims)``.
    condition
        Label of each cell, ``(n_cells,)``.
    seed
        Seed of the noise.

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
    values = arrays.matrix(truth, "truth")
    codes = arrays.condition_codes(condition, len(values))
    means = arrays.group_means(values, codes)[codes]
    noise = np.random.default_rng(seed).normal(size=values.shape)
    return means + (values - means).std(axis=0) * noise


def _label_only(truth: _Blocks, codes: Codes, *, seed: int) -> _Blocks:
    """Estimate all blocks from labels, each with noise of its own."""
    numbered = enumerate(truth.items())
    return {block: label_only_estimate(z, codes, seed=seed + i) for i, (block, z) in numbered}


def _strong(codes: Codes) -> dict[str, dict[str, Any]]:
    """Return name, correlation and condition of every form of the strong MCC."""
    return {
        "mcc_pearson": {"method": "pearson"},
        "mcc_spearman": {"method": "spearman"},
        "mcc_within_pearson": {"method": "pearson", "condition": codes},
        "mcc_within_spearman": {"method": "spearman", "condition": codes},
    }


def _scores(truth: _Blocks, estimate: _Blocks, codes: Codes, *, seed: int) -> Scores:
    scores: Scores = {}
    for name, form in _strong(codes).items():
        scores |= _each(name, mcc, truth, estimate, **form)
    scores |= _each("weak_mcc", weak_mcc, truth, estimate, seed=seed)
    scores |= _each("weak_mcc_within", weak_mcc, truth, estimate, condition=codes, seed=seed)
    scores |= _diagonal("r2", block_r2(truth, estimate, seed=seed))
    tables = block_r2_tables(truth, estimate, codes, seed=seed)
    for maps, table in zip(("within", "one_map"), tables, strict=True):
        scores |= _diagonal(f"r2_{maps}", table) | _leaks(f"leak_{maps}", table)
        scores |= {(f"leak_{maps}_{name}", "all"): v for name, v in leakage(table).items()}
    parts = dci(truth, estimate, condition=codes, seed=seed).stack()
    return scores | {(f"dci_{level}_{part}", "all"): v for (level, part), v in parts.items()}


def _each(name: str, score: Callable[..., float], *sides: _Blocks, **settings: Any) -> Scores:
    return {
        (name, block): score(*(side[block] for side in sides), **settings) for block in sides[0]
    }


def _diagonal(name: str, table: pd.DataFrame) -> Scores:
    return {(name, block): float(table.loc[block, block]) for block in table.columns}


def _leaks(name: str, table: pd.DataFrame) -> Scores:
    pairs = permutations(table.columns, 2)
    return {(name, f"{a} -> {b}"): float(table.loc[a, b]) for a, b in pairs}


@checked()
def agreement_between_seeds(
    fits: Sequence[Blocks], *, condition: ArrayLike | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure how far fits of different seeds found the same latents; no truth is needed.

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
        Seed of the division of cells and of the regressions.

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
    checked = [arrays.matrices(fit, f"fit {number}") for number, fit in enumerate(fits)]
    if len(fits) < 2:
        raise ValueError(f"got {len(fits)} fits; expected two or more to compare.")
    if any(set(fit) != set(checked[0]) for fit in checked):
        raise ValueError(f"fits must have the same blocks, got {[list(fit) for fit in checked]}.")
    scores = [_agreement(a, b, condition, seed=seed) for a, b in permutations(checked, 2)]
    return _by_metric(pd.DataFrame(scores).agg(["mean", "min", "max"]).T)


def _agreement(one: _Blocks, other: _Blocks, condition: ArrayLike | None, *, seed: int) -> Scores:
    table = block_r2(one, other, condition=condition, seed=seed)
    strong = _each("mcc", mcc, one, other, condition=condition)
    weak = _each("weak_mcc", weak_mcc, one, other, condition=condition, seed=seed)
    return strong | weak | _diagonal("r2", table) | _leaks("leak", table)


def _by_metric(table: pd.DataFrame) -> pd.DataFrame:
    """Turn rows that are pairs of metric and block into two columns."""
    pairs = pd.MultiIndex.from_tuples(list(table.index), names=["metric", "block"])
    return table.set_axis(pairs).reset_index()
