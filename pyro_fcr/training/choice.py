"""Which engine takes the steps of a training: by device, length and the time of the first ones."""

from __future__ import annotations

import logging
import time

import torch

from pyro_fcr.batch import Batch
from pyro_fcr.training.engines import EagerEngine, Engine, compiled_if_possible
from pyro_fcr.training.resident import Ungathered

logger = logging.getLogger(__name__)

VALIDATED_STEPS = 3
_TIMED_STEPS = 10
_STEPS_TO_SETTLE = 10  # of a compiled engine: three before it is recorded, and the recording
_SECONDS_TO_COMPILE = 40.0  # measured on an H100: 30 to 47
_SHARE_SAVED = 0.8  # of an eager step's time by a recorded one; far more is aimed at


class Choice:
    """Hand out the engine of each step: eager, and a compiled one where that pays.

    Parameters
    ----------
    eager
        Takes the first steps, which are checked, and all of them if nothing else can or pays.
    level
        What may follow: ``"eager"``, ``"trace"`` or ``"graph"``.
    n_steps
        Steps of the training.
    weighs
        Whether the times of steps decide, which differ from run to run.

    Attributes
    ----------
    settled
        What was decided, or None while steps are timed. A resumed training goes on with it.
    """

    def __init__(self, eager: EagerEngine, *, level: str, n_steps: int, weighs: bool) -> None:
        self.eager, self.level, self.n_steps = eager, level, n_steps
        self.settled: str | None = None if weighs else level
        self._compiled: Engine | None = None
        device = eager.main.parameters[0].device
        self._eager_clock = _Clock(device) if weighs else None
        self._compiled_clock = _Clock(device, skip=_STEPS_TO_SETTLE) if weighs else None

    def engine(self, batch: Batch | Ungathered, *, step: int) -> Engine:
        """Return the engine of step ``step``, which is about to be taken on a batch."""
        if step < VALIDATED_STEPS:
            return self.eager
        if self.settled is None:
            self._weigh(self.n_steps - step)
        if self.settled in (None, "eager"):
            return self.eager
        if self._compiled is None:
            self._compiled = compiled_if_possible(self.level, self.eager, batch)
        if self._compiled is not self.eager:
            self._drop_if_slower()
        return self._compiled

    def release(self) -> None:
        """Let go of the compiled engine: a recorded step holds memory of the GPU."""
        self._compiled = None

    def _weigh(self, n_left: int) -> None:
        assert self._eager_clock is not None
        seconds = self._eager_clock.tick()
        if seconds is None:
            return
        pays = n_left * seconds * _SHARE_SAVED > _SECONDS_TO_COMPILE
        self.settled = self.level if pays else "eager"
        if not pays:
            logger.info(
                "Steps stay in eager mode: %d of %.1f ms are left, too few to compile them.",
                *(n_left, 1e3 * seconds),
            )

    def _drop_if_slower(self) -> None:
        eager, clock = self._eager_clock, self._compiled_clock
        if eager is None or clock is None or eager.seconds is None or clock.seconds is not None:
            return
        seconds = clock.tick()
        if seconds is not None and seconds > eager.seconds:
            logger.warning(
                "Training goes on in eager mode, whose steps took %.1f ms, compiled ones %.1f ms.",
                *(1e3 * eager.seconds, 1e3 * seconds),
            )
            self.settled = "eager"


class _Clock:
    """Times some steps on a GPU, which is waited for before the first and after the last.

    Parameters
    ----------
    device
        The GPU.
    skip
        Steps that are not timed.
    """

    def __init__(self, device: torch.device, *, skip: int = 0) -> None:
        self._device, self._next, self._start = device, -skip, 0.0
        self.seconds: float | None = None

    def tick(self) -> float | None:
        """Begin a step; return the seconds of one when enough are over."""
        if self._next == 0:
            self._start = now(self._device)
        elif self._next == _TIMED_STEPS:
            self.seconds = (now(self._device) - self._start) / _TIMED_STEPS
        self._next += 1
        return self.seconds


def now(device: torch.device) -> float:
    """Return a time in seconds at which a GPU is done with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
