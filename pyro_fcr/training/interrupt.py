"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Notes a Ctrl-C, so that training can stop between two steps and be resumed exactly.

    A second Ctrl-C interrupts at once, within a step. Outside of the main thread, where Python
    hands out no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        try:
            self._previous = signal.signal(signal.SIGINT, self._note)
        except ValueError:
            self._previous = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def raise_if_requested(self) -> None:
        """Interrupt now, if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt
