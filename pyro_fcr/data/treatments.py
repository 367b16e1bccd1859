"""Labels and doses as people write them -> agents and amounts."""

import math
import re
from collections.abc import Container, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.schema import Schema

_MOST_DOSES = 8  # of an agent that are strata of their own

Dose: TypeAlias = float | str | Sequence[float] | None


class Treatment(NamedTuple):
    """What a cell was given.

    Attributes
    ----------
    agents
        Single agents, sorted, without the control; empty for an untreated cell.
    doses
        One positive amount per agent, in the unit of the dose column, or 0 for an agent that was
        never trained and so has no dose scale; empty without doses.
    """

    agents: tuple[str, ...]
    doses: tuple[float, ...] = ()


def parse_treatment(
    label: str,
    schema: Schema,
    *,
    dose: Dose = None,
    where: str = "the query",
    untrained: Container[str] = (),
) -> Treatment:
    """Read one label with its dose.

    Parameters
    ----------
    label
        One agent, a combination in any order, or the control; `A+control` means `A`.
    schema
        Gives the control, the separator and whether there are doses.
    dose
        A number for each part alike, or one per part in the order of `label`, as a string with
        separators or as a sequence. Ignored without `schema.dose_key`.
    where
        The cell or query that a message names.
    untrained
        Agents that must have no dose.

    Raises
    ------
    SchemaError
        If a part is empty or repeated, or its dose is missing, not a number, negative, zero for a
        treated cell, or positive for a control; or if there is a dose that has no scale.
    """
    agents = parse_agents(label, schema, where=where)
    if schema.dose_key is None:
        return Treatment(agents)
    parts = _parts(label, schema, where)
    amounts = _amounts(dose, parts, schema, where)
    given = {}
    for part, amount in zip(parts, amounts, strict=True):
        check = _unscaled if part in untrained else _checked
        given[part] = check(part, amount, schema, where)
    return Treatment(agents, tuple(given[agent] for agent in agents))


def parse_agents(label: str, schema: Schema, *, where: str = "the query") -> tuple[str, ...]:
    """Return the sorted agents of a label, without the control.

    Raises
    ------
    SchemaError
        If a part is empty or repeated.
    """
    agents = [part for part in _parts(label, schema, where) if part != schema.control]
    if len(set(agents)) < len(agents):
        raise SchemaError(
            f"{schema.treatment_key!r} of {where}: {label!r} names an agent twice; "
            "name it once, with its total dose"
        )
    return tuple(sorted(agents))


def canonical_label(agents: Sequence[str], schema: Schema) -> str:
    """Return the one spelling of a treatment: sorted agents, or the control where there are none.

    With `control=None` there are always agents.
    """
    return (schema.separator or "").join(agents) if agents else str(schema.control)


def dose_strata(treatments: Sequence[Treatment]) -> npt.NDArray[np.int64]:
    """Assign treatments to strata, close doses to the same one where an agent has many.

    Penalties compare cells of the same stratum, and splits draw from each: a dose of its own for
    nearly every cell would leave strata of one cell. Such doses are put into eight bins by rank.

    Returns
    -------
    numpy.ndarray
        Shape (n_treatments,), int64, from 0.
    """
    doses: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    for treatment in treatments:
        doses.setdefault(treatment.agents, []).append(treatment.doses)
    bins = {agents: _dose_bins(known) for agents, known in doses.items()}
    keys = [(each.agents, bins[each.agents][each.doses]) for each in treatments]
    number = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _dose_bins(known: list[tuple[float, ...]]) -> dict[tuple[float, ...], tuple[float, ...]]:
    if len(known) <= _MOST_DOSES:
        return {doses: doses for doses in known}
    ranks = [
        {dose: rank * _MOST_DOSES // len(column) for rank, dose in enumerate(sorted(column))}
        for column in (set(amounts) for amounts in zip(*known, strict=True))
    ]
    return {
        doses: tuple(rank[dose] for dose, rank in zip(doses, ranks, strict=True)) for doses in known
    }


def _parts(label: str, schema: Schema, where: str) -> list[str]:
    label = str(label).strip()
    if schema.separator is None or label == schema.control:
        return [label]
    parts = [part.strip() for part in label.split(schema.separator)]
    if not all(parts):
        raise SchemaError(
            f"{schema.treatment_key!r} of {where}: {label!r} has an empty part around "
            f"{schema.separator!r}; rename it, or pass another separator (None takes every label "
            "as one agent)"
        )
    return parts


def _amounts(dose: Dose, parts: list[str], schema: Schema, where: str) -> list[float]:
    amounts = [_number(piece, dose, schema, where) for piece in _pieces(dose, schema)]
    if len(amounts) == 1 and len(parts) > 1:
        treated = [part for part in parts if part != schema.control] or parts
        return [amounts[0] if part in treated else math.nan for part in parts]
    if len(amounts) != len(parts):
        raise SchemaError(
            f"{schema.dose_key!r} of {where}: {dose!r} has {len(amounts)} doses for the "
            f"{len(parts)} parts {parts}; give one number, or one per part in the same order"
        )
    return amounts


def _pieces(dose: Dose, schema: Schema) -> Sequence[object]:
    if not isinstance(dose, str):
        return dose if isinstance(dose, Sequence) else [dose]
    if schema.separator is None:
        return [dose]
    # The plus of an exponent (1e+3) stands between no two doses.
    return re.split(rf"(?<![\d.][eE]){re.escape(schema.separator)}", dose)


def _number(piece: object, dose: Dose, schema: Schema, where: str) -> float:
    # Through str, float32 0.2 becomes 0.2 and not 0.20000000298, and booleans are refused.
    text = str(piece).strip()
    if piece is None or text in {"", "<NA>", "NaT", "None"}:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise SchemaError(
            f"{schema.dose_key!r} of {where}: found {dose!r}, wanted a number; "
            "keep the amounts only, without units or words, all in one unit"
        ) from None


def _unscaled(part: str, amount: float, schema: Schema, where: str) -> float:
    if math.isnan(amount):
        return 0.0
    raise SchemaError(
        f"{schema.dose_key!r} of {where}: {part!r} has the dose {amount:g} but no training cells, "
        "and doses of a never-trained agent have no scale; leave its dose empty (it then counts "
        "like a largest trained dose), or train with it"
    )


def _checked(part: str, amount: float, schema: Schema, where: str) -> float:
    place = f"{schema.dose_key!r} of {where}"
    if amount < 0 or math.isinf(amount):
        raise SchemaError(
            f"{place}: found {amount:g}, wanted a finite number of 0 or more; correct the "
            f"column, or drop the cells"
        )
    if part == schema.control and amount > 0:
        raise SchemaError(
            f"{place}: the control {part!r} has the dose {amount:g}, wanted 0 or nothing; set it "
            f"to 0, or give the cell another label in {schema.treatment_key!r}"
        )
    if part != schema.control and not amount > 0:
        found = "no dose" if math.isnan(amount) else "the dose 0"
        untreated = "" if schema.control is None else f" (untreated cells: {schema.control!r})"
        raise SchemaError(
            f"{place}: the treatment {part!r} has {found}, wanted a positive number; fill it in, "
            f"relabel the cell in {schema.treatment_key!r}{untreated}, or leave dose_key out"
        )
    return amount
