"""Labels and doses as people write them -> agents and amounts -> rows of t."""

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.labels import label_text, split_parts
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.values import several

_MOST_DOSES = 8  # of an agent that are strata of their own
_DOSE_TOLERANCE = 1e-6

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
    control_dose: float = 0.0,
) -> Treatment:
    """Read one label with its dose.

    Parameters
    ----------
    label
        One agent, a combination in any order, or the control; `A+control` means `A`.
    schema
        Has the control, the separator and whether there are doses.
    dose
        A number for each part alike, or one per part in the order of `label`, as a string with
        separators or as a sequence. Ignored without `schema.dose_key`.
    where
        The cell or query that a message names.
    untrained
        Agents that must have no dose.
    control_dose
        The number that stands for the dose of control, beside 0 and nothing.

    Raises
    ------
    SchemaError
        If a part is empty or repeated, or its dose is missing, not a number, negative, zero for a
        treated cell, or positive for a control; or if there is a dose that has no scale.
    """
    agents = parse_agents(label, schema, where=where)
    if schema.dose_key is None:
        return Treatment(agents)
    given, place = {}, f"{schema.dose_key!r} of {where}"
    for part, amount in _dosed_parts(label, dose, schema, where):
        if part in untrained:
            given[part] = _unscaled(part, amount, place)
        elif part != schema.control or amount != control_dose:
            _check_dose(part, amount, schema, place)
        given.setdefault(part, amount)
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


def control_doses(label: str, dose: Dose, schema: Schema, *, where: str) -> set[float]:
    """Return what a label's dose says of its control parts; nothing given counts as 0."""
    parts = _dosed_parts(label, dose, schema, where)
    amounts = (amount for part, amount in parts if part == schema.control)
    return {0.0 if math.isnan(amount) else amount for amount in amounts}


def canonical_label(agents: Sequence[str], schema: Schema) -> str:
    """Return the one spelling of a treatment: sorted agents, or the control where there are none.

    With `control=None` there are always agents.
    """
    return (schema.separator or "").join(agents) if agents else str(schema.control)


def dose_text(dose: Dose, schema: Schema) -> Any:
    """Return a dose as a column has it: a number, or the amounts of the parts as one text."""
    pieces = _pieces(dose, schema)
    if len(pieces) == 1:
        return pieces[0]
    texts = [label_text(piece, where="dose") for piece in pieces]
    return (schema.separator or "+").join(texts)


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


@dataclass(frozen=True)
class TreatmentEncoding:
    """What each agent counts in t.

    Parameters
    ----------
    schema
        Meaning of labels and doses, and the features of agents, if any.
    agents
        Agents of the training cells, sorted.
    doses
        Smallest and largest positive training dose of each; empty without doses.
    """

    schema: Schema
    agents: tuple[str, ...]
    doses: Mapping[str, tuple[float, float]]

    @property
    def width(self) -> int:
        """Number of columns of t."""
        rows = self._features.values()
        return len(next(iter(rows))) if rows else len(self.agents)

    @cached_property
    def untrained(self) -> frozenset[str]:
        """Agents that are known by their features only."""
        return frozenset(self._features) - set(self.agents)

    @property
    def control_dose(self) -> float:
        """The number that stands for the dose of control, 0 if there is none."""
        return self.doses.get(str(self.schema.control), (0.0, 0.0))[1]

    def read(self, label: str, dose: Dose = None) -> Treatment:
        """Read the treatment of a query; without a dose, agents have their only trained one.

        Raises
        ------
        SchemaError
            If an agent is unknown, or the dose is missing, wrong, or must not be given.
        """
        treatment = self.read_agents(label)
        if self.schema.dose_key is None:
            if dose is not None:
                raise SchemaError(
                    f"dose {dose!r} of {label!r}: the data were registered without doses; leave "
                    "dose out, or register with dose_key"
                )
            return treatment
        if dose is None:
            return Treatment(treatment.agents, tuple(map(self._only_dose, treatment.agents)))
        return parse_treatment(
            label,
            self.schema,
            dose=dose,
            untrained=self.untrained,
            control_dose=self.control_dose,
        )

    def read_agents(self, label: str) -> Treatment:
        """Read the label of a query; raise if an agent is unknown."""
        treatment = Treatment(parse_agents(label, self.schema))
        self.check(treatment, where="the query")
        return treatment

    def check(self, treatment: Treatment, *, where: str) -> None:
        """Raise if an agent was never seen in training or, with features, has none."""
        lack, lesson = "was not in the training cells", "with it"
        if self._features:
            lack, lesson = "has no row in treatment_features", "with a table that has it"
        for agent in treatment.agents:
            if agent not in self._known:
                raise SchemaError(
                    f"{self.schema.treatment_key!r} of {where}: {agent!r} {lack}; known: "
                    f"{listed(self._known, 20)}.{did_you_mean(agent, self._known)} Rename it, drop "
                    f"its cells, or train {lesson}"
                )

    def row(self, treatment: Treatment) -> npt.NDArray[np.float32]:
        """Return the row of t, shape (width,); the agents must be known."""
        row = np.zeros(self.width)
        amounts = treatment.doses or (0.0,) * len(treatment.agents)
        for agent, dose in zip(treatment.agents, amounts, strict=True):
            factor = _scaled(dose, *self.doses[agent]) if dose else 1.0
            if self._features:
                row += factor * self._features[agent]
            else:
                row[self.agents.index(agent)] = factor
        return row.astype(np.float32)

    def is_outside(self, treatment: Treatment) -> bool:
        """Tell whether the dose of an agent is outside its trained range."""
        # Without a dose column the doses are empty, and so is the zip.
        return any(
            not low * (1 - _DOSE_TOLERANCE) <= dose <= high * (1 + _DOSE_TOLERANCE)
            for agent, dose in zip(treatment.agents, treatment.doses, strict=False)
            for low, high in [self.doses[agent]]
        )

    @cached_property
    def _features(self) -> dict[str, npt.NDArray[np.float64]]:
        return {agent: np.array(row) for agent, row in self.schema.treatment_features or ()}

    @cached_property
    def _known(self) -> dict[str, None]:
        control = self.schema.control
        agents = self._features or self.agents
        return dict.fromkeys(agents if control is None else (*agents, control))

    def _only_dose(self, agent: str) -> float:
        if agent in self.untrained:
            return 0.0
        low, high = self.doses[agent]
        if low < high:
            raise SchemaError(
                f"no dose is given for {agent!r}, which was trained from {low:g} to {high:g}; "
                f"pass dose, as in dose={high:g}"
            )
        return high


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
    label = label_text(label, where=f"{schema.treatment_key!r} of {where}")
    if not label:
        raise SchemaError(
            f"{schema.treatment_key!r} of {where} is empty; expected a label, or several joined by "
            f"{schema.separator!r}"
        )
    whole = schema.separator is None or label in schema.controls
    parts = [label] if whole else split_parts(label, schema.separator)
    parts = [str(schema.control) if part in schema.controls else part for part in parts]
    if not all(parts):
        raise SchemaError(
            f"{schema.treatment_key!r} of {where}: {label!r} has an empty part around "
            f"{schema.separator!r}; rename it, or pass another separator (None takes every label "
            "as one agent)"
        )
    return parts


