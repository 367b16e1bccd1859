"""Checkpoints: everything that a training run needs to go on as if it had never stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pyro_fcr.files import atomic_write
from pyro_fcr.training.plan import TrainingPlan

_FREE = {"device", "progress", "checkpoint_every", "max_epochs", "patience", "engine"}


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message says why."""


def random_state() -> dict[str, Any]:
    """Give the state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Put the state of torch's generators back."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def write_checkpoint(path: str | Path, state: dict[str, Any], plan: TrainingPlan) -> None:
    """Write a state next to the plan it belongs to, atomically."""
    with atomic_write(path) as temporary:
        torch.save({"plan": asdict(plan), **state}, temporary)


def read_checkpoint(path: str | Path, plan: TrainingPlan) -> dict[str, Any]:
    """Read a state that the same plan wrote.

    Raises
    ------
    CheckpointError
        There is no such file, a setting differs that changes what is trained, or an earlier version
        wrote it that did not have one.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Leave out resume= to start anew.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs, ours = state["plan"], asdict(plan)
    if unknown := sorted(ours.keys() - theirs.keys() - _FREE):
        raise CheckpointError(
            f"{path} was written by an earlier version, which did not have {', '.join(unknown)}. "
            "Resume with that version, or start anew without resume=."
        )
    for name in theirs.keys() - _FREE:
        if theirs[name] != ours[name]:
            raise CheckpointError(
                f"{path} was trained with {name}={theirs[name]!r}, not {ours[name]!r}. Resume "
                "with the same setting, or start anew without resume=."
            )
    return state
