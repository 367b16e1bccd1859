"""Ridge regression of responses on the treatment and on the untreated state of the context."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np

from pyro_fcr.metrics.baselines import Components, ConditionMeans, Context
from pyro_fcr.metrics.metrics import FloatArray

_PENALTIES: Final = tuple(10.0**power for power in np.arange(-3.0, 3.5, 0.5))
_CONTEXT_WEIGHTS: Final = (0.0, 1.0)


def ridge(conditions: ConditionMeans, treatment: Components, context: Context) -> FloatArray:
    """Predict a change against control from other conditions' changes, by ridge regression.

    Features of a condition are its agents, the principal components of its context's control
    profile, and the products of the two; the intercept is not penalised. Penalty, and whether the
    context counts at all, have the smallest error in predicting each training condition from the
    others (leave-one-out, Allen 1974, Technometrics 16:125). All genes share them. With as many
    components as contexts the fit needs only the profiles' inner products (dual form: Saunders,
    Gammerman and Vovk 1998, ICML).

    Parameters
    ----------
    conditions
        Training conditions, with control cells of the context.
    treatment, context
        The held-out condition; agents that were never seen add nothing to the mean of all.

    Returns
    -------
    ``(n_genes,)`` on the scale of the means; nan where no training condition has a control beside
    it, or the context has none.

    Examples
    --------
    >>> conditions = ConditionMeans(
    ...     treatments=((), ("A",), (), ("A",), ()),
    ...     contexts=(("u",), ("u",), ("v",), ("v",), ("w",)),
    ...     n_cells=np.ones(5),
    ...     means=np.array([[0.0], [1.0], [2.0], [3.0], [1.0]]),
    ... )
    >>> ridge(conditions, ("A",), ("w",)).round(2)
    array([1.])
    """
    rows = list(zip(conditions.treatments, conditions.contexts, strict=True))
    shifts = {row: conditions.shift(*row) for row in rows if row[0]}
    seen = {row: shift for row, shift in shifts.items() if shift is not None}
    if not seen or conditions.find((), context) is None:
        return np.full(conditions.means.shape[1], np.nan)
    target = np.array(list(seen.values()))
    wanted = [*seen, (treatment, context)]
    agents, contexts = _agent_kernel([t for t, _ in wanted]), _context_kernel(conditions, wanted)
    fits = [
        _fit(agents + weight * contexts * (1.0 + agents), target, penalty)
        for penalty, weight in product(_PENALTIES, _CONTEXT_WEIGHTS)
    ]
    return min(fits, key=lambda fit: fit[0])[1]


def _agent_kernel(treatments: Sequence[Components]) -> FloatArray:
    """How many agents each two treatments share."""
    return np.array([[float(len(set(a) & set(b))) for b in treatments] for a in treatments])


def _context_kernel(
    conditions: ConditionMeans, wanted: Sequence[tuple[Components, Context]]
) -> FloatArray:
    """Inner products of the contexts' centred control profiles, on average 1 with themselves."""
    names = list(dict.fromkeys(context for _, context in wanted))
    found = [conditions.find((), context) for context in names]
    controls = conditions.means[[row for row in found if row is not None]]
    centred = controls - controls.mean(axis=0)
    inner = centred @ centred.T
    at = [names.index(context) for _, context in wanted]
    return inner[np.ix_(at, at)] / max(np.trace(inner) / len(names), 1e-12)


def _fit(kernel: FloatArray, target: FloatArray, penalty: float) -> tuple[float, FloatArray]:
    """Leave-one-out error of the training rows, and the prediction for the last row."""
    n = len(target)
    centre = np.eye(n) - 1.0 / n
    inverse = np.linalg.inv(centre @ kernel[:n, :n] @ centre + penalty * np.eye(n))
    hat = 1.0 / n + centre @ kernel[:n, :n] @ centre @ inverse
    left = np.maximum(1.0 - np.diag(hat), 1e-9)[:, None]
    error = (((target - hat @ target) / left) ** 2).sum()
    mean = target.mean(axis=0)
    new = (kernel[n, :n] - kernel[:n, :n].mean(axis=0)) @ centre
    return float(error), mean + new @ inverse @ (target - mean)
