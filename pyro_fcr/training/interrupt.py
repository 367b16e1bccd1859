"""Stopping between two steps when a signal asks for it, so that nothing is lost."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from pyro_fcr.ranks import largest, n_processes

_STEPS_BETWEEN_QUESTIONS = 10  # to other processes
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in dir(signal)
]


class Interrupt:
    """Note Ctrl-C and signals that end a process, so that training can stop between two steps.

    A second signal interrupts at once, within a step. What nohup has ignored stays so. Outside the
    main thread, where Python delivers no signals, nothing is noted.

    Attributes
    ----------
    requested
        The signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._n_steps = 0

    def __enter__(self) -> Interrupt:
        for each in _SIGNALS:
            previous = signal.getsignal(each)
            hung_up = each.name == "SIGHUP" and previous is signal.SIG_IGN
            if previous is not None and not hung_up:
                with suppress(ValueError):
                    signal.signal(each, self._note)
                    self._previous[each] = previous
        return self

    def __exit__(self, *error: object) -> None:
        for each, previous in self._previous.items():
            signal.signal(each, previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        if not again or signum != signal.SIGINT:
            self.requested = signal.Signals(signum)
        if again:
            raise KeyboardInterrupt

    def raise_if_requested(self) -> None:
        """Interrupt now if a signal came."""
        if self.requested is not None:
            raise KeyboardInterrupt(int(self.requested))

    def raise_together(self) -> None:
        """Interrupt all processes now if a signal came to one, after the same step of each.

        They ask one another every tenth time.
        """
        if n_processes() == 1:
            return self.raise_if_requested()
        self._n_steps += 1
        if self._n_steps % _STEPS_BETWEEN_QUESTIONS == 0:
            came = largest(int(self.requested or 0))
            self.requested = signal.Signals(came) if came else None
            self.raise_if_requested()
        return None

    def take_over(self, error: KeyboardInterrupt) -> None:
        """Note the signal that came to another process, from its interruption."""
        if self.requested is None and error.args:
            self.requested = signal.Signals(error.args[0])

    @property
    def word(self) -> str:
        """What to say of the training: Ctrl-C interrupts it, other signals terminate it."""
        ends = self.requested not in (None, signal.SIGINT)
        return "terminated" if ends else "interrupted"

    def deliver(self) -> None:
        """Let a signal that ends the process do so, now that what it would lose is written.

        Raises
        ------
        SystemExit
            With 128 and the number of the signal, 143 for SIGTERM, where nobody else handles it.
        """
        if self.requested in (None, signal.SIGINT):
            return
        assert self.requested is not None
        if self._previous.get(self.requested) is signal.SIG_DFL:
            raise SystemExit(128 + self.requested)
        signal.raise_signal(self.requested)
