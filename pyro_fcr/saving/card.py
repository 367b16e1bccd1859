"""The model card: what a model was fitted to, how it was checked, what to ask it and what not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from pyro_fcr.data import Condition, Registry
from pyro_fcr.data.errors import listed

_MOST = 20  # names in a list

_HEAD = """\
---
library_name: pyro-fcr
tags: [single-cell, perturbation, causal-representation, pyro]
---
"""
_LIMITS = """\
- A response is causal only if nothing else that reaches expression goes with the treatment. Where
  treatment and library, plate or donor coincide, no model can tell them apart.
- Answers for pairs of treatment and context that training lacked are marked `extrapolated`; how
  good they are, a fit does not say: hold pairs out and look at `fcr.evaluate()` and its baselines.
- Claim interactions from `pyro_fcr.cross_fit` and `pyro_fcr.rank_interactions`, not from `z_tx`.
  The spread of effects within one fit is no test.
- For research on cells like those of training, not for decisions about patients."""


def model_card(registry: Registry, record: Mapping[str, Any], history: pd.DataFrame | None) -> str:
    """Write the card of a model in Markdown.

    Parameters
    ----------
    registry
        What was learnt from the data.
    record
        The record that is saved: ``programs``, ``architecture``, ``versions`` and ``notes``, which
        are words of the user in Markdown.
    history
        Table of the fit, with its findings in ``attrs``, or None.
    """
    sections = {
        "Data": _data(registry),
        "Design": _design(record),
        "Checks": _checks(history),
        "Questions": _questions(registry),
        "Limits": [_LIMITS],
        "Versions": [", ".join(f"{name} {each}" for name, each in record["versions"].items())],
    }
    n_contexts = len({tuple(each.covariates.values()) for each in registry.conditions})
    title = f"# FCR of {len(registry.treatments)} treatments in {n_contexts} contexts"
    parts = [_HEAD + title, record["notes"].strip() or "No notes were written about this model."]
    parts += ["\n".join([f"## {name}", "", *lines]) for name, lines in sections.items()]
    return "\n\n".join(parts) + "\n"


def _data(registry: Registry) -> Iterator[str]:
    schema, conditions = registry.schema, registry.conditions
    sizes = [each.n_cells for each in conditions]
    yield (
        f"- {sum(sizes)} cells (a part of them held out), {len(registry.genes)} genes "
        f"({schema.expression}), {len(conditions)} conditions of {min(sizes)} to {max(sizes)} cells"
    )
    control = "none" if schema.control is None else _code([schema.control])
    names = [name for name in registry.treatments if name != schema.control]
    yield f"- treatments ({_code([schema.treatment_key])}; control: {control}): {_code(names)}"
    for key, levels in registry.covariates.items():
        yield f"- contexts ({_code([key])}): {_code(levels)}"
    for agent, (low, high) in registry.doses.items():
        yield f"- doses of {_code([agent])}: {low:g} to {high:g}"
    yield f"- pairs that training lacked: {_code(_missing(conditions))}"


def _missing(conditions: Iterable[Condition]) -> list[str]:
    """Name the pairs of a treatment and a context, both seen, that no training cell has."""
    pairs = {(each.treatment, tuple(each.covariates.values())) for each in conditions}
    contexts = dict.fromkeys(x for _, x in sorted(pairs))
    return [
        f"{t} in {', '.join(x)}"
        for t in dict.fromkeys(each.treatment for each in conditions)
        for x in contexts
        if (t, x) not in pairs
    ]


def _design(record: Mapping[str, Any]) -> Iterator[str]:
    yield "- programs: " + _code(record["programs"].values())
    for name, value in (record["architecture"] or {}).items():
        yield f"- {name}: {value}"


def _checks(history: pd.DataFrame | None) -> Iterator[str]:
    if history is None:
        yield "- never fitted"
        return
    found, best = history.attrs, history.attrs.get("best_epoch")
    yield f"- {len(history)} epochs: {found.get('stopped', 'how they ended is unknown')}"
    if "heldout/elbo" in history and best in history.index:
        elbo = history.loc[best, "heldout/elbo"]
        yield f"- held-out ELBO: {elbo:.2f} nats per cell, of epoch {best}"
    yield "- " + found.get("separation", {}).get("line", "Whether the blocks are apart is unknown.")
    if slope := found.get("calibration", {}).get("slope"):
        yield (
            f"- Counterfactuals of control cells give back {slope:.2f} of the change that training "
            "saw (1 is right)."
        )
    else:
        yield "- Whether counterfactuals give back what training saw is unknown."
    yield "- Predictions of pairs that training lacked are no part of these checks."


def _questions(registry: Registry) -> Iterator[str]:
    yield "How would cells of these contexts respond to these treatments, in total and by block?"
    last = registry.conditions[-1]
    dose = last.dose[0] if len(last.dose) == 1 else list(last.dose)
    asked = [_literal(last.treatment), *([f"dose={dose}"] if last.dose else [])]
    asked.append(f"covariates={_literal(dict(last.covariates))}")
    yield "\n".join(
        [
            "",
            "```python",
            "import pyro_fcr",
            "",
            'fcr = pyro_fcr.FCR.load(".")  # the folder of this card; no data are needed',
            f"cells = fcr.predict({', '.join(asked)})",
            "```",
        ]
    )


def _literal(value: object) -> str:
    """Write names as Python does, in double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _code(names: Iterable[object]) -> str:
    """List names as code, each on one line."""
    texts = [" ".join(str(name).replace("`", "'").split()) for name in names]
    return listed([f"`{text}`" for text in texts], _MOST, quoted=False)
