"""How close predicted responses are to real ones, for many draws of the real cells at once.

All scores compare a *predicted change* with the *real change* against control cells of the same
context, on one of the scales of `pyro_fcr.metrics.profiles`; last axis genes, any axes before.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial.distance import cdist

from pyro_fcr.metrics.arrays import FloatArray


@dataclass(frozen=True)
class Score:
    """What a score means; the defaults are those of a correlation.

    Parameters
    ----------
    title, scope
        Name and scope in the head of a table.
    words
        Definition with its source.
    higher_is_better
        Direction.
    lowest, highest
        Ends of its range.
    undefined
        Value that a prediction without direction (constant, zero) counts as when methods are
        compared; None where there is no such prediction.
    noise
        How it depends on the noise of what is compared: as a ``"correlation"``, as a ``"square"``,
        or in no known way.
    """

    title: str
    scope: str
    words: str
    higher_is_better: bool = True
    lowest: float = -1.0
    highest: float = 1.0
    undefined: float | None = None
    noise: Literal["correlation", "square"] | None = None

    def of_halves(self, scores: FloatArray) -> FloatArray:
        """Turn scores of halves of the cells into those of a perfect prediction of all of them."""
        if self.noise == "correlation":
            known = np.clip(scores, 0.0, 1.0)
            return np.sqrt(2 * known / (1 + known))
        return scores / 4 if self.noise == "square" else scores

    @property
    def sign(self) -> float:
        """Factor that makes higher values the better ones."""
        return 1.0 if self.higher_is_better else -1.0


_correlation = partial(Score, undefined=0.0, noise="correlation")
_error = partial(Score, higher_is_better=False, lowest=0.0, highest=np.inf, noise="square")

SCORES: Final[dict[str, Score]] = {
    "cosine_logfc": _correlation(
        "cosine",
        "all genes",
        "Cosine of the angle between the changes of all genes (PerturBench: Wu et al. 2024, "
        "arXiv 2408.10609).",
    ),
    "pearson_delta": _correlation(
        "Pearson r",
        "all genes",
        "Pearson correlation of the changes of all genes (GEARS: Roohani et al. 2024, Nature "
        "Biotechnology 42:927).",
    ),
    "pearson_delta_de100": _correlation(
        "Pearson r",
        "100 genes of largest change",
        "The same over the 100 genes of largest real change.",
    ),
    "pearson_vs_treated": _correlation(
        "Pearson r",
        "beyond the mean response",
        "Pearson correlation of what differs from the mean change of the treated training "
        "conditions, so that a response that all of them share does not flatter (after Systema: "
        "Viñas Torné et al. 2025, Nature Biotechnology, doi 10.1038/s41587-025-02777-8, there with "
        "the mean of perturbed cells in place of each context's controls + mean change).",
    ),
    "mse_delta": _error("squared error", "all genes", "Mean squared difference over all genes."),
    "wmse_delta": _error(
        "squared error",
        "weighted by response",
        "Squared difference weighted by genes: |t| between real treated and control cells, brought "
        "to 0 to 1, squared, adding up to 1 (Mejía et al. 2025, Diversity by Design, "
        "arXiv 2506.22641, there against all other perturbations).",
    ),
    "discrimination": Score(
        "discrimination",
        "0.5 is chance",
        "Share of the other pairs whose real change is farther from the prediction than the right "
        "one, ties half; 0.5 is chance (Euclidean; rank of PerturBench, perturbation "
        "discrimination score of the Virtual Cell Challenge: Roohani et al. 2025, Cell).",
        lowest=0.0,
    ),
    "e_distance": _error(
        "E‑distance",
        "of populations",
        "Energy distance between predicted and real treated cells in log1p expression, see "
        "`pyro_fcr.metrics.e_distance`.",
        lowest=-np.inf,
        noise=None,
    ),
}


def largest_changes(real_delta: ArrayLike, n_genes: int) -> NDArray[np.intp]:
    """Return the positions of the `n_genes` genes of largest absolute change, largest first.

    Parameters
    ----------
    real_delta
        ``(n_genes,)`` changes; among equal ones the earlier gene comes first.
    n_genes
        How many to return; all where there are fewer.

    Examples
    --------
    >>> largest_changes([0.1, -3.0, 2.0], 2).tolist()
    [1, 2]
    """
    return np.argsort(-np.abs(np.asarray(real_delta)), kind="stable")[:n_genes]


def change_scores(
    predicted: FloatArray, real: FloatArray, *, reference: FloatArray, weights: FloatArray
) -> dict[str, FloatArray]:
    """Score predicted changes, all but ``discrimination`` and ``e_distance``.

    Parameters
    ----------
    predicted, real
        Changes against control, ``(..., n_genes)``; ``(n_genes,)`` of the first goes with all rows
        of the second. The 100 genes of largest change are those of the first row of `real`.
    reference
        Mean change of the treated training conditions, ``(n_genes,)``.
    weights
        Weights of the genes, see :func:`gene_weights`.

    Returns
    -------
    Score of each row, ``(...,)``, by the names of :data:`SCORES`; nan for a correlation with what
    is constant.

    Examples
    --------
    >>> change = np.array([1.0, 0.0, -2.0])
    >>> found = change_scores(change, 2 * change, reference=np.ones(3), weights=np.ones(3) / 3)
    >>> {name: float(value.round(2)) for name, value in found.items()}["cosine_logfc"]
    1.0
    """
    top = largest_changes(real.reshape(-1, real.shape[-1])[0], 100)
    squares = (predicted - real) ** 2
    return {
        "cosine_logfc": cosine(predicted, real),
        "pearson_delta": pearson(predicted, real),
        "pearson_delta_de100": pearson(predicted[..., top], real[..., top]),
        "pearson_vs_treated": pearson(predicted - reference, real - reference, of=reference),
        "mse_delta": squares.mean(axis=-1),
        "wmse_delta": squares @ weights,
    }


def gene_weights(t: ArrayLike) -> FloatArray:
    """Weigh genes by how surely they respond, as in ``wmse_delta``.

    Parameters
    ----------
    t
        t statistics between treated and control cells, ``(n_genes,)``.

    Returns
    -------
    ``(n_genes,)``, adding up to 1; even where all genes respond alike.

    Examples
    --------
    >>> gene_weights([1.0, -3.0, 2.0])
    array([0. , 0.8, 0.2])
    """
    size = np.abs(np.asarray(t, dtype=np.float64))
    spread = np.ptp(size)
    weights = ((size - size.min()) / spread) ** 2 if spread > 0 else np.ones_like(size)
    return weights / weights.sum()


def discrimination(predicted: FloatArray, real: FloatArray, others: FloatArray) -> FloatArray:
    """Return the share of other changes that are farther from the prediction than the right one.

    Parameters
    ----------
    predicted, real
        See :func:`change_scores`.
    others
        Real changes of other pairs, ``(n_others, ..., n_genes)``.

    Returns
    -------
    ``(...,)``, between 0 and 1, ties half; nan without others.

    Examples
    --------
    >>> real, others = np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.1]])
    >>> float(discrimination(np.array([0.9, 0.2]), real, others))
    0.5
    """
    shape = np.broadcast_shapes(predicted.shape, real.shape)[:-1]
    if not len(others):
        return np.full(shape, np.nan)
    right, wrong = (_distance(predicted, values) for values in (real, others))
    return np.broadcast_to(((wrong > right) + 0.5 * (wrong == right)).mean(axis=0), shape)


def _distance(predicted: FloatArray, real: FloatArray) -> FloatArray:
    """Return squared distances less the prediction's own square; one formula keeps ties ties."""
    return (real**2).sum(axis=-1) - 2 * (real * predicted).sum(axis=-1)


