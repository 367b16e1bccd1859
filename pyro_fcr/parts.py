"""A batch that several processes share: sums over all of its cells, and its noise.

Each process holds a part of the cells. What is drawn is drawn for the whole batch in every process,
which keeps its own rows: so the numbers are those of one process that holds the batch, whatever the
number of processes, and their random states stay equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_fcr._torch import sum_of_processes
from pyro_fcr.ranks import n_processes, rank


@dataclass(frozen=True)
class Part:
    """The cells ``start`` to ``stop`` of a batch of ``n``, which this process holds.

    Parameters
    ----------
    start, stop
        Positions in the batch.
    n
        Cells of the batch, in all processes together.
    """

    start: int
    stop: int
    n: int

    @classmethod
    def of_this_process(cls, n: int) -> Part | None:
        """Return this process's part of ``n`` cells; None for one process, or fewer cells."""
        size, number = n_processes(), rank()
        if size == 1 or n < size:
            return None
        return cls(n * number // size, n * (number + 1) // size, n)

    @property
    def share(self) -> float:
        """Share of the batch's cells that are here."""
        return (self.stop - self.start) / self.n

    def sum(self, values: Tensor) -> Tensor:
        """Add up tensors of all processes, element by element, with a gradient."""
        return _Sum.apply(values)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, ``(n, *)``, without a gradient."""
        return sum_of_processes(self.widen(rows.detach(), 0))

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a tensor of the whole batch."""
        return rows[self.start : self.stop]

    def widen(self, values: Tensor, dim: int) -> Tensor:
        """Put values into the places of their cells in the batch; the others are 0."""
        before, after = list(values.shape), list(values.shape)
        before[dim], after[dim] = self.start, self.n - self.stop
        return torch.cat([values.new_zeros(before), values, values.new_zeros(after)], dim)


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient of each reaches the values of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_of_processes(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_of_processes(gradient)


_MAKERS = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like"}
_DROPOUTS = {"dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu"}
_SAMPLERS = {"normal", "bernoulli", "poisson", "binomial", "multinomial"}
# How many numbers these take from the generator depends on what they are given.
_OF_VALUES = {"poisson", "binomial", "multinomial", "_standard_gamma", "_sample_dirichlet"}
_FILLERS = {
    f"{name}_"
    for name in (
        *("normal", "uniform", "exponential", "geometric"),
        *("cauchy", "log_normal", "bernoulli", "random"),
    )
}
_DRAWS = _MAKERS | _DROPOUTS | _SAMPLERS | _OF_VALUES | _FILLERS


class WholeNoise(TorchFunctionMode):
    """Draw for a whole batch what a program draws for the cells of a part, and keep their rows.

    The cells are the first dimension of their number. What has no such dimension, as a latent that
    all cells share, is drawn as it is, the same in every process.

    Parameters
    ----------
    part
        The part.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part, self.here = part, part.stop - part.start

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, one that draws on the whole batch."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name not in _DRAWS:
            return func(*args, **kwargs)
        if name in ("rand", "randn") and args and isinstance(args[0], int):
            args = (args,)
        wide = [self._widened(each, name) for each in args]
        wide_kwargs = {key: self._widened(each, name) for key, each in kwargs.items()}
        changed = [*zip(wide, args, strict=True), *((wide_kwargs[k], kwargs[k]) for k in kwargs)]
        if all(one is other for one, other in changed):
            return func(*args, **kwargs)
        drawn = func(*wide, **wide_kwargs)
        drawn = drawn.narrow(drawn.shape.index(self.part.n), self.part.start, self.here)
        return args[0].copy_(drawn) if name in _FILLERS else drawn

    def _widened(self, given: Any, name: str) -> Any:
        """Return an argument for the cells of the batch in place of those of the part."""
        if isinstance(given, Tensor) and self.here in given.shape:
            return self._wide(given, everywhere=name in _OF_VALUES)
        if isinstance(given, tuple | list) and self.here in given:
            at = given.index(self.here)
            return torch.Size([*given[:at], self.part.n, *given[at + 1 :]])
        return given

    def _wide(self, values: Tensor, *, everywhere: bool) -> Tensor:
        dim = values.shape.index(self.here)
        wide = self.part.widen(values, dim)
        if everywhere:
            wide = wide + sum_of_processes(wide) - wide.detach()
        return wide
