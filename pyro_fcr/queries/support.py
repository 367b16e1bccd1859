"""How much of what an answer rests on was seen in training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyro_fcr.data import Registry
from pyro_fcr.data.treatments import Dose, parse_agents, parse_treatment


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
        An agent, level or dose is none that the model can take.

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
    context = {key: covariates[key] for key in registry.schema.covariate_keys}
    same = (each for each in registry.conditions if each.treatment == label)
    if any(dict(each.covariates) == context for each in same):
        share = 1.0
    else:
        share = (_of_treatment(registry, label) + _of_context(registry, context)) / 3
    return share * _of_dose(registry, treatment, dose)


def _of_treatment(registry: Registry, label: str) -> float:
    contexts: dict[str, set[tuple[str, ...]]] = {}
    for each in registry.conditions:
        for agent in _agents(registry, each.treatment):
            contexts.setdefault(agent, set()).add(tuple(each.covariates.values()))
    n = len({tuple(each.covariates.values()) for each in registry.conditions})
    return float(np.mean([len(contexts.get(a, ())) / n for a in _agents(registry, label)]))


def _of_context(registry: Registry, context: Mapping[str, str]) -> float:
    shares = []
    for key, level in context.items():
        seen = {each.treatment for each in registry.conditions if each.covariates[key] == level}
        shares.append(len(seen) / len(registry.treatments))
    return float(np.mean(shares))


def _of_dose(registry: Registry, treatment: str, dose: Dose) -> float:
    if registry.schema.dose_key is None or dose is None:
        return 1.0
    agents = parse_agents(treatment, registry.schema)
    untrained = set(agents) - set(registry.doses)
    asked = parse_treatment(treatment, registry.schema, dose=dose, untrained=untrained)
    ratios = [1.0]
    for agent, amount in zip(asked.agents, asked.doses, strict=True):
        if agent not in untrained:
            low, high = registry.doses[agent]
            ratios.append(min(amount / low, high / amount, 1.0))
    return min(ratios)


def _agents(registry: Registry, label: str) -> tuple[str, ...]:
    return parse_agents(label, registry.schema) or (label,)
