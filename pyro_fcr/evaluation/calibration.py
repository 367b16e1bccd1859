"""Do interventions give back what was measured? A check of a fitted model that needs no truth.

Training saw the treated cells of a condition, and the control cells of its context. The model's
answer for these control cells under the treatment should be as the treated cells are, and that
under no treatment as the control cells are: a model whose context block carries the treatment
reconstructs both and still answers too little.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.design import random_parts
from pyro_fcr.data.errors import listed
from pyro_fcr.data.pairs import Mask, Pair
from pyro_fcr.evaluation.arms import Arms
from pyro_fcr.metrics import profiles
from pyro_fcr.metrics.arrays import FloatArray, draw_rows
from pyro_fcr.metrics.profiles import SCALES, Scale, Values
from pyro_fcr.queries import Fitted, posterior_predictive

_N_SOURCE, _N_DRAWS = 250, 8
_MOST_PAIRS = 40
_N_GENES = 50
_FEWEST = 16  # cells of a condition: half of them choose genes, two quarters judge
_SLOPES: Final = (0.8, 1.25)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well interventions give back the conditions that training saw.

    Parameters
    ----------
    table
        A row per condition and scale: ``treatment``, ``context``, ``scale``, ``n_cells`` of the
        treated, ``slope`` of predicted on real change, and root mean square errors over the same
        genes: ``change_error``, ``treated_error`` and ``control_error`` of the two arms, and
        ``reconstruction_error`` of the treated cells with their own latents. All on the 50
        genes of largest change, chosen on half of the cells and judged on the other, and free of
        the noise of the cells; an error below that noise is 0.
    """

    table: pd.DataFrame

    @property
    def slope(self) -> float:
        """Median slope of mean log1p expression over conditions; nan without any."""
        return float(self._of("mean_log1p")["slope"].median())

    @property
    def off(self) -> pd.DataFrame:
        """Conditions whose slope is below 0.8 or above 1.25, the farthest first."""
        own = self._of("mean_log1p")
        own = own[~own["slope"].between(*_SLOPES) & own["slope"].notna()]
        return own.sort_values("slope", key=lambda s: -np.abs(np.log(s.clip(lower=0.01))))

    @property
    def line(self) -> str:
        """What was found, in a line."""
        own = self._of("mean_log1p")
        if own.empty:
            return "Calibration: no condition has cells enough."
        return (
            f"Calibration: counterfactuals of control cells give back {self.slope:.2f} of the "
            f"change that training saw (median of {len(own)} conditions; "
            f"{own['slope'].min():.2f} to {own['slope'].max():.2f})"
        )

    @property
    def warning(self) -> str:
        """What to warn of; empty if most conditions come out right."""
        off = self.off
        if len(off) <= 0.1 * len(self._of("mean_log1p")):
            return ""
        some = [f"{r.treatment!r} in {r.context} ({r.slope:.2f})" for r in off.itertuples()]
        few = "too little" if off["slope"].median() < 1 else "too much"
        return (
            f"Counterfactuals of control cells change {few} under treatments that training saw: "
            f"predicted over real change of {listed(some, 3, quoted=False)}. Train longer; where "
            "blocks are not apart, the context block may carry the treatment."
        )

    def _of(self, scale: Scale) -> pd.DataFrame:
        return self.table[self.table["scale"] == scale] if len(self.table) else _EMPTY

    def to_dict(self) -> dict[str, Any]:
        """Return the slope, and the conditions that are off, in what JSON can hold."""
        off = self.off[["treatment", "context", "slope"]].to_dict("records")
        return {"slope": self.slope, "n_conditions": len(self._of("mean_log1p")), "off": off}


_COLUMNS: Final = [
    "treatment", "context", "scale", "n_cells", "slope", "change_error", "treated_error",
    "control_error", "reconstruction_error",
]  # fmt: skip
_EMPTY: Final = pd.DataFrame(columns=_COLUMNS)


def measure_calibration(fcr: Fitted, adata: AnnData, train: Mask, *, seed: int = 0) -> Calibration:
    """Hold counterfactuals of training's control cells against the treated cells of training.

    Parameters
    ----------
    fcr
        A fitted model, whose schema names a control.
    adata
        Cells, with the model's genes in its order.
    train
        Which of them trained, ``(n_cells,)``.
    seed
        Seed of everything random.

    Returns
    -------
    Of 40 conditions at most, drawn at random where there are more; conditions of fewer than 16
    cells, or control cells, are left out.
    """
    schema = fcr.registry.schema
    if schema.control is None:
        return Calibration(_EMPTY)
    arms = Arms(fcr, adata, n_source=_N_SOURCE, n_draws=_N_DRAWS, seed=seed)
    layout, size = arms.layout, arms.layout.n_cells(train)
    known = [
        i
        for i, pair in layout.treated().items()
        if size[i] >= _FEWEST and not layout.lacks(i, size, controls=_FEWEST)
    ]
    known = [known[i] for i in draw_rows(len(known), _MOST_PAIRS, seed)]
    rows = [
        {"treatment": pair.treatment, "context": pair.place, "n_cells": int(size[i])} | row
        for i in known
        for pair in [layout.pairs[i]]
        for row in _judged(fcr, arms, pair, train, seed)
    ]
    return Calibration(pd.DataFrame(rows, columns=_COLUMNS) if rows else _EMPTY)


def _judged(
    fcr: Fitted, arms: Arms, pair: Pair, train: Mask, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield slope and errors of a pair on each scale."""
    adata, schema, layout = arms.adata, arms.schema, arms.layout
    positions = layout.pairs.index(pair), layout.control_of(pair)
    own = [np.flatnonzero(train & (layout.codes == i)) for i in positions]
    some = own[0][draw_rows(len(own[0]), _N_SOURCE, seed)]
    again = posterior_predictive(fcr, adata[some], n_draws=_N_DRAWS, seed=seed)
    predicted = [*arms(pair, source=train, dosed=train), again]
    drawn = [profiles.log_values(each.X, expression=schema.expression) for each in predicted]
    real = [_parted(profiles.values_of(adata[rows], schema), seed) for rows in own]
    for scale in SCALES:
        choose, one, other = (
            [profiles.profile(arm[part], scale) for arm in real] for part in range(3)
        )
        genes = np.argsort(-np.abs(choose[0] - choose[1]), kind="stable")[:_N_GENES]
        treated, control, reconstructed = (profiles.profile(v, scale)[genes] for v in drawn)
        one, other = ([each[genes] for each in part] for part in (one, other))
        changes = one[0] - one[1], other[0] - other[1]
        size = float(changes[0] @ changes[1])
        yield {
            "scale": scale,
            "slope": float((treated - control) @ np.mean(changes, axis=0) / size)
            if size > 0
            else np.nan,
            "change_error": _error(treated - control, *changes),
            "treated_error": _error(treated, one[0], other[0]),
            "control_error": _error(control, one[1], other[1]),
            "reconstruction_error": _error(reconstructed, one[0], other[0]),
        }


def _error(predicted: FloatArray, one: FloatArray, other: FloatArray) -> float:
    """Return the root mean square error against two measurements whose noise is independent."""
    return float(np.sqrt(max(((predicted - one) * (predicted - other)).mean(), 0.0)))


def _parted(values: Values, seed: int) -> list[Values]:
    """Part cells at random: a half, and two quarters."""
    parts = random_parts(np.zeros(values.shape[0], dtype=np.int64), (0.5, 0.25, 0.25), seed)
    return [values[parts == part] for part in range(3)]
