"""Effects as cells show them that no fit has trained on: what estimates are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from scipy import stats

from pyro_fcr.data.design import read_design
from pyro_fcr.data.treatments import canonical_label
from pyro_fcr.discovery.contrasts import ConditionCells, Error
from pyro_fcr.discovery.pooling import Posterior, deviation, shrink
from pyro_fcr.metrics.arrays import Codes, FloatArray
from pyro_fcr.queries import Fitted

_FEWEST: Final = 4  # cells of a condition, below which its error cannot be told
_N_DRAWS: Final = 200  # of the effects in all contexts, for differences between them


@dataclass(frozen=True)
class Arm:
    """A treatment at a dose.

    Parameters
    ----------
    treatment
        Canonical label.
    dose
        One amount per agent; empty without doses.
    """

    treatment: str
    dose: tuple[float, ...] = ()

    @property
    def columns(self) -> dict[str, Any]:
        """The arm as columns of a table; the dose is one where there are doses."""
        amount = "+".join(f"{dose:g}" for dose in self.dose)
        return {"treatment": self.treatment, **({"dose": amount} if self.dose else {})}


class UnusedCells:
    """The cells that gave no gradient to any of some fits, by arm and context.

    Parameters
    ----------
    members
        Fits of one model to the same cells.
    contexts
        The contexts: a level by covariate, of the same covariates each.

    Attributes
    ----------
    rows
        Positions of the cells; none where the model has no cells, or does not know which it
        trained on.
    """

    def __init__(self, members: Sequence[Fitted], contexts: Sequence[Mapping[str, str]]) -> None:
        self.contexts, self.rows = contexts, np.empty(0, dtype=np.int64)
        self._registry = members[0].registry
        try:
            self._adata = members[0].source(None)
            used = [fcr.split_of().train for fcr in members]
        except ValueError:  # loaded without cells, or not fitted
            return
        self.rows = np.setdiff1d(np.arange(self._adata.n_obs), np.concatenate(used))

    def hold(self, total: FloatArray, arm: Arm, *, level: float) -> FloatArray:
        """Hold estimated effects, and how they differ between contexts, against the cells.

        The truth is taken as a multiple of the estimate plus a deviation whose distribution over
        genes the cells tell (:func:`pyro_fcr.discovery.pooling.shrink`): where the model is right,
        intervals are as narrow as its errors, and where it is wrong as those of the cells.

        Parameters
        ----------
        total
            Estimated effects of the arm, ``(n_contexts, n_genes)``.
        arm
            Treatment and dose.
        level
            Probability of the intervals.

        Returns
        -------
        ``(2, 3, n_contexts, n_genes)``: of the effects, and of their differences from the median
        over contexts; lower and upper end of the interval, and of the effects the p-value of no
        change or one in the other direction. nan where a condition has fewer than four cells.
        """
        held = np.full((2, 3, *total.shape), np.nan)
        pairs = [(self._number(arm, i), self._number(None, i)) for i in range(len(self.contexts))]
        known = [i for i, pair in enumerate(pairs) if None not in pair]
        if known:
            treated, untreated = np.array([pairs[i] for i in known]).T
            observed = self._cells.mean[treated] - self._cells.mean[untreated]
            errors = [
                self._cells.effect_error(a, b) for a, b in zip(treated, untreated, strict=True)
            ]
            error = Error(*map(np.array, zip(*errors, strict=True)))
            found, middle = _believed(observed, error.variance, total[known])
            shape = len(known), -1
            held[0][:2, known] = found.interval(level).reshape(2, *shape) + middle
            held[0][2, known] = _pvalues(observed, error, total[known])
            if len(known) > 1:
                draws = found.draw(_N_DRAWS, np.random.default_rng(0)).reshape(_N_DRAWS, *shape)
                apart = np.array([deviation(each + middle) for each in draws])
                held[1][:2, known] = np.quantile(apart, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return held

    def _number(self, arm: Arm | None, context: int) -> int | None:
        """Return the number of a condition with cells enough; the arm is None for the control."""
        if not len(self.rows):
            return None
        numbers, codes = self._conditions
        number = numbers.get((arm, context), -1)
        return number if (codes == number).sum() >= _FEWEST else None

    @cached_property
    def _conditions(self) -> tuple[dict[tuple[Arm | None, int], int], Codes]:
        """Number of each condition of arm and context, and that of each cell."""
        schema = self._registry.schema
        design = read_design(self._adata.obs.iloc[self.rows], schema)
        arms = [
            Arm(canonical_label(each.agents, schema), each.doses) if each.agents else None
            for each in design.treatments
        ]
        names = [dict(zip(schema.covariate_keys, each, strict=True)) for each in design.contexts]
        places = [
            next((i for i, own in enumerate(self.contexts) if own.items() <= name.items()), -1)
            for name in names
        ]
        numbers: dict[tuple[Arm | None, int], int] = {}
        keys = ((arms[t], places[x]) for t, x in zip(design.t, design.x, strict=True))
        codes = [numbers.setdefault(key, len(numbers)) for key in keys]
        return numbers, np.array(codes, dtype=np.int64)

    @cached_property
    def _cells(self) -> ConditionCells:
        cells = self._registry.encode_expression(self._adata[self.rows])
        library = cells.library.numpy().astype(np.float64).ravel()
        numbers, codes = self._conditions
        log = self._registry.schema.expression == "counts"
        return ConditionCells(cells.expression, library, codes, len(numbers), log=log)


def _believed(
    observed: FloatArray, variance: FloatArray, expected: FloatArray
) -> tuple[Posterior, FloatArray]:
    """Return what is believed of effects beside the median change, and that, ``(n_contexts, 1)``.

    Contexts share the distribution of the model's errors.
    """
    parts = (_centred(observed), variance, _centred(expected))
    return shrink(*(part.ravel() for part in parts)), np.median(observed, axis=1, keepdims=True)


def _pvalues(observed: FloatArray, error: Error, expected: FloatArray) -> FloatArray:
    return stats.norm.sf(np.sign(_centred(expected)) * error.z_value(_centred(observed)))


def _centred(effects: FloatArray) -> FloatArray:
    """Take out a change of all genes alike, which is one of the library sizes."""
    return effects - np.median(effects, axis=1, keepdims=True)
