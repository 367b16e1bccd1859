"""Every private name of torch that this package uses, and what for; a test tries each.

Torch may change them without notice: with a new version of torch, look here first.
"""

from typing import Any

import torch
from torch import Tensor

# A traced step is computed on tensors without values; these errors name what a graph cannot hold.
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.distributions import Distribution

# Records a step, gradients included, as a graph; a likelihood asks whether one is being recorded.
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

# Sees each tensor operation of what runs within: a step's draws are listed and replaced by it.
from torch.utils._python_dispatch import TorchDispatchMode as OperationMode

# Batches are nested dictionaries of tensors.
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "SAME_NOISE",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensorMode",
    "OperationMode",
    "compiles_noise",
    "end_recorded_noise",
    "get_proxy_mode",
    "make_fx",
    "skip_where",
    "sum_of_processes",
    "tree_leaves",
    "tree_map_only",
    "validates_by_default",
]

SAME_NOISE: dict[str, Any] = {"fallback_random": True}
"""Option of the compiler (``torch._inductor.config``) to draw within a graph as eager mode does."""


def compiles_noise() -> bool:
    """Return whether draws within a graph are eager mode's: not up to torch 2.10 (measured)."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) > (2, 10)


def validates_by_default() -> bool:
    """Return whether new distributions check their arguments; torch offers only the setter."""
    return Distribution._validate_args


def skip_where(optimizer: Any, found_inf: Tensor) -> None:
    """Have a fused optimizer skip its step where a tensor is 1, by the hooks of ``GradScaler``."""
    optimizer.grad_scale, optimizer.found_inf = None, found_inf


def end_recorded_noise(device: torch.device) -> None:
    """Have the generator of a GPU draw again.

    After a recording that failed torch takes it to be within that recording, and refuses every draw
    of eager mode; a copy of its state is in none.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


def sum_of_processes(values: Tensor) -> Tensor:
    """Add up tensors of all processes as an operation that a traced step can hold, and compile."""
    from torch.distributed import _functional_collectives as collectives  # noqa: PLC0415

    group: Any = torch.distributed.group.WORLD
    found = collectives.all_reduce(values.detach().contiguous(), "sum", group)
    return collectives.wait_tensor(found)
