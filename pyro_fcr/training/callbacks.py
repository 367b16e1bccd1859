"""What a training tells others after each epoch."""

from collections.abc import Callable, Iterable, Mapping

import torch

from pyro_fcr.modes import seeded
from pyro_fcr.values import shown

Callback = Callable[[int, Mapping[str, float]], object]
"""A function of an epoch, counted from 0, and its row of the history; True ends the training."""


def check_callbacks(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """Return callbacks that can be called.

    Raises
    ------
    ValueError
        One is no function, or one was passed without a list.
    """
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ValueError(f"callbacks is {shown(callbacks)}; expected a list of functions.")
    found = tuple(callbacks)
    for each in found:
        if not callable(each):
            raise ValueError(
                f"callbacks holds {shown(each)}; expected functions of (epoch, terms)."
            )
    return found


def ask_to_stop(
    callbacks: Iterable[Callback],
    epoch: int,
    terms: Mapping[str, float],
    *,
    seed: int,
    device: torch.device,
) -> bool:
    """Tell all callbacks of an epoch, and return whether one wants the training to end.

    What they draw at random does not change the training.
    """
    with seeded(seed, device=device):
        answers = [each(epoch, dict(terms)) for each in callbacks]
    return any(answer is True for answer in answers)
