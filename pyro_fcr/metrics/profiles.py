"""Mean expression of groups of cells on two scales, its sampling noise, and predicted changes.

``mean_log1p`` is the mean over cells of log1p expression, the field's usual scale. It depends on
library sizes even after scaling, since log1p bends small counts: a treatment that only makes
libraries shallower has a response on it. ``log1p_mean`` is log1p of the mean of scaled expression
(cells scaled to one library size, natural logarithm), which depth moves far less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.preprocessing import StandardScaler, normalize

from pyro_fcr.data.io import whole_matrix
from pyro_fcr.data.schema import Expression, Schema
from pyro_fcr.metrics.arrays import FloatArray

Scale = Literal["mean_log1p", "log1p_mean"]
SCALES: tuple[Scale, ...] = get_args(Scale)
Values: TypeAlias = FloatArray | sparse.csr_matrix

_LIBRARY = 1e4  # counts that every cell is scaled to


def log_values(matrix: Any, *, expression: Expression = "counts") -> Values:
    """Return every cell's log1p expression, ``(n_cells, n_genes)``, float64.

    Parameters
    ----------
    matrix
        Counts, which are scaled to 10,000 a cell, or log1p values, which stay as they are; dense or
        sparse. Not changed. A cell without any count stays at zero.
    expression
        What the matrix holds: ``"counts"`` or ``"log1p"``.

    Raises
    ------
    ValueError
        The matrix has no cells, or entries that are negative (of counts) or not finite.

    Examples
    --------
    >>> log_values(np.array([[1, 1]])).round(2)
    array([[8.52, 8.52]])
    """
    is_sparse = sparse.issparse(matrix)
    values: Any = (sparse.csr_matrix if is_sparse else np.asarray)(matrix, dtype=np.float64)
    if values.ndim != 2 or not values.shape[0]:
        raise ValueError(f"{expression} must be cells x genes, got shape {values.shape}.")
    entries = values.data if is_sparse else values
    if not np.isfinite(entries).all():
        raise ValueError(f"{expression} must be numbers; some entries are not finite.")
    if expression == "log1p":
        return values
    if (entries < 0).any():
        raise ValueError("counts must be 0 or more; pass raw counts, not log values.")
    if is_sparse and not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    return np.log1p(_LIBRARY * normalize(values, norm="l1"))


def values_of(adata: AnnData, schema: Schema) -> Values:
    """Return :func:`log_values` of the matrix that a schema names."""
    return log_values(whole_matrix(adata, schema), expression=schema.expression)


def profile(values: Values, scale: Scale, *, weights: ArrayLike | None = None) -> FloatArray:
    """Average cells on one of the scales.

    Parameters
    ----------
    values
        Log1p expression, ``(n_cells, n_genes)``, see :func:`log_values`.
    scale
        ``"mean_log1p"`` or ``"log1p_mean"``.
    weights
        Weights of the cells, each row adding up to 1, ``(n_rows, n_cells)``; None weighs all
        cells alike.

    Returns
    -------
    ``(n_rows, n_genes)``, or ``(n_genes,)`` without weights.

    Examples
    --------
    >>> profile(np.log1p([[1.0, 0.0], [3.0, 0.0]]), "log1p_mean").round(3)
    array([1.099, 0.   ])
    """
    linear: Any = np.expm1(values) if scale == "log1p_mean" else values
    if weights is None:
        mean = np.asarray(linear.mean(axis=0)).ravel()
    else:
        mean = np.asarray(weights) @ linear
    return np.log1p(mean) if scale == "log1p_mean" else mean


def bootstrap_weights(n_cells: int, n_draws: int, *, rng: np.random.Generator) -> FloatArray:
    """Weigh cells as they are, and as in samples of as many with replacement.

    Returns
    -------
    ``(1 + n_draws, n_cells)``, each row adding up to 1; the first is the cells as they are.

    Examples
    --------
    >>> weights = bootstrap_weights(4, 2, rng=np.random.default_rng(0))
    >>> weights[0], weights.sum(axis=1)
    (array([0.25, 0.25, 0.25, 0.25]), array([1., 1., 1.]))
    """
    even = np.full(n_cells, 1.0 / n_cells)
    return np.vstack([even, rng.multinomial(n_cells, even, size=n_draws) / n_cells])


def half_weights(n_cells: int, n_splits: int, *, rng: np.random.Generator) -> FloatArray:
    """Weigh the cells of random halves, the other half's weights second.

    Returns
    -------
    ``(2, n_splits, n_cells)``, each row adding up to 1.

    Raises
    ------
    ValueError
        There are fewer than two cells.

    Examples
    --------
    >>> a, b = half_weights(4, 1, rng=np.random.default_rng(0))
    >>> (a + b).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    if n_cells < 2:
        raise ValueError(f"{n_cells} cell cannot be halved; at least two are needed.")
    first = rng.permuted(np.tile(np.arange(n_cells), (n_splits, 1)), axis=1) < n_cells // 2
    return np.stack([half / half.sum(axis=1, keepdims=True) for half in (first, ~first)])