def e_distance(
    predicted: Any, real: Any, *, weights: ArrayLike | None = None
) -> FloatArray | float:
    """Return the energy distance between two groups of cells.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` with Euclidean distances (Székely and Rizzo 2013, JSPI
    143:1249; for perturbed cells Peidli et al. 2024, Nature Methods 21:531, there with squared
    distances). The means within a group leave out a cell's distance to itself, so that the value is
    unbiased, and may be slightly negative for populations that are the same.

    Parameters
    ----------
    predicted, real
        Expression of cells on one scale, such as log1p, ``(n_cells, n_genes)``, dense or sparse;
        two cells or more.
    weights
        Weights of the real cells, each row adding up to 1, ``(n_rows, n_cells)``, see
        `pyro_fcr.metrics.profiles.bootstrap_weights`; None weighs all the same.

    Returns
    -------
    On the scale of the expression: a number, or ``(n_rows,)`` with weights.

    Raises
    ------
    ValueError
        A group has fewer than two cells, or the genes differ in number.

    Examples
    --------
    >>> e_distance(np.array([[0.0], [0.0]]), np.array([[3.0], [3.0]]))
    6.0
    """
    x, y = (np.asarray(g.toarray() if sparse.issparse(g) else g) for g in (predicted, real))
    if len(x) < 2 or len(y) < 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"predicted and real must be 2 cells or more of the same genes, got {x.shape} and "
            f"{y.shape}."
        )
    w = np.full((1, len(y)), 1.0 / len(y)) if weights is None else np.asarray(weights)
    across = w @ cdist(y, x).mean(axis=1)
    inside_x = cdist(x, x).sum() / (len(x) * (len(x) - 1))
    inside_y = ((w @ cdist(y, y)) * w).sum(axis=1) * len(y) / (len(y) - 1)
    distance = 2 * across - inside_x - inside_y
    return float(distance[0]) if weights is None else distance


def cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the cosine of the angle over the last axis; nan where one side is zero."""
    norm = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    inner = (a * b).sum(axis=-1)
    return np.divide(inner, norm, out=np.full(np.shape(inner), np.nan), where=norm > 0)


def pearson(a: FloatArray, b: FloatArray, *, of: FloatArray | None = None) -> FloatArray:
    """Correlate over the last axis; nan where a side is constant, or all rounding beside `of`."""
    size = 0.0 if of is None else np.abs(of).max()
    centred = [values - values.mean(axis=-1, keepdims=True) for values in (a, b)]
    constant = [
        np.ptp(values, axis=-1) <= 1e-9 * np.maximum(np.abs(values).max(axis=-1), size)
        for values in (a, b)
    ]
    return np.where(constant[0] | constant[1], np.nan, cosine(*centred))
