"""Noise as an input of a graph: what a step draws, drawn before it in the same order.

Compilers draw noise of their own, other than eager mode's. So the draws of a step are listed once,
and the step is traced with their values as inputs: compiled or replayed, on any device, it then
sees what eager mode would have drawn. This asks that draws depend on nothing but shapes, as those
of ``rsample`` and of dropout mostly do; ``torch.bernoulli(p)`` depends on values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_fcr._torch import OperationMode

_DROPOUT = torch.ops.aten.native_dropout.default


class Draw(NamedTuple):
    """A random operation that can be taken without the rest of a step.

    Parameters
    ----------
    function, arguments, options
        The operation and what it is called with, tensors left out.
    like
        What matters of its first argument if that is a tensor: size, stride, dtype and device.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    like: dict[str, Any] | None = None

    def __call__(self) -> Tensor:
        """Draw from torch's own generators; of dropout, which values to keep."""
        first = () if self.like is None else (torch.empty_strided(**self.like),)
        drawn = self.function(*first, *self.arguments, **self.options)
        return drawn[1] if self.function is _DROPOUT else drawn


def _is_random(function: Any, arguments: tuple[Any, ...]) -> bool:
    if function is _DROPOUT and not arguments[2]:  # evaluation
        return False
    return torch.Tag.nondeterministic_seeded in function.tags


def _name(function: Any) -> str:
    """Return the name of an operation; one that overwrites its first argument ends with ``_``."""
    return function.name().split(".")[0]


def _draw_of(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Draw | None:
    """Return the draw of a random operation, None if it depends on values."""
    tensors = [each for each in (*arguments, *options.values()) if isinstance(each, Tensor)]
    if not tensors:
        return Draw(function, arguments, options)
    by_shape = _name(function).endswith(("_", "_like")) or function is _DROPOUT
    if not by_shape or len(tensors) > 1 or tensors[0] is not arguments[0]:
        return None
    first = tensors[0]
    like = {"size": tuple(first.shape), "stride": first.stride()}
    return Draw(
        function, arguments[1:], options, {**like, "dtype": first.dtype, "device": first.device}
    )


class ListedDraws(OperationMode):
    """List the draws of what runs within.

    Attributes
    ----------
    draws
        Each random operation in its order; None for one that depends on values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw | None] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; note it down if it is random."""
        if _is_random(function, args):
            self.draws.append(_draw_of(function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


class GivenNoise(OperationMode):
    """Have what runs within take given values in place of its draws.

    Parameters
    ----------
    noise
        The values of the draws in their order; none, and everything is drawn as usual.
    """

    def __init__(self, noise: Sequence[Tensor]) -> None:
        super().__init__()
        self._left = list(reversed(noise))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, or return what it would have drawn."""
        if not self._left or not _is_random(function, args):
            return function(*args, **(kwargs or {}))
        value = self._left.pop()
        if function is _DROPOUT:
            values, probability, _ = args
            scale = 0.0 if probability == 1.0 else 1.0 / (1.0 - probability)
            return values * value * scale, value
        return args[0].copy_(value) if _name(function).endswith("_") else value
