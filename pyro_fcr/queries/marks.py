"""What supports an answer: whether training had the condition, or how much that is like it."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from pyro_fcr.data import Registry
from pyro_fcr.data.treatments import Dose, canonical_label, parse_agents


def support(
    registry: Registry, treatment: str, covariates: Mapping[str, str], *, dose: Dose = None
) -> float:
    """Score a treatment in a context: 1 if training had the pair, 0 if it had nothing like it.

    A pair that training had scores 1. Any other is the mean of three shares:

    - of the pair itself: 0;
    - of the treatment: in how many of the training contexts each of its agents was given, in
      combinations too, as a mean over agents;
    - of the context: how many of the training treatments each of its levels was seen under, as a
      mean over covariates.

    So an unseen pair scores 2/3 at most, and an agent known by its features only 1/3. A dose below
    or above the trained ones multiplies the score by its ratio to the nearest of them.

    Parameters
    ----------
    registry
        What was learnt from the training cells.
    treatment, dose
        The treatment or combination; its dose where the schema has doses.
    covariates
        A level for every covariate.

    Raises
    ------
    pyro_fcr.SchemaError
        The model cannot take an agent, level or dose; lists the known ones.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> unseen = (adata.obs["patient"] == "PW030") & (adata.obs["treatment"] != "control")
    >>> registry, _ = pyro_fcr.data.register(adata[~unseen], schema)
    >>> round(support(registry, "panobinostat", {"patient": "PW030"}), 2)  # 4 of 5, 1 of 2
    0.43
    """
    registry.is_extrapolated(treatment, covariates, dose=dose)  # the query is one that can be asked
    label = registry.canonical(treatment)
    context = {key: registry.level(key, covariates[key]) for key in registry.schema.covariate_keys}
    share = (_of_treatment(registry, label) + _of_context(registry, context)) / 3
    if any(each.treatment == label and each.covariates == context for each in registry.conditions):
        share = 1.0
    asked = registry.t.read(treatment, dose)
    ratios = [1.0]
    for agent, amount in zip(asked.agents, asked.doses, strict=False):  # without doses, no ratios
        if agent in registry.doses:  # one that was never trained has no scale of doses
            low, high = registry.doses[agent]
            ratios += [amount / low, high / amount]
    return share * min(ratios)


def _of_treatment(registry: Registry, label: str) -> float:
    n, shares = len({str(each.covariates) for each in registry.conditions}), []
    for agent in _agents(registry, label):
        given = (c for c in registry.conditions if agent in _agents(registry, c.treatment))
        shares.append(len({str(each.covariates) for each in given}) / n)
    return float(np.mean(shares))


def _of_context(registry: Registry, context: Mapping[str, str]) -> float:
    shares = []
    for key, level in context.items():
        seen = {each.treatment for each in registry.conditions if each.covariates[key] == level}
        shares.append(len(seen) / len(registry.treatments))
    return float(np.mean(shares))


def _agents(registry: Registry, label: str) -> tuple[str, ...]:
    return parse_agents(label, registry.schema) or (label,)


def mark(
    registry: Registry,
    treatment: str | None,
    covariates: Mapping[str, str],
    *,
    dose: Dose = None,
) -> dict[str, bool | float]:
    """Return whether training lacked a condition, and what supports an answer.

    What is left out of the condition (a treatment None, a covariate) may be anything that training
    had: the best supported counts.

    Returns
    -------
    ``extrapolated`` and ``support``; see :meth:`pyro_fcr.data.Registry.is_extrapolated` and
    :func:`support`.
    """
    if treatment is None or len(covariates) < len(registry.covariates):
        completed = [
            mark(
                registry,
                each.treatment if treatment is None else treatment,
                {**each.covariates, **covariates},
                dose=(each.dose or None) if treatment is None else dose,
            )
            for each in registry.conditions
        ]
        return max(completed, key=lambda marks: marks["support"])
    return {
        "extrapolated": registry.is_extrapolated(treatment, covariates, dose=dose),
        "support": support(registry, treatment, covariates, dose=dose),
    }


def condition_marks(
    obs: pd.DataFrame, registry: Registry, *, open_keys: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return what :func:`mark` says of each cell's condition, ``(n_cells,)`` each.

    Columns that are left open may hold whatever training had.
    """
    schema, some = registry.schema, registry.conditions[0]
    standing = {**registry.columns_of(some.treatment, some.dose or None), **some.covariates}
    design = registry.read_design(obs.assign(**{key: standing[key] for key in open_keys}))
    _, first, condition = np.unique(design.conditions, return_index=True, return_inverse=True)
    found = []
    for cell in first:
        agents, doses = design.treatments[design.t[cell]]
        levels = zip(schema.covariate_keys, design.contexts[design.x[cell]], strict=True)
        known = {key: level for key, level in levels if key not in open_keys}
        # An agent that was never trained has no dose.
        dose = [each or np.nan for each in doses] or None
        treatment = canonical_label(agents, schema)
        is_open = schema.treatment_key in open_keys
        found.append(mark(registry, None if is_open else treatment, known, dose=dose))
    return {name: np.array([marks[name] for marks in found])[condition] for name in found[0]}
