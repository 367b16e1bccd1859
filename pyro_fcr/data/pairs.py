"""Which cell belongs to which pair of treatment and context, doses taken together."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from pyro_fcr.data.design import Codes, Mask, read_design
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import canonical_label

FEWEST: Final = 2  # cells of a group whose spread is to be judged
FEWEST_CONTROLS: Final = 4  # of a context: two measure a response, two more may predict it


class Pair(NamedTuple):
    """A treatment in a context.

    Attributes
    ----------
    treatment
        Canonical label: sorted agents, or the control.
    context
        Level of each covariate key, in their order.
    """

    treatment: str
    context: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.treatment!r} in {self.place}"

    @property
    def place(self) -> str:
        """The context in one word."""
        return " / ".join(self.context)


class Layout(NamedTuple):
    """Which cell belongs to which pair.

    Attributes
    ----------
    pairs
        Distinct pairs, controls among them, sorted.
    agents
        Agents of each pair's treatment; none for a control.
    codes
        Position of each cell's pair, shape (n_cells,).
    """

    pairs: tuple[Pair, ...]
    agents: tuple[tuple[str, ...], ...]
    codes: Codes

    @property
    def is_control(self) -> Mask:
        """Which pairs are controls, shape (n_pairs,)."""
        return np.array([not agents for agents in self.agents])

    def control_of(self, pair: Pair) -> int | None:
        """Return the position of the control of a pair's context, None where there is none."""
        controls = np.flatnonzero(self.is_control).tolist()
        return next((i for i in controls if self.pairs[i].context == pair.context), None)

    def n_cells(self, cells: Mask | None = None) -> Codes:
        """Count the cells of each pair, or the chosen ones of them, shape (n_pairs,)."""
        codes = self.codes if cells is None else self.codes[cells]
        return np.bincount(codes, minlength=len(self.pairs))

    def lacks(self, position: int, n_cells: Codes, *, controls: int = FEWEST) -> str:
        """Say what a pair lacks for its response to be measured; nothing if it can be.

        Parameters
        ----------
        position
            Position of the pair.
        n_cells
            Cells of each pair, of those that are looked at, shape (n_pairs,).
        controls
            How many control cells its context needs.
        """
        pair = self.pairs[position]
        control = self.control_of(pair)
        if control is None or n_cells[control] < controls:
            return f"its context {pair.place} has fewer than {controls} control cells"
        if n_cells[position] < FEWEST:
            return f"it has {n_cells[position]} cell: a response with an interval needs {FEWEST}"
        return ""

    def with_controls(self, positions: Sequence[int]) -> list[int]:
        """Return the positions of pairs and of the controls of their contexts."""
        controls = {self.control_of(self.pairs[i]) for i in positions}
        return [*positions, *(i for i in controls if i is not None)]

    def treated(self) -> dict[int, Pair]:
        """Return the pairs that are no controls, by position."""
        return {i: self.pairs[i] for i in np.flatnonzero(~self.is_control).tolist()}


def read_layout(obs: pd.DataFrame, schema: Schema) -> Layout:
    """Read which cell belongs to which pair of treatment and context.

    Parameters
    ----------
    obs
        `adata.obs`.
    schema
        Names the columns; doses are read, but do not tell pairs apart.

    Raises
    ------
    pyro_fcr.SchemaError
        A column is missing or has labels that cannot be read.
    ValueError
        The schema has no control.

    Examples
    --------
    >>> obs = pd.DataFrame({"drug": ["none", "B+A", "A+B"], "line": ["u", "u", "u"]})
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> layout = read_layout(obs, schema)
    >>> [pair.treatment for pair in layout.pairs], layout.codes.tolist()
    (['A+B', 'none'], [1, 0, 0])
    """
    if schema.control is None:
        raise ValueError(
            "schema.control is None: a response is a change against control cells; name the "
            "label of untreated cells"
        )
    design = read_design(obs, schema)
    labels = [canonical_label(each.agents, schema) for each in design.treatments]
    agents = dict(zip(labels, (each.agents for each in design.treatments), strict=True))
    names, merged = np.unique(labels, return_inverse=True)
    n = len(design.contexts)
    present, codes = np.unique(merged.reshape(-1)[design.t] * n + design.x, return_inverse=True)
    pairs = tuple(Pair(str(names[each // n]), design.contexts[each % n]) for each in present)
    return Layout(pairs, tuple(agents[pair.treatment] for pair in pairs), codes.reshape(-1))


def pairs_of(obs: pd.DataFrame, schema: Schema) -> set[Pair]:
    """Return the pairs of some cells, untreated ones among them."""
    design = read_design(obs, schema)
    return {
        Pair(canonical_label(design.treatments[t].agents, schema), design.contexts[x])
        for t, x in set(zip(design.t.tolist(), design.x.tolist(), strict=True))
    }
