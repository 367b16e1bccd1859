"""What is refused before several processes train together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_fcr.graph import CELLS, Run, drawn_sites, plates
from pyro_fcr.modes import looking
from pyro_fcr.objective import Objective
from pyro_fcr.parts import Part
from pyro_fcr.ranks import n_processes, rank, said_by_all
from pyro_fcr.training.batches import Batches

_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d


def check_divisible(objective: Objective, batches: Batches) -> None:
    """Refuse batches that cannot be divided among the processes, and programs that would notice.

    Raises
    ------
    ValueError
        There are fewer cells in a batch than processes, a network normalises by the cells of a
        batch, or a latent that all cells share could be taken for one of cells.
    """
    n = min(batches.batch_size, len(batches.rows))
    if n < n_processes():
        raise ValueError(
            f"A batch has {n} cells, too few for {n_processes()} processes: raise batch_size, or "
            "start fewer."
        )
    for name, module in objective.named_modules():
        if isinstance(module, _NORMS):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which would see the cells of one process "
                f"only, of {n_processes()}: use a LayerNorm, or one process."
            )
    _check_shared_latents(objective, batches, n)


def _check_shared_latents(objective: Objective, batches: Batches, n: int) -> None:
    part = Part.of_this_process(n)
    assert part is not None
    with looking(objective, device=batches.device):
        run = Run.trace(objective.model, objective.guide, batches.batch(batches.rows[:2]))
    for site, node in drawn_sites(run.guide_trace).items():
        if CELLS not in plates(node) and part.stop - part.start in node["value"].shape:
            raise ValueError(
                f"{site}, which all cells share, has as many dimensions as a process has cells of "
                f"a batch, {part.stop - part.start}, and their noise could not be told apart: "
                "choose another batch_size."
            )


def check_same(said: Mapping[str, Any]) -> None:
    """Refuse processes that are not of one training.

    Parameters
    ----------
    said
        What this process trains, by name.

    Raises
    ------
    ValueError
        Another process says something else; names it.
    """
    for number, other in enumerate(said_by_all(dict(said))):
        if differ := [name for name in said if said[name] != other[name]]:
            raise ValueError(
                f"{differ[0]} of process {number} and of process {rank()} are not the same: give "
                "all processes the same cells and settings; each batch is divided among them."
            )
