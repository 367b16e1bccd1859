"""What a response would be without a model: the predictions that a model has to beat.

Each baseline sees the means of the training conditions only and predicts the change of one
condition, a treatment in a context, against the control cells of that context, ``(n_genes,)``. It
is nan where the training conditions do not define it. A function that is decorated with
:func:`baseline` is in every table, figure and page that shows baselines, with its words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from sklearn.linear_model import RidgeCV

from pyro_fcr.data.pairs import Layout, Mask
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.metrics.profiles import Prediction, Scale, Values, profile

Components: TypeAlias = tuple[str, ...]
Context: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class ConditionMeans:
    """Mean expression of every training condition, one row per condition.

    Parameters
    ----------
    treatments
        Agents of each condition's treatment in alphabetical order: ``()`` for control,
        ``("A", "B")`` for ``"A+B"`` and ``"B+A"``.
    contexts
        Covariate levels of each condition, in the order of the covariate keys.
    n_cells
        ``(n_conditions,)`` numbers of cells.
    means
        ``(n_conditions, n_genes)`` mean expression, on one scale.
    """

    treatments: tuple[Components, ...]
    contexts: tuple[Context, ...]
    n_cells: FloatArray
    means: FloatArray

    def find(self, treatment: Components, context: Context) -> int | None:
        """Return the row of a condition, or None where the data have no cell of it."""
        rows = zip(self.treatments, self.contexts, strict=True)
        return next((i for i, row in enumerate(rows) if row == (treatment, context)), None)

    def shifts(
        self, treatment: Components | None = None, context: Context | None = None
    ) -> dict[tuple[Components, Context], FloatArray]:
        """Return the changes against control, ``(n_genes,)`` each, by treatment and context.

        Parameters
        ----------
        treatment, context
            The one to look at; None takes all. Conditions without control cells are left out.
        """
        found = {}
        for i, row in enumerate(zip(self.treatments, self.contexts, strict=True)):
            control = self.find((), row[1])
            wanted = treatment in (None, row[0]) and context in (None, row[1])
            if row[0] and wanted and control is not None:
                found[row] = self.means[i] - self.means[control]
        return found

    def mean_shift(
        self, treatment: Components | None = None, context: Context | None = None
    ) -> FloatArray:
        """Average :meth:`shifts`, each condition weighing the same, ``(n_genes,)``; or nan."""
        seen = self.shifts(treatment, context)
        if not seen:
            return np.full(self.means.shape[1], np.nan)
        return np.mean([seen[row] for row in sorted(seen)], axis=0)


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


Predict: TypeAlias = Callable[[ConditionMeans, Components, Context], FloatArray]


@dataclass(frozen=True)
class Baseline:
    """A prediction without a model, and what it is in words."""

    words: str
    predict: Predict


BASELINES: Final[dict[str, Baseline]] = {}
"""Each baseline by name, in the order in which tables show them."""


def baseline(words: str) -> Callable[[Predict], Predict]:
    """Put a function into :data:`BASELINES` under its own name.

    Parameters
    ----------
    words
        What it predicts with, for tables and pages.
    """

    def add(predict: Predict) -> Predict:
        BASELINES[predict.__name__] = Baseline(words, predict)
        return predict

    return add


@baseline("no change")
def control_mean(conditions: ConditionMeans, treatment: Components, context: Context) -> FloatArray:
    """Return zeros: the control mean of the context stands for the treated mean."""
    return np.zeros(conditions.means.shape[1])


@baseline("mean change of the context's other treatments")
def context_mean_shift(
    conditions: ConditionMeans, treatment: Components, context: Context
) -> FloatArray:
    """Average the changes under all treatments that the context was seen under."""
    return conditions.mean_shift(context=context)


@baseline("mean change of the treatment over its other contexts")
def treatment_mean_shift(
    conditions: ConditionMeans, treatment: Components, context: Context
) -> FloatArray:
    """Average the treatment's changes over the contexts where it was seen beside control."""
    return conditions.mean_shift(treatment)


