"""Contexts in which programs run without leaving a trace: random state, gradients, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import nn


@contextmanager
def seeded(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Draw from a seed, and leave the global random state as it was.

    Parameters
    ----------
    seed
        Of all draws on the CPU and on ``device``.
    device
        Where draws are made, if not only on the CPU.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def looking(
    *modules: nn.Module, seed: int = 0, device: torch.device | None = None
) -> Iterator[None]:
    """Evaluate modules: no gradient, no dropout, no validation, draws from a seed.

    Parameters
    ----------
    *modules
        Modules to put into evaluation mode; their own mode comes back afterwards.
    seed, device
        As in :func:`seeded`.
    """
    modes = [module.training for module in modules]
    with seeded(seed, device=device), torch.no_grad(), pyro.validation_enabled(is_validate=False):
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)


@contextmanager
def outside_param_store() -> Iterator[None]:
    """Keep Pyro modules (autoguides) from entering their parameters into Pyro's global store.

    Their parameters are their own; in the store a second model of the same names would get the
    first one's.
    """
    with pyro.get_param_store().scope():
        yield
