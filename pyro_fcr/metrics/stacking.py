"""A model's answer and a simple one, weighed by how they did on pairs that both were asked blindly.

Their errors have different causes: a model is wrong where it learnt too little or too much of a
pair, a regression on condition means where responses differ in ways that few conditions tell. Their
weighted mean is often nearer to the truth than either (Wolpert 1992, Neural Networks 5:241; for
weights that add up to 1, Breiman 1996, Machine Learning 24:49).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_fcr.metrics.profiles import Scale
from pyro_fcr.metrics.response_table import REAL


@dataclass(frozen=True, eq=False)
class Stack:
    """How much a model weighs beside a simple method.

    Parameters
    ----------
    model, simple
        The two methods.
    weight
        The model's weight by scale, from all pairs, between 0 and 1.
    left_out
        The same for each pair from the other pairs alone: a row per pair, a column per scale.
    """

    model: str
    simple: str
    weight: Mapping[Scale, float]
    left_out: pd.DataFrame

    def mix(
        self,
        model: Mapping[Scale, np.ndarray],
        simple: Mapping[Scale, np.ndarray],
        *,
        weight: Mapping[Scale, float] | None = None,
    ) -> dict[Scale, np.ndarray]:
        """Average two predicted changes on each scale, ``(n_genes,)`` each."""
        share = self.weight if weight is None else weight
        return {s: share[s] * model[s] + (1 - share[s]) * simple[s] for s in share}


def stack(
    changes: Mapping[Scale, pd.DataFrame], *, model: str = "fcr", simple: str = "ridge"
) -> Stack:
    """Find the weight of a model beside a simple method, by predictions of pairs left out of both.

    Parameters
    ----------
    changes
        By scale, predicted and measured changes, see
        :attr:`pyro_fcr.metrics.ResponseTable.changes`; of measured ones that share no cell with the
        predictions.
    model, simple
        The two methods.

    Returns
    -------
    The weights of least squared error, each pair's error relative to the size of its response. Half
    and half counts as one more pair, so that one or two pairs do not decide alone.

    Raises
    ------
    ValueError
        A method is not among the changes of every pair.

    Examples
    --------
    >>> names = ["scenario", "treatment", "context", "method"]
    >>> levels = [["unseen pair"], ["A"], ["u", "v"], ["real", "fcr", "ridge"]]
    >>> index = pd.MultiIndex.from_product(levels, names=names)
    >>> rows = [[1.0, 0.0], [0.8, 0.2], [1.2, -0.2]] * 2
    >>> found = stack({"mean_log1p": pd.DataFrame(rows, index=index)})
    >>> found.weight
    {'mean_log1p': 0.5}
    """
    products = {}
    for scale, table in changes.items():
        wide = {name: _rows(table, name) for name in (REAL, model, simple)}
        if any(len(rows) < len(wide[REAL]) for rows in wide.values()):
            raise ValueError(f"{model!r} or {simple!r} has no prediction of some pair.")
        real = wide[REAL].to_numpy()
        m, s = (wide[name].loc[wide[REAL].index].to_numpy() for name in (model, simple))
        size = np.maximum((real**2).sum(axis=1), 1e-12)
        products[scale] = (
            ((m - s) * (real - s)).sum(axis=1) / size,
            ((m - s) ** 2).sum(axis=1) / size,
        )
        index = wide[REAL].index
    weights = {scale: _weight(*pair) for scale, pair in products.items()}
    left_out = pd.DataFrame(
        {
            scale: [_weight(np.delete(a, i), np.delete(b, i)) for i in range(len(a))]
            for scale, (a, b) in products.items()
        },
        index=index,
    )
    return Stack(model, simple, weights, left_out)


def _rows(table: pd.DataFrame, method: str) -> pd.DataFrame:
    return table[table.index.get_level_values("method") == method].droplevel("method")


def _weight(inner: np.ndarray, square: np.ndarray) -> float:
    """Return the least-squares weight with half and half as one pair of average size more."""
    more = square.mean() if len(square) and square.sum() > 0 else 1.0
    return float(np.clip((inner.sum() + 0.5 * more) / (square.sum() + more), 0.0, 1.0))