def t_statistics(values: Values, others: Values) -> FloatArray:
    """Return Welch's t statistic of each gene between two groups of cells, ``(n_genes,)``.

    A gene without spread in both groups has 0.

    Parameters
    ----------
    values, others
        Log1p expression, ``(n_cells, n_genes)``, two cells or more.

    Examples
    --------
    >>> t_statistics(np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]]))
    array([2.])
    """
    one, other = (StandardScaler(with_mean=False).fit(each) for each in (values, others))
    squares = [each.var_ / (each.n_samples_seen_ - 1) for each in (one, other)]
    error = np.sqrt(np.sum(squares, axis=0))
    return np.divide(one.mean_ - other.mean_, error, out=np.zeros_like(error), where=error > 0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted response; see :func:`predicted_cells` for one made of cells.

    Parameters
    ----------
    change
        Predicted change against control, by scale, ``(n_genes,)`` each; a scale may be missing.
    cells
        Log1p expression of predicted treated cells, ``(n_cells, n_genes)``, or None.
    parts
        Predictions from separate draws of the cells, of which this one is the mean: how much they
        differ says how many draws it takes. None are needed.

    Raises
    ------
    ValueError
        No change is given, or an entry is not finite.
    """

    change: Mapping[Scale, FloatArray]
    cells: Values | None = None
    parts: "Sequence[Prediction]" = ()

    def __post_init__(self) -> None:
        if not self.change or set(self.change) - set(SCALES):
            raise ValueError(f"change is given on {list(self.change)}; expected some of {SCALES}.")
        if len({np.size(change) for change in self.change.values()}) > 1:
            raise ValueError("The changes on the two scales differ in their number of genes.")
        for scale, change in self.change.items():
            if np.ndim(change) != 1 or not np.isfinite(change).all():
                raise ValueError(f"The change on {scale} must be a vector of finite numbers.")

    @property
    def n_genes(self) -> int:
        """Number of genes, the same on every scale."""
        return len(next(iter(self.change.values())))


@dataclass(frozen=True, eq=False)
class TreatedOnly:
    """A predicted treated state, from a method that predicts no control beside it.

    Parameters
    ----------
    mean
        Predicted profile by scale, ``(n_genes,)`` each, see :func:`profile`; a scale may be
        missing.
    cells
        Log1p expression of the predicted cells, ``(n_cells, n_genes)``, or None.
    """

    mean: Mapping[Scale, FloatArray]
    cells: Values | None = None

    def against(self, control: Mapping[Scale, FloatArray]) -> Prediction:
        """Return the change against a control profile, ``(n_genes,)`` by scale.

        Examples
        --------
        >>> state = TreatedOnly({"mean_log1p": np.array([1.0, 2.0])})
        >>> state.against({"mean_log1p": np.ones(2)}).change["mean_log1p"]
        array([0., 1.])
        """
        change = {scale: mean - control[scale] for scale, mean in self.mean.items()}
        return Prediction(change, self.cells)

    @property
    def n_genes(self) -> int:
        """Number of genes, the same on every scale."""
        return len(next(iter(self.mean.values())))


@dataclass(frozen=True, eq=False)
class Mixture:
    """A model's prediction averaged with a baseline's, which differs with the cells that it sees.

    Parameters
    ----------
    fit
        The model's.
    simple
        Name of the baseline.
    weight
        Weight of the model's, by scale.
    """

    fit: Prediction
    simple: str
    weight: Mapping[Scale, float]

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.fit.n_genes

    def with_simple(self, simple: Prediction) -> Prediction:
        """Average with what the baseline predicts; cells of the model are shifted."""
        change = {
            scale: share * self.fit.change[scale] + (1 - share) * simple.change[scale]
            for scale, share in self.weight.items()
        }
        cells = self.fit.cells
        if cells is not None:
            dense = cells if isinstance(cells, np.ndarray) else cells.toarray()
            cells = dense + (change["mean_log1p"] - self.fit.change["mean_log1p"])
        return Prediction(change, cells)


def predicted_cells(
    treated: Any, untreated: Any, *, expression: Expression = "counts", n_draws: int = 1
) -> Prediction:
    """Turn cells drawn from a model into a prediction.

    Parameters
    ----------
    treated, untreated
        Predicted cells of the pair and of its control, as AnnData (their ``X``) or matrices,
        ``(n_cells, n_genes)``. Both from the model, so that what it fails to reconstruct cancels.
    expression
        Whether they are counts or log1p values.
    n_draws
        How many draws of each cell stand below one another; with several, each is a part of the
        prediction.

    Examples
    --------
    >>> prediction = predicted_cells(np.array([[3, 1]]), np.array([[1, 1]]))
    >>> prediction.change["mean_log1p"].round(2)
    array([ 0.41, -0.69])
    """
    cells, control = (
        log_values(each.X if isinstance(each, AnnData) else each, expression=expression)
        for each in (treated, untreated)
    )
    draws = range(n_draws) if n_draws > 1 else ()
    parts = tuple(Prediction(_change(cells[i::n_draws], control[i::n_draws])) for i in draws)
    return Prediction(_change(cells, control), cells, parts)


def _change(cells: Values, control: Values) -> dict[Scale, FloatArray]:
    return {scale: profile(cells, scale) - profile(control, scale) for scale in SCALES}
