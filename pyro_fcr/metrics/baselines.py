"""What a held-out response would be without a model: the predictions that a model has to beat.

A held-out condition is a treatment in a context (one level of each covariate) whose treated cells
were kept from training. Each baseline sees the training cells only and predicts the *delta* of
that condition: the change of mean log1p expression against the control cells of the same context,
``(n_genes,)``. All of them need no more than the mean of each condition, see `condition_means`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from pyro_fcr.metrics.metrics import FloatArray, log1p_normalise

Components = tuple[str, ...]
Context = tuple[str, ...]


@dataclass(frozen=True)
class ConditionMeans:
    """Mean log1p expression of every condition of a data set, one row per condition.

    Parameters
    ----------
    treatments
        Components of each condition's treatment in alphabetical order: ``()`` for control,
        ``("A", "B")`` for ``"A+B"`` and ``"B+A"``.
    contexts
        Covariate levels of each condition, in the order of the covariate keys.
    n_cells
        ``(n_conditions,)`` number of cells.
    means
        ``(n_conditions, n_genes)`` mean log1p expression.
    """

    treatments: tuple[Components, ...]
    contexts: tuple[Context, ...]
    n_cells: FloatArray
    means: FloatArray

    def find(self, treatment: Components, context: Context) -> int | None:
        """Row of a condition, or None where the data have no cell of it."""
        rows = zip(self.treatments, self.contexts, strict=True)
        return next((i for i, row in enumerate(rows) if row == (treatment, context)), None)

    def shift(self, treatment: Components, context: Context) -> FloatArray | None:
        """Change against control within `context`, ``(n_genes,)``; None where either is missing."""
        treated, untreated = self.find(treatment, context), self.find((), context)
        if treated is None or untreated is None:
            return None
        return self.means[treated] - self.means[untreated]


def components(treatment: str, *, control: str) -> Components:
    """Split a treatment label into its agents: the field's ``A+B`` convention.

    Parameters
    ----------
    treatment
        A label such as ``"A"`` or ``"A+B"``.
    control
        The label of untreated cells, dropped also as a part (``"A+control"`` is ``"A"``).

    Returns
    -------
    The agents in alphabetical order, so that the order in the label does not matter.

    Examples
    --------
    >>> components("KLF1+BAK1", control="control"), components("control", control="control")
    (('BAK1', 'KLF1'), ())
    """
    if treatment == control:
        return ()
    parts = (part.strip() for part in treatment.split("+"))
    return tuple(sorted(part for part in parts if part and part != control))


def condition_means(
    adata: AnnData,
    *,
    treatment_key: str,
    covariate_keys: Sequence[str],
    control: str,
    layer: str | None = None,
) -> ConditionMeans:
    """Mean log1p expression per treatment and context.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or in a layer; not changed.
    treatment_key, covariate_keys
        Columns of ``obs``. The dose is not looked at: where it varies, let the label contain it.
    control
        Label of untreated cells in `treatment_key`.
    layer
        Layer with the raw counts; None for ``X``.

    Raises
    ------
    ValueError
        If a column is missing or has missing entries, or the counts are not valid.
    """
    labels = _labels(adata, (treatment_key, *covariate_keys))
    agents = {label: components(label, control=control) for label in labels[treatment_key].unique()}
    labels[treatment_key] = labels[treatment_key].map({k: "+".join(v) for k, v in agents.items()})
    groups = labels.groupby(list(labels.columns), sort=True)
    n_cells = groups.size()
    values = log1p_normalise(adata.X if layer is None else adata.layers[layer])
    return ConditionMeans(
        treatments=tuple(tuple(key[0].split("+")) if key[0] else () for key in n_cells.index),
        contexts=tuple(tuple(key[1:]) for key in n_cells.index),
        n_cells=n_cells.to_numpy().astype(np.float64),
        means=_group_means(values, groups.ngroup().to_numpy(), n_cells.to_numpy()),
    )


def _labels(adata: AnnData, keys: Sequence[str]) -> pd.DataFrame:
    for key in keys:
        if key not in adata.obs:
            raise ValueError(f"no column {key!r} in adata.obs, found {list(adata.obs.columns)}")
        if missing := int(adata.obs[key].isna().sum()):
            raise ValueError(
                f"adata.obs[{key!r}] is missing for {missing} cells: drop or fill them"
            )
    return pd.DataFrame({key: adata.obs[key].astype(str) for key in keys})


def _group_means(
    values: FloatArray | sparse.csr_matrix, groups: np.ndarray, n_cells: np.ndarray
) -> FloatArray:
    shape = (len(n_cells), len(groups))
    weights = 1.0 / n_cells[groups]
    indicator = sparse.csr_matrix((weights, (groups, np.arange(len(groups)))), shape=shape)
    means = indicator @ values
    return means.toarray() if sparse.issparse(means) else np.asarray(means)


def control_mean(conditions: ConditionMeans) -> FloatArray:
    """No change: the control mean of the context stands for the treated mean; zeros."""
    return np.zeros(conditions.means.shape[1])


def treatment_mean_shift(conditions: ConditionMeans, treatment: Components) -> FloatArray:
    """Mean of the treatment's shift over the contexts where it was seen beside control.

    Parameters
    ----------
    conditions
        Training conditions, without the held-out one.
    treatment
        Components of the held-out treatment, see `components`.

    Returns
    -------
    ``(n_genes,)``, each context weighing the same; nan where no context has the treatment.
    """
    shifts = [conditions.shift(treatment, context) for context in sorted(set(conditions.contexts))]
    seen = [shift for shift in shifts if shift is not None]
    return np.mean(seen, axis=0) if seen else np.full(conditions.means.shape[1], np.nan)


def context_mean_shift(conditions: ConditionMeans, context: Context) -> FloatArray:
    """Mean of the shifts of all treatments that the context was seen under.

    Parameters
    ----------
    conditions
        Training conditions, without the held-out one.
    context
        Covariate levels of the held-out context.

    Returns
    -------
    ``(n_genes,)``, each treatment weighing the same; nan where the context has none.
    """
    treatments = sorted({treatment for treatment in conditions.treatments if treatment})
    shifts = [conditions.shift(treatment, context) for treatment in treatments]
    seen = [shift for shift in shifts if shift is not None]
    return np.mean(seen, axis=0) if seen else np.full(conditions.means.shape[1], np.nan)


def additive(conditions: ConditionMeans, treatment: Components) -> FloatArray:
    """Effect of the treatment in a fit of covariates + treatments without interaction.

    Ordinary least squares on the cells' log1p values, with one effect per level of each covariate
    and one per agent; the effects of a combination's agents add up. Cells of one condition share
    their row of the design, so the fit needs only the condition means, weighted by their cells.
    The delta is the sum of the agents' fitted effects: fitted treated minus *fitted* control of
    the context, which in an additive model is the same in every context. The noise of the
    context's own control mean does not enter.

    Parameters
    ----------
    conditions
        Training conditions, without the held-out one.
    treatment
        Components of the held-out treatment, see `components`.

    Returns
    -------
    ``(n_genes,)``; nan where the training conditions do not determine the effect, because an agent
    was never seen, or only where nothing separates it from a covariate or another agent.
    """
    design, contrast = _additive_design(conditions, treatment)
    weights = np.sqrt(conditions.n_cells)[:, None]
    inverse = np.linalg.pinv(design * weights)
    # A contrast is estimable if and only if it lies in the row space of the design.
    if contrast is None or not np.allclose(contrast @ inverse @ (design * weights), contrast):
        return np.full(conditions.means.shape[1], np.nan)
    return contrast @ inverse @ (conditions.means * weights)


def _additive_design(
    conditions: ConditionMeans, treatment: Components
) -> tuple[FloatArray, FloatArray | None]:
    """One row per condition, and the columns' weights in the treatment's effect."""
    agents = sorted({agent for parts in conditions.treatments for agent in parts})
    levels = sorted({pair for context in conditions.contexts for pair in enumerate(context)})
    design = np.array(
        [
            [float((i, level) == (i, context[i])) for i, level in levels]
            + [float(parts.count(agent)) for agent in agents]
            for parts, context in zip(conditions.treatments, conditions.contexts, strict=True)
        ]
    )
    if not set(treatment) <= set(agents):
        return design, None
    return design, np.array(
        [0.0] * len(levels) + [float(treatment.count(agent)) for agent in agents]
    )


def baseline_deltas(
    adata: AnnData,
    *,
    treatment_key: str,
    covariate_keys: Sequence[str],
    control: str,
    treatment: str,
    covariates: Mapping[str, str],
    layer: str | None = None,
) -> dict[str, FloatArray]:
    """Predict the response of a held-out condition with every baseline.

    Parameters
    ----------
    adata
        **Training** cells with raw counts, among them the control cells of the held-out context
        and none of its treated cells. Not changed.
    treatment_key, covariate_keys
        Columns of ``obs``.
    control
        Label of untreated cells in `treatment_key`.
    treatment
        Held-out treatment, such as ``"A"`` or ``"A+B"`` (the order of agents does not matter).
    covariates
        Level of each covariate of the held-out context.
    layer
        Layer with the raw counts; None for ``X``.

    Returns
    -------
    ``control_mean``, `treatment_mean_shift` and `additive`, each a predicted change of mean log1p
    expression, ``(n_genes,)``, to be held against real treated mean - real control mean of the
    context. All nan where a baseline is not defined (a combination never seen elsewhere has no
    mean shift; an agent never seen has no additive effect).

    Raises
    ------
    ValueError
        If the training data contain cells of the held-out condition, lack control cells of its
        context (also where a level is misspelt), or lack a column.

    Examples
    --------
    >>> conditions = [("l1", "none"), ("l2", "none"), ("l2", "drug")]
    >>> training = AnnData(
    ...     np.array([[50, 50], [40, 60], [60, 40]]),
    ...     obs=pd.DataFrame(conditions, columns=["line", "agent"], index=["1", "2", "3"]),
    ... )
    >>> deltas = baseline_deltas(
    ...     training,
    ...     treatment_key="agent",
    ...     covariate_keys=("line",),
    ...     control="none",
    ...     treatment="drug",
    ...     covariates={"line": "l1"},
    ... )
    >>> {name: delta.round(2).tolist() for name, delta in deltas.items()}
    {'control_mean': [0.0, 0.0], 'treatment_mean_shift': [0.41, -0.41], 'additive': [0.41, -0.41]}
    """
    held_out = components(treatment, control=control)
    if not held_out:
        raise ValueError(f"the held-out treatment {treatment!r} is the control: no response")
    if set(covariates) != set(covariate_keys):
        raise ValueError(f"covariates must name {list(covariate_keys)}, got {list(covariates)}")
    conditions = condition_means(
        adata,
        treatment_key=treatment_key,
        covariate_keys=covariate_keys,
        control=control,
        layer=layer,
    )
    context = tuple(str(covariates[key]) for key in covariate_keys)
    place = ", ".join(
        f"{key}={level!r}" for key, level in zip(covariate_keys, context, strict=True)
    )
    _check_held_out(conditions, held_out, context, f"{treatment_key}={treatment!r}, {place}")
    return {
        "control_mean": control_mean(conditions),
        "treatment_mean_shift": treatment_mean_shift(conditions, held_out),
        "additive": additive(conditions, held_out),
    }


def _check_held_out(
    conditions: ConditionMeans, treatment: Components, context: Context, name: str
) -> None:
    leaked = conditions.find(treatment, context)
    if leaked is not None:
        raise ValueError(
            f"the training data contain {int(conditions.n_cells[leaked])} cells of the held-out "
            f"condition ({name}): drop them before computing baselines"
        )
    if conditions.find((), context) is None:
        known = [
            c for t, c in zip(conditions.treatments, conditions.contexts, strict=True) if not t
        ]
        raise ValueError(
            f"the training data have no control cells in the context of the held-out condition "
            f"({name}); contexts with control cells: {known}"
        )
