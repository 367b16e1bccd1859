"""The same model fitted anew, on other cells."""

import copy
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
from torch import nn

from pyro_fcr.data import Split
from pyro_fcr.data.pairs import Pair, pairs_of
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.programs import build_programs
from pyro_fcr.queries.fitted import Fitted

Programs = Callable[[], tuple[nn.Module, nn.Module]]


class Refittable(Fitted, Protocol):
    """A :class:`pyro_fcr.FCR`, as far as it is fitted again."""

    architecture: Architecture | None

    def with_programs(self, model: nn.Module, guide: nn.Module) -> Self:
        """Return a model of the same cells that is not fitted."""

    def fit(self, plan: Any = None, *, split: Split | None = None, **settings: Any) -> Any:
        """Train it."""


def refit(
    fcr: Refittable, split: Split, *, seed: int, programs: Programs | None, settings: dict[str, Any]
) -> Refittable:
    """Fit a model anew, from fresh parameters, on the cells of a split; `fcr` is not changed.

    Nothing is known to it of pairs of treatment and context without a cell in the split: they have
    no part in the averages that priors are centred at, and count as extrapolated.
    """
    fcr = _of_split(fcr, split)
    if programs is not None:
        made = programs()
    elif fcr.architecture is not None:
        made = build_programs(fcr.registry, fcr.architecture, seed=seed)
    else:
        raise ValueError(
            "The model has programs of your own: pass programs=, a function that makes a fresh "
            "model and guide, so that refits do not start from fitted parameters."
        )
    new = fcr.with_programs(*made)
    fit_wholly(new, split=split, **{"seed": seed, "progress": False, **settings})
    return new


def check_split(fcr: Fitted, split: Split) -> None:
    """Refuse a split without any cell of a pair that the model counts as seen.

    Raises
    ------
    ValueError
        Names the pair, and how to leave it out.
    """
    if lost := sorted(fcr.registry.pairs - _pairs_of_split(fcr, split)):
        raise ValueError(
            f"split= has no cell of {Pair(*lost[0])}, which the model was made to know. Name cells "
            "to leave out of the fit in a column of obs, as 'test': Schema(split_key=...)."
        )


def _of_split(fcr: Refittable, split: Split) -> Refittable:
    """Return a copy of the model that knows the conditions of a split's cells alone."""
    other = copy.copy(fcr)
    other.registry = fcr.registry.among(_pairs_of_split(fcr, split))
    return other


def _pairs_of_split(fcr: Fitted, split: Split) -> set[Pair]:
    rows = np.concatenate([split.train, split.heldout])
    return pairs_of(fcr.source(None).obs.iloc[rows], fcr.registry.schema)


def fit_wholly(fcr: Refittable, plan: Any = None, **settings: Any) -> Any:
    """Train a model that longer work goes on with, and return its history.

    Raises
    ------
    KeyboardInterrupt
        Ctrl-C came: it ends all of the work, not one training of it.
    """
    history = fcr.fit(plan, **settings)
    if history.attrs["stopped"] == "interrupted":
        raise KeyboardInterrupt
    return history
