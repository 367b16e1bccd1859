"""The same model fitted anew, on other cells."""

from collections.abc import Callable
from typing import Any, Protocol, Self

from torch import nn

from pyro_fcr.data import Split
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
    """Fit a model anew, from fresh parameters, on the cells of a split; `fcr` is not changed."""
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
    new.fit(split=split, **{"seed": seed, "progress": False, **settings})
    return new