@baseline("covariate effect + treatment effect, no interaction")
def additive(conditions: ConditionMeans, treatment: Components, context: Context) -> FloatArray:
    """Return the treatment's effect in a fit of covariates + treatments without interaction.

    Ordinary least squares on the cells' values, with one effect per level of each covariate and one
    per agent; the effects of a combination's agents add up. Cells of one condition share their row
    of the design, so the fit needs only the condition means, weighted by their cells. The change is
    the sum of the agents' fitted effects: fitted treated minus *fitted* control of the context,
    which in an additive model is the same in every context. The noise of the context's own control
    mean does not enter. It is nan where an agent was never seen, or only where nothing separates it
    from a covariate or another agent.
    """
    levels = sorted({pair for each in conditions.contexts for pair in enumerate(each)})
    agents = _agents(conditions.treatments, treatment)
    places = [[float(level == each[i]) for i, level in levels] for each in conditions.contexts]
    weights = np.sqrt(conditions.n_cells)[:, None]
    design = np.hstack([places, agents[:-1]]) * weights
    contrast = np.concatenate([np.zeros(len(levels)), agents[-1]])
    inverse = np.linalg.pinv(design)
    # A contrast is estimable if and only if it lies in the row space of the design.
    if not np.allclose(contrast @ inverse @ design, contrast):
        return np.full(conditions.means.shape[1], np.nan)
    return contrast @ inverse @ (conditions.means * weights)


_PENALTIES: Final = 10.0 ** np.arange(-3.0, 3.5, 0.5)


@baseline("ridge regression on treatment and context")
def ridge(conditions: ConditionMeans, treatment: Components, context: Context) -> FloatArray:
    """Predict the change from other conditions' changes, by ridge regression.

    Features of a condition are its agents, the principal components of its context's control
    profile, and the products of the two; the intercept is not penalised. Penalty, and whether the
    context counts at all, have the smallest error in predicting each training condition from the
    others (leave-one-out, Allen 1974, Technometrics 16:125). All genes share them. Agents that were
    never seen add nothing to the mean of all. It is nan where no training condition has a control
    beside it, or the context has none.

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
    if conditions.find((), context) is None:
        return np.full(conditions.means.shape[1], np.nan)
    if len(shifts := conditions.shifts()) < 2:
        return conditions.mean_shift()
    agents = _agents([row[0] for row in shifts], treatment)
    states = _states(conditions, [*(row[1] for row in shifts), context])
    products = (agents[:, :, None] * states[:, None]).reshape(len(agents), -1)
    fits = []
    for features in (agents, np.hstack([agents, states, products])):
        fit = RidgeCV(_PENALTIES).fit(features[:-1], np.array(list(shifts.values())))
        fits.append((-fit.best_score_, fit.predict(features[-1:]).ravel()))
    return min(fits, key=lambda found: found[0])[1]


@baseline("the pair's own training cells")
def condition_mean(
    conditions: ConditionMeans, treatment: Components, context: Context
) -> FloatArray:
    """Return the change of the condition's own training cells, where there are some."""
    return conditions.mean_shift(treatment, context)


def _agents(treatments: Sequence[Components], asked: Components) -> FloatArray:
    """Return which treatment has which of their agents, the one asked for last."""
    names = sorted({agent for parts in (*treatments, asked) for agent in parts})
    return np.array([[float(name in parts) for name in names] for parts in (*treatments, asked)])


def _states(conditions: ConditionMeans, contexts: Sequence[Context]) -> FloatArray:
    """Return principal components of the contexts' control profiles, of mean square length 1."""
    names = list(dict.fromkeys(contexts))
    found = [conditions.find((), name) for name in names]
    controls = conditions.means[[row for row in found if row is not None]]
    left, size, _ = np.linalg.svd(controls - controls.mean(axis=0), full_matrices=False)
    scale = np.sqrt(max((size**2).sum() / len(names), 1e-12))
    return (left * size / scale)[[names.index(context) for context in contexts]]


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
