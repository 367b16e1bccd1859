"""Several processes that run one program, as ``torchrun`` starts them: how many there are."""

from __future__ import annotations

import os

import torch


def n_processes() -> int:
    """Return how many processes run this program together: of torch's group, else of the launcher.

    Examples
    --------
    >>> n_processes()
    1
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    said = os.environ.get("WORLD_SIZE", "1")
    return int(said) if said.isdecimal() else 1


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
