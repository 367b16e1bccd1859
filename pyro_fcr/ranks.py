"""Several processes that run one program, as ``torchrun`` starts them: what they do together.

Process 0 is the first: what is decided or written once, it decides or writes. With one process
everything here does nothing.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def n_processes() -> int:
    """Return how many processes run this program together: of torch's group, else of the launcher.

    Examples
    --------
    >>> n_processes()
    1
    """
    group = _group()
    return int(_told("WORLD_SIZE", 1)) if group is None else group.get_world_size()


def rank() -> int:
    """Return the number of this process, from 0."""
    group = _group()
    return _told("RANK", 0) if group is None else group.get_rank()


def place_on_machine() -> int:
    """Return the number of this process among those of its machine, from 0."""
    return _told("LOCAL_RANK", rank())


def _told(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else default


def _group() -> Any:
    """Return torch.distributed if there is a group; without torch there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None


def shows_progress(*, asked: bool | None = None) -> bool:
    """Tell whether this process shows a progress bar: the first one does, where there is a reader.

    Parameters
    ----------
    asked
        Whether to show it; None shows it in terminals and notebooks.
    """
    if asked is None:  # a notebook shows widgets, whatever its streams are
        asked = sys.stderr.isatty() or "ipykernel" in sys.modules
    return asked and rank() == 0


def check_alone(what: str) -> None:
    """Refuse what would be done by each process for itself, with other numbers in each.

    Raises
    ------
    ValueError
        There are several processes; says how many and the mend.
    """
    if (n := n_processes()) > 1:
        raise ValueError(
            f"{what} trains in one process, but {n} run this program (WORLD_SIZE, or torch's "
            "process group). Start it without torchrun."
        )


def join() -> None:
    """Have the processes find one another, if there are several and they did not yet.

    Raises
    ------
    ValueError
        They cannot; says the mend.
    """
    n = n_processes()
    if n == 1 or _group() is not None:
        return
    import torch  # noqa: PLC0415 (the command line asks for ranks without torch)

    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"WORLD_SIZE is {n}, but the processes do not find one another ({error}). Start them "
            f"with torchrun --nproc-per-node {n}, or unset WORLD_SIZE for one process."
        ) from error


@cache
def _talk(group: Any) -> Any:
    """Return a group for messages of the processes of ``group``, on CPUs."""
    import torch  # noqa: PLC0415

    return torch.distributed.new_group(backend="gloo")


def _talk_of_all() -> Any:
    import torch  # noqa: PLC0415

    return _talk(torch.distributed.group.WORLD)


def said_by_all(value: T) -> list[T]:
    """Return what every process says, in their order."""
    n = n_processes()
    if n == 1:
        return [value]
    import torch  # noqa: PLC0415

    found: list[Any] = [None] * n
    torch.distributed.all_gather_object(found, value, group=_talk_of_all())
    return found


def largest(value: int) -> int:
    """Return the largest of the numbers that the processes say."""
    if n_processes() == 1:
        return value
    import torch  # noqa: PLC0415

    found = torch.tensor(value)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=_talk_of_all())
    return int(found)


def from_first(make: Callable[[], T]) -> T:
    """Make something in the first process and hand it to all, or the error that came of it.

    Parameters
    ----------
    make
        Is called in the first process only; what it returns can be pickled.
    """
    if n_processes() == 1:
        return make()
    join()
    import torch  # noqa: PLC0415

    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except (Exception, KeyboardInterrupt) as error:
            made[1] = _portable(error)
    torch.distributed.broadcast_object_list(made, src=0, group=_talk_of_all())
    if made[1] is not None:
        raise made[1]
    return made[0]


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def copy_from_first(tensors: Iterable[Any]) -> None:
    """Put the numbers of the first process into tensors of all."""
    if n_processes() == 1:
        return
    import torch  # noqa: PLC0415

    with torch.no_grad():
        for each in tensors:
            torch.distributed.broadcast(each, 0)


class ProcessLostError(ConnectionError):
    """Another of the processes has ended, without which the others cannot go on."""


@contextmanager
def together(what: str) -> Iterator[None]:
    """Say in one line that another process is gone, where the messages to it fail.

    Parameters
    ----------
    what
        What ends, and how to go on.

    Raises
    ------
    ProcessLostError
        Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if n_processes() == 1 or not _is_of_messages(error):
            raise
        raise ProcessLostError(
            f"Process {rank()} of {n_processes()} reaches the others no more: one of them has "
            f"ended. {what}"
        ) from error


def _is_of_messages(error: RuntimeError) -> bool:
    import torch  # noqa: PLC0415

    told = str(error).lower()
    named = any(word in told for word in ("gloo", "nccl", "connection closed", "connection reset"))
    return named or isinstance(error, torch.distributed.DistError)
