"""Predicted responses: a model's, and those that every model has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from pyro_fcr.data.schema import Expression
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.baselines import BASELINES, Components, ConditionMeans, Context
from pyro_fcr.metrics.profiles import SCALES, Scale, Values, log_values, profile


@dataclass(frozen=True, eq=False)
class Prediction:
    """A predicted response; see :func:`predicted_cells` for one made of cells.

    Parameters
    ----------
    change
        Predicted change against control, by scale, ``(n_genes,)`` each; a scale may be missing.
    cells
        Log1p expression of predicted treated cells, ``(n_cells, n_genes)``, or None.

    Raises
    ------
    ValueError
        There is no change, or an entry that is not finite.
    """

    change: Mapping[Scale, FloatArray]
    cells: Values | None = None

    def __post_init__(self) -> None:
        if not self.change or set(self.change) - set(SCALES):
            raise ValueError(f"change is given on {list(self.change)}, wanted some of {SCALES}")
        for scale, change in self.change.items():
            if np.ndim(change) != 1 or not np.isfinite(change).all():
                raise ValueError(f"the predicted change on {scale} is no vector of finite numbers")


def predicted_cells(
    treated: Any, untreated: Any, *, expression: Expression = "counts"
) -> Prediction:
    """Make a prediction of cells drawn from a model.

    Parameters
    ----------
    treated, untreated
        Predicted cells of the pair and of its control, as AnnData (their ``X``) or matrices,
        ``(n_cells, n_genes)``. Both from the model, so that what it fails to reconstruct cancels.
    expression
        Whether they are counts or log1p values.

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
    return Prediction(
        {scale: profile(cells, scale) - profile(control, scale) for scale in SCALES}, cells
    )


def baseline_predictions(
    training: Mapping[Scale, ConditionMeans],
    treatment: Components,
    context: Context,
    *,
    control: Values,
) -> dict[str, Prediction]:
    """Predict a response with every baseline that the training conditions define.

    Parameters
    ----------
    training
        Means of the training conditions, by scale.
    treatment, context
        The condition to predict.
    control
        Log1p expression of the context's control cells; shifted by the predicted change of mean
        log1p they are the predicted cells.

    Examples
    --------
    >>> means = ConditionMeans(
    ...     treatments=((), ("A",), ()),
    ...     contexts=(("u",), ("u",), ("v",)),
    ...     n_cells=np.ones(3),
    ...     means=np.array([[0.0], [1.0], [2.0]]),
    ... )
    >>> found = baseline_predictions(
    ...     {"mean_log1p": means}, ("A",), ("v",), control=np.array([[2.0]])
    ... )
    >>> {name: prediction.cells.tolist() for name, prediction in found.items()}["additive"]
    [[3.0]]
    """
    cells = control if isinstance(control, np.ndarray) else control.toarray()
    found = {}
    for name, baseline in BASELINES.items():
        change = {s: baseline.predict(means, treatment, context) for s, means in training.items()}
        if all(np.isfinite(values).all() for values in change.values()):
            shifted = cells + change["mean_log1p"] if "mean_log1p" in change else None
            found[name] = Prediction(change, shifted)
    return found
