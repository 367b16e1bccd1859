"""Context managers that leave random state, gradients and modules' modes as they were."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import pyro
import torch
from torch import nn

_AS_IT_IS = nullcontext()

_ONE_AT_A_TIME = threading.RLock()
"""Held while a program runs or draws come from a seed. Pyro's handlers and store, and torch's
generators, are those of the whole process: a second thread waits, and gets the serial answer."""


def set_seed(seed: int) -> None:
    """Seed the generators of the CPU and of CUDA devices.

    For each kind of device that is not there, ``torch.manual_seed`` writes down the whole stack:
    milliseconds, which checks of a program and repeated draws add up to a tenth of their time.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Draw from a seed, and leave the global random state as it was.

    Parameters
    ----------
    seed
        Seed of all draws on the CPU and on ``device``.
    device
        The device of the draws, if they are not only on the CPU.
    """
    with same_noise_again(device):
        set_seed(seed)
        yield


@contextmanager
def same_noise_again(device: torch.device | None = None) -> Iterator[None]:
    """Have what comes afterwards draw what is drawn within.

    Parameters
    ----------
    device
        The device of the draws, if they are not only on the CPU.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def looking(
    *modules: nn.Module, seed: int = 0, device: torch.device | None = None
) -> Iterator[None]:
    """Evaluate modules: no gradient, no dropout, no validation, draws from a seed.

    Parameters
    ----------
    *modules
        Modules to put into evaluation mode. Their own mode is restored afterwards.
    seed, device
        As in :func:`seeded`.
    """
    modes = {part: part.training for module in modules for part in module.modules()}
    with seeded(seed, device=device), torch.no_grad(), pyro.validation_enabled(is_validate=False):
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for part, mode in modes.items():  # a part's own mode, which may not be the whole's
                part.training = mode


@contextmanager
def in_precision(
    precision: Literal["float32", "tf32", "bf16"], device: torch.device
) -> Iterator[None]:
    """Let matrix products be less exact, and leave everything else as it was.

    Parameters
    ----------
    precision
        ``"tf32"`` multiplies float32 with 10 bits on GPUs that can; ``"bf16"`` multiplies in
        bfloat16 where torch's autocast considers it safe, and as ``"tf32"`` where a network opts
        out by :func:`in_full`; ``"float32"`` changes nothing.
    device
        The device of the products.
    """
    before = torch.get_float32_matmul_precision()
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    rounds = precision == "tf32" or (precision == "bf16" and device.type == "cuda")
    torch.set_float32_matmul_precision("high" if rounds else before)
    try:
        with bf16:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_full(device: torch.device) -> AbstractContextManager:
    """Leave numbers in their own precision within :func:`in_precision`.

    What a likelihood or a prior is given must not be rounded to bfloat16: two latents or the
    log-odds of thousands of genes are compared there.
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return _AS_IT_IS


@contextmanager
def outside_param_store() -> Iterator[None]:
    """Keep Pyro modules (autoguides) from entering their parameters into Pyro's global store.

    The modules hold their own parameters. In the store, a second model with the same names would
    get those of the first.
    """
    with _ONE_AT_A_TIME, pyro.get_param_store().scope():
        yield
