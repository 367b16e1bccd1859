"""Treatments -> rows of t, with a column per agent or per treatment feature."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log1p

import numpy as np
import numpy.typing as npt

from pyro_fcr.data.errors import SchemaError, did_you_mean, listed
from pyro_fcr.data.features import FeatureRow, feature_rows
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import Dose, Treatment, parse_agents, parse_treatment

_DOSE_TOLERANCE = 1e-6


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
        return parse_treatment(label, self.schema, dose=dose, untrained=self.untrained)

    def read_agents(self, label: str) -> Treatment:
        """Read the label of a query; raise if an agent is unknown."""
        treatment = Treatment(parse_agents(label, self.schema))
        self.check(treatment, where="the query")
        return treatment

    def check(self, treatment: Treatment, *, where: str) -> None:
        """Raise if an agent was never seen in training or, with features, has none."""
        for agent in treatment.agents:
            if agent not in self._known:
                raise SchemaError(
                    f"{self.schema.treatment_key!r} of {where}: {agent!r} {self._lack}; known: "
                    f"{listed(self._known, 20)}.{did_you_mean(agent, self._known)} {self._mend}"
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
                row[self._columns[agent]] = factor
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
    def _features(self) -> dict[str, FeatureRow]:
        return feature_rows(self.schema.treatment_features)

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {agent: column for column, agent in enumerate(self.agents)}

    @cached_property
    def _known(self) -> dict[str, None]:
        control = self.schema.control
        agents = self._features or self.agents
        return dict.fromkeys(agents if control is None else (*agents, control))

    @property
    def _lack(self) -> str:
        if self._features:
            return "has no row in treatment_features"
        return "was not in the training cells"

    @property
    def _mend(self) -> str:
        lesson = "with a table that has it" if self._features else "with it"
        return f"Rename it, drop its cells, or train {lesson}"

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


def _scaled(dose: float, smallest: float, largest: float) -> float:
    """Put a dose on the log1p scale of an agent: 0 at 0, 1 at its largest training dose."""
    return log1p(dose / smallest) / log1p(largest / smallest)
