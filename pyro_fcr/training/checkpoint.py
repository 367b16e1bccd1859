"""Checkpoints: files that are whole, of one run, and in the place of no other file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pyro_fcr.files import atomic_write, check_place, locate
from pyro_fcr.ranks import n_processes
from pyro_fcr.training.plan import TrainingPlan

_MAGIC = b"pyro-fcr checkpoint 1\n"  # then the sha256 of the rest, and a new line
_DIGEST = 64
_FREE = {"device", "progress", "checkpoint_every", "max_epochs", "patience", "engine"}


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message says why."""


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's generators, of the CPU and of a device."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the state of torch's generators back, if possible that of a device, too."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)


def check_checkpoint_place(path: str | Path) -> Path:
    """Refuse a place where no checkpoint can be written, or where another file stands.

    Returns
    -------
    The place that is meant, see :func:`pyro_fcr.files.locate`.

    Raises
    ------
    OSError
        The message says which of the two.
    """
    place = check_place(path)
    if place.exists() and not _is_checkpoint(place):
        raise FileExistsError(
            f"{path} is no checkpoint of this version, so it is not replaced. Name another file."
        )
    return place


def write_checkpoint(path: str | Path, state: dict[str, Any], plan: TrainingPlan) -> None:
    """Write a state together with the plan it belongs to, atomically.

    Raises
    ------
    OSError
        It cannot be written, the disk is full, or something else stands there; that stays.
    """
    place, buffer = check_checkpoint_place(path), io.BytesIO()
    torch.save({"plan": asdict(plan), **state}, buffer)
    data = buffer.getbuffer()
    with atomic_write(place) as draft, draft.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n")
        file.write(data)


def read_checkpoint(
    path: str | Path, plan: TrainingPlan, *, n_epochs: int, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Read a state that was written in the same run, by as many processes.

    Parameters
    ----------
    path
        The file.
    plan, n_epochs
        The plan of the run that goes on, and its number of epochs.
    digests
        What that run is of, see :func:`pyro_fcr.training.digests.digests_of`.

    Raises
    ------
    CheckpointError
        There is no such file, it is damaged or of an earlier version, or cells, labels, genes,
        split, programs, the number of processes or a setting differ that change what is trained.
    """
    place = locate(path)
    if not place.is_file():
        raise CheckpointError(f"There is no checkpoint {path}. Leave out resume= to start anew.")
    state = _read(place, path)
    if obstacle := _obstacle(state, asdict(plan), n_epochs, digests):
        raise CheckpointError(f"{path} {obstacle}, or start anew without resume=.")
    return state


def _is_checkpoint(place: Path) -> bool:
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _read(place: Path, path: str | Path) -> dict[str, Any]:
    if not _is_checkpoint(place):
        raise CheckpointError(
            f"{path} is no checkpoint of this version of pyro-fcr. If an earlier one wrote it, "
            "resume with that version; else start anew without resume=."
        )
    content = memoryview(place.read_bytes())[len(_MAGIC) :]
    digest, data = bytes(content[: _DIGEST + 1]), content[_DIGEST + 1 :]
    if digest != hashlib.sha256(data).hexdigest().encode() + b"\n":
        raise CheckpointError(
            f"{path} is damaged: its sha256 does not fit. Resume from another copy of it, or start "
            "anew without resume=."
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _obstacle(
    state: dict[str, Any], ours: dict[str, Any], n_epochs: int, digests: Mapping[str, str]
) -> str:
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
    n, was = n_processes(), state.get("n_processes", 1)
    if was != n:
        return f"was trained by {_processes(was)}, not {n}. Resume with as many"
    differ = [name for name in digests if state["digests"].get(name) != digests[name]]
    if differ:
        return (
            f"is of another run: {differ[0]} were not the same when it was written. Resume with "
            "the data and settings of that run"
        )
    return ""


def _processes(n: int) -> str:
    return f"{n} processes" if n > 1 else "1 process"