def _dosed_parts(label: str, dose: Dose, schema: Schema, where: str) -> Iterable[tuple[str, float]]:
    parts, place = _parts(label, schema, where), f"{schema.dose_key!r} of {where}"
    return zip(parts, _amounts(dose, parts, schema, place), strict=True)


def _amounts(dose: Dose, parts: list[str], schema: Schema, place: str) -> list[float]:
    amounts = [_number(piece, dose, place) for piece in _pieces(dose, schema)]
    if len(amounts) == 1 and len(parts) > 1:
        treated = [part for part in parts if part != schema.control] or parts
        return [amounts[0] if part in treated else math.nan for part in parts]
    if len(amounts) != len(parts):
        raise SchemaError(
            f"{place}: {dose!r} has {len(amounts)} doses for the {len(parts)} parts {parts}; give "
            "one number, or one per part in the same order"
        )
    return amounts


def _pieces(dose: Dose, schema: Schema) -> Sequence[object]:
    if not isinstance(dose, str):
        return several(dose)
    if schema.separator is None:
        return [dose]
    # The plus of an exponent (1e+3) stands between no two doses.
    return re.split(rf"(?<![\d.][eE]){re.escape(schema.separator)}", dose)


def _number(piece: object, dose: Dose, place: str) -> float:
    # As text, float32 0.2 is 0.2 and not 0.20000000298, and booleans are refused.
    text = label_text(piece, where=place)
    if text in {"", "None"}:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise SchemaError(
            f"{place}: found {dose!r}; expected a number; keep the amounts only, without units or "
            "words, all in one unit"
        ) from None


def _unscaled(part: str, amount: float, place: str) -> float:
    if math.isnan(amount):
        return 0.0
    raise SchemaError(
        f"{place}: {part!r} has the dose {amount:g} but no training cells, and doses of a "
        "never-trained agent have no scale; leave its dose empty (it then counts like a largest "
        "trained dose), or train with it"
    )


def _check_dose(part: str, amount: float, schema: Schema, place: str) -> None:
    if amount < 0 or math.isinf(amount):
        raise SchemaError(
            f"{place}: found {amount:g}; expected a finite number of 0 or more; correct the "
            "column, or drop the cells"
        )
    if part == schema.control and amount > 0:
        raise SchemaError(
            f"{place}: the control {part!r} has the dose {amount:g}; expected 0 or nothing; set "
            f"it to 0, or give the cell another label in {schema.treatment_key!r}"
        )
    if part != schema.control and not amount > 0:
        found = "no dose" if math.isnan(amount) else "the dose 0"
        untreated = "" if schema.control is None else f" (untreated cells: {schema.control!r})"
        raise SchemaError(
            f"{place}: the treatment {part!r} has {found}; expected a positive number; fill it "
            f"in, relabel the cell in {schema.treatment_key!r}{untreated}, or leave dose_key out"
        )


def _scaled(dose: float, smallest: float, largest: float) -> float:
    """Put a dose on the log1p scale of an agent: 0 at 0, 1 at its largest training dose."""
    return math.log1p(dose / smallest) / math.log1p(largest / smallest)
