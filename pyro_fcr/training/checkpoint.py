"""Stopping and going on: Ctrl-C between two steps, and checkpoints that lose nothing."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pyro_fcr.files import atomic_write
from pyro_fcr.training.plan import TrainingPlan

_FREE = {"device", "progress", "checkpoint_every", "max_epochs", "patience", "engine"}


class Interrupt:
    """Note a Ctrl-C, so that training can stop between two steps and be resumed exactly.

    A second Ctrl-C interrupts at once, within a step. Outside the main thread, where Python
    delivers no signals, nothing is noted.
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

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def raise_if_requested(self) -> None:
        """Interrupt now if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message says why."""


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put the state of torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def write_checkpoint(path: str | Path, state: dict[str, Any], plan: TrainingPlan) -> None:
    """Write a state together with the plan it belongs to, atomically."""
    with atomic_write(path) as temporary:
        torch.save({"plan": asdict(plan), **state}, temporary)


def read_checkpoint(path: str | Path, plan: TrainingPlan, *, n_epochs: int) -> dict[str, Any]:
    """Read a state that was written with the same plan.

    Parameters
    ----------
    path
        The file.
    plan, n_epochs
        The plan of the run that goes on, and its number of epochs.

    Raises
    ------
    CheckpointError
        There is no such file, a setting differs that changes what is trained, or the file was
        written by an earlier version without one of the settings.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Leave out resume= to start anew.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if obstacle := _obstacle(state, asdict(plan), n_epochs):
        raise CheckpointError(f"{path} {obstacle}, or start anew without resume=.")
    return state


def _obstacle(state: dict[str, Any], ours: dict[str, Any], n_epochs: int) -> str:
    theirs, theirs_epochs = state["plan"], state["position"][3]
    if unknown := sorted(ours.keys() - theirs.keys() - _FREE):
        names = ", ".join(unknown)
        return f"is of an earlier version, which did not have {names}. Resume with that version"
    for name in theirs.keys() - _FREE:
        if theirs[name] != ours[name]:
            was, now = f"{name}={theirs[name]!r}", f"{ours[name]!r}"
            return f"was trained with {was}, not {now}. Resume with the same setting"
    if theirs_epochs != n_epochs:
        return (
            f"belongs to a run of {theirs_epochs} epochs, this one has {n_epochs}. Schedules "
            "depend on it: resume with the same max_epochs and number of cells"
        )
    return ""
