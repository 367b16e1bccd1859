"""Summaries of draws that come one at a time: what is kept does not grow with their number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import ceil, log2

import torch
from torch import Tensor

_AT_ONCE = 2**18  # values that are sorted together
_TURNS = 16  # and at most that share of them all, so that sorting takes half of what they take


class Sink(ABC):
    """Take draws of the same cells, one after the other, and summarise them."""

    @abstractmethod
    def update(self, values: Tensor) -> None:
        """Take one draw, ``(n_cells, n_features)``."""

    @abstractmethod
    def result(self) -> dict[str, Tensor]:
        """Return the summary of the draws so far by name, ``(n_cells, n_features)`` mostly."""

    @abstractmethod
    def bytes_per_value(self, n_draws: int) -> int:
        """Return the bytes that a cell and feature takes, result included."""


class Moments(Sink):
    """Mean and standard deviation; the variance is divided by the number of draws.

    Sums of differences from the first draw, in float64, so that nothing cancels.

    Examples
    --------
    >>> sink = Moments()
    >>> for value in (1.0, 2.0, 6.0):
    ...     sink.update(torch.full((1, 1), value))
    >>> sink.result()["mean"], sink.result()["sd"]
    (tensor([[3.]]), tensor([[2.1602]]))
    """

    def __init__(self) -> None:
        self.n_draws = 0

    def update(self, values: Tensor) -> None:
        """Take one draw, ``(n_cells, n_features)``."""
        if self.n_draws == 0:
            self._first = values.clone()
            self._sum = torch.zeros_like(values, dtype=torch.float64)
            self._squares = torch.zeros_like(self._sum)
        self.n_draws += 1
        step = values - self._first
        self._sum += step
        self._squares += step.square_()

    def result(self) -> dict[str, Tensor]:
        """Return ``mean`` and ``sd``, ``(n_cells, n_features)`` each."""
        step = self._sum / self.n_draws
        variance = (self._squares / self.n_draws).sub_(step.square()).clamp_(min=0.0)
        dtype = self._first.dtype
        return {"mean": (step + self._first).to(dtype), "sd": variance.sqrt_().to(dtype)}

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the bytes that a cell and feature takes: two sums, the first draw, the result."""
        return 4 * 8 + 3 * 4


class Quantiles(Sink):
    """Quantiles, exact up to ``size`` draws, of bounded rank error beyond.

    The sketch is a row of compactors (Karnin, Lang and Liberty 2016, arXiv 1603.05346, here of
    equal size and without coin flips): a full buffer is sorted, and every other value, odd and even
    ones in turn, goes to the next buffer, where each stands for twice as many draws. With n draws
    there are about log2(n / size) buffers. Each but the last puts a rank off by n / (2 size) at
    most, usually by far less.

    Parameters
    ----------
    probabilities
        Which quantiles, between 0 and 1; interpolated linearly between draws.
    size
        Values per buffer, cell and feature; even.

    Examples
    --------
    >>> sink = Quantiles((0.05, 0.5))
    >>> for value in torch.arange(101.0):
    ...     sink.update(value.reshape(1, 1))
    >>> {name: value.item() for name, value in sink.result().items()}
    {'q05': 5.0, 'q50': 50.0}
    """

    def __init__(self, probabilities: Sequence[float], *, size: int = 128) -> None:
        self.probabilities, self.size = tuple(probabilities), size
        self._levels: list[_Buffer] = []

    def update(self, values: Tensor) -> None:
        """Take one draw, ``(n_cells, n_features)``."""
        if not self._levels:
            self._shape = values.shape
        self._room(0, values)
        self._levels[0].push(values.reshape(1, -1))

    def result(self) -> dict[str, Tensor]:
        """Return ``q05`` and the like, ``(n_cells, n_features)`` each."""
        filled = [(2**i, buffer) for i, buffer in enumerate(self._levels) if buffer.n]
        n_columns = self._shape.numel()
        # Levels of weight 1 alone need no weights, and so no slow sort that keeps track of them.
        pick = _exact if len(filled) == 1 and filled[0][0] == 1 else _weighted
        parts = []
        for columns in _slices(n_columns, sum(buffer.n for _, buffer in filled)):
            values = [(weight, buffer.columns(columns)) for weight, buffer in filled]
            parts.append(pick(values, self.probabilities))
        rows = torch.cat(parts, dim=-1).unbind(0)
        names = map(quantile_name, self.probabilities)
        return {name: row.reshape(self._shape) for name, row in zip(names, rows, strict=True)}

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the bytes that a cell and feature takes: buffers, their sorting, the result."""
        n_levels = 1 + ceil(log2(max(1.0, n_draws / self.size)))
        return 6 * self.size * n_levels + 8 * len(self.probabilities)

    def _room(self, level: int, like: Tensor) -> None:
        """Make room in a level by passing on the half of it that stands for all."""
        if level == len(self._levels):
            self._levels.append(_Buffer(like.new_empty(self.size, like.numel())))
        buffer = self._levels[level]
        if buffer.n == self.size:
            self._room(level + 1, like)
            buffer.compact_into(self._levels[level + 1])


def quantile_name(probability: float) -> str:
    """Name a quantile: ``q05`` for 0.05, ``q02.5`` for 0.025."""
    whole, dot, rest = f"{100 * probability:g}".partition(".")
    return f"q{whole.zfill(2)}{dot}{rest}"


class EveryDraw(Sink):
    """Every draw; the memory grows with their number, as the answer does.

    Examples
    --------
    >>> sink = EveryDraw()
    >>> for value in (1.0, 2.0):
    ...     sink.update(torch.full((3, 5), value))
    >>> sink.result()["draws"].shape
    torch.Size([3, 2, 5])
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def update(self, values: Tensor) -> None:
        """Take one draw, ``(n_cells, n_features)``."""
        self._kept.append(values.clone())

    def result(self) -> dict[str, Tensor]:
        """Return ``draws``, ``(n_cells, n_draws, n_features)``."""
        return {"draws": torch.stack(self._kept, dim=1)}

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the bytes that a cell and feature takes: twice its draws, to join them."""
        return 2 * 4 * n_draws


class Rows(Sink):
    """Pass on the draws of some of the cells.

    Parameters
    ----------
    sink
        The sink that takes them.
    rows
        Which cells.

    Examples
    --------
    >>> sink = Rows(Moments(), slice(1, 2))
    >>> sink.update(torch.tensor([[1.0], [5.0]]))
    >>> sink.result()["mean"]
    tensor([[5.]])
    """

    def __init__(self, sink: Sink, rows: slice) -> None:
        self.sink, self.rows = sink, rows

    def update(self, values: Tensor) -> None:
        """Take one draw of all cells, ``(n_cells, n_features)``."""
        self.sink.update(values[self.rows])

    def result(self) -> dict[str, Tensor]:
        """Return the summary of these cells."""
        return self.sink.result()

    def bytes_per_value(self, n_draws: int) -> int:
        """Return the bytes that the sink takes."""
        return self.sink.bytes_per_value(n_draws)


class _Buffer:
    """Values of one weight, ``(size, n_columns)``, of which the first ``n`` rows are filled."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.n, self._odd = rows, 0, False

    def push(self, values: Tensor) -> None:
        self.rows[self.n : self.n + len(values)] = values
        self.n += len(values)

    def columns(self, columns: slice) -> Tensor:
        """Copy some columns, a row for each: ``(n_columns, n)``."""
        return self.rows[: self.n, columns].T.contiguous()

    def compact_into(self, other: _Buffer) -> None:
        half = self.n // 2
        for columns in _slices(self.rows.shape[1], self.n):
            kept = _sorted(self.columns(columns))[:, int(self._odd) :: 2]
            other.rows[other.n : other.n + half, columns] = kept.T
        other.n += half
        self.n, self._odd = 0, not self._odd


def _slices(n_columns: int, n_rows: int) -> Iterator[slice]:
    """Cut columns so that sorting, up to 32 bytes a value with its order, takes little memory."""
    step = max(1, min(_AT_ONCE // n_rows, -(-n_columns // _TURNS)))
    return (slice(start, start + step) for start in range(0, n_columns, step))


def _sorted(rows: Tensor) -> Tensor:
    """Sort each row in place or anew. On a CPU numpy is twenty times as fast as torch."""
    if rows.device.type != "cpu":
        return rows.sort(dim=-1).values
    rows.numpy().sort(axis=-1)
    return rows


def _exact(values: list[tuple[int, Tensor]], probabilities: Sequence[float]) -> Tensor:
    rows = _sorted(values[0][1])
    found = []
    for low, high, share in _positions(rows.shape[-1], probabilities):
        found.append(torch.lerp(rows[:, low], rows[:, high], share))
    return torch.stack(found)


def _weighted(values: list[tuple[int, Tensor]], probabilities: Sequence[float]) -> Tensor:
    """Take quantiles as if each value were repeated as often as its weight says."""
    rows, order = torch.cat([v for _, v in values], dim=-1).sort(dim=-1)
    weight = torch.cat([rows.new_full(v.shape[-1:], w, dtype=torch.int64) for w, v in values])
    until = weight[order].cumsum(dim=-1)
    n, found = sum(w * v.shape[-1] for w, v in values), []
    for low, high, share in _positions(n, probabilities):
        ends = torch.searchsorted(until, until.new_tensor([low, high]).repeat(len(until), 1) + 1)
        below, above = rows.gather(-1, ends).unbind(-1)
        found.append(torch.lerp(below, above, share))
    return torch.stack(found)


def _positions(n: int, probabilities: Sequence[float]) -> Iterator[tuple[int, int, float]]:
    """Yield, for each quantile of n sorted values, its two neighbours and the way between them."""
    for probability in probabilities:
        position = probability * (n - 1)
        low = int(position)
        yield low, min(low + 1, n - 1), position - low
