"""What was done to a group of training cells, and where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """A treatment with its dose in a context, as found among the training cells.

    Parameters
    ----------
    treatment
        Canonical label: sorted agents, or the control.
    dose
        One amount per agent of the label, in its order; empty without doses and for the control.
    covariates
        Level of each covariate key.
    n_cells
        Number of training cells.

    Examples
    --------
    >>> from pyro_fcr.data import Condition
    >>> Condition("A+B", (0.1, 2.0), {"line": "u"}, 50).n_cells
    50
    """

    treatment: str
    dose: tuple[float, ...]
    covariates: Mapping[str, str]
    n_cells: int

    def to_json_dict(self) -> dict[str, Any]:
        """Return the condition in lists, dicts, strings and numbers only."""
        return {
            "treatment": self.treatment,
            "dose": list(self.dose),
            "covariates": dict(self.covariates),
            "n_cells": self.n_cells,
        }

    @classmethod
    def from_json_dict(cls, saved: Mapping[str, Any]) -> "Condition":
        """Rebuild a condition from `to_json_dict`."""
        return cls(**{**saved, "dose": tuple(saved["dose"])})
