"""Weights of loss terms that change while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Weight = float | Callable[[float], float]
"""A number, or a function of the progress of training, which goes from 0 to 1."""


@dataclass(frozen=True)
class Ramp:
    """A weight that rises linearly and then stays.

    Parameters
    ----------
    end
        The final weight.
    until
        The progress (0 to 1) at which it is reached.
    start
        The weight at the beginning.

    Examples
    --------
    >>> [Ramp(2.0, until=0.5)(p) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 1.0, 2.0, 2.0]
    """

    end: float
    until: float = 1 / 3
    start: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the weight at a progress."""
        share = min(1.0, progress / self.until) if self.until > 0 else 1.0
        return self.start + share * (self.end - self.start)


def weight_at(weight: Weight, progress: float) -> float:
    """Evaluate a number or a schedule."""
    return float(weight(progress)) if callable(weight) else float(weight)


def settled_after(weight: Weight) -> float:
    """Return the progress after which a weight no longer changes; 0 for a number."""
    return weight.until if isinstance(weight, Ramp) else 0.0
