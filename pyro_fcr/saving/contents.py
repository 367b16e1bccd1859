"""What is saved of a model, and the bytes of each of its files."""

import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn

# A cell may be called NA or 001.
_TEXT: dict[str, Any] = {"index_col": "cell", "dtype": str, "keep_default_na": False}


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds.

    Parameters
    ----------
    record
        Record that JSON can hold.
    weights
        State dicts by ``model`` and ``guide``; on the CPU once they were read.
    history
        Table with a row per epoch, or None; its ``attrs`` are saved with it.
    split
        Training and held-out cells by name, see :func:`name_split`, or None.
    card
        The model card, see :func:`model_card`, or None.
    """

    record: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    history: pd.DataFrame | None
    split: pd.Series | None
    card: str | None = None


def to_bytes(saved: Saved) -> dict[str, bytes]:
    """Return the content of the files of a model by what they hold.

    Raises
    ------
    TypeError
        If the state of a program is more than tensors.
    """
    files = {"weights": safetensors.torch.save(_flat(saved.weights))}
    if saved.history is not None:
        files["history"] = saved.history.to_csv().encode()
    if saved.split is not None:
        # Without a time stamp: the same split gives the same bytes.
        files["split"] = gzip.compress(saved.split.to_csv().encode(), mtime=0)
    if saved.card is not None:
        files["card"] = saved.card.encode()
    return files


def read_history(data: bytes, attrs: Mapping[str, Any]) -> pd.DataFrame:
    """Read the history of a fit, of which the record of the model keeps the ``attrs``."""
    history = pd.read_csv(io.BytesIO(data), index_col="epoch")
    history.attrs.update(attrs)
    return history


def read_split(data: bytes) -> pd.Series:
    """Read which cells were trained on and held out, by name."""
    return pd.read_csv(io.BytesIO(gzip.decompress(data)), **_TEXT).squeeze(axis=1)


def read_weights(data: bytes, *, pickled: bool = False) -> Mapping[str, Mapping[str, Tensor]]:
    """Read state dicts by program; ``pickled`` ones are of the first format, and hold no code."""
    if pickled:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    weights: dict[str, dict[str, Tensor]] = {"model": {}, "guide": {}}
    for name, value in safetensors.torch.load(data).items():
        program, key = name.split(".", 1)
        weights[program][key] = value
    return weights


def load_weights(program: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights into a program.

    Raises
    ------
    ValueError
        They are of another program; names the first that does not fit.
    """
    expected = program.state_dict()
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for name, value in expected.items():
        shape = tuple(getattr(value, "shape", ()))
        if shapes.pop(name, None) != shape:
            found = tuple(weights[name].shape) if name in weights else "not there"
            raise ValueError(f"the weight {name} is {found}, and {shape} in the program")
    if shapes:
        raise ValueError(f"the weight {min(shapes)} has no place in the program")
    program.load_state_dict(dict(weights))


def _flat(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join state dicts under names such as ``model.y.base.weight``."""
    states = {f"{program}.{key}": v for program, each in weights.items() for key, v in each.items()}
    for name, value in states.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The state {name!r} is of type {type(value).__name__}; only tensors are saved. "
                "Register it as a buffer, or build it where the program is built."
            )
    # Tensors that share memory cannot be in one file.
    return {name: value.clone().contiguous() for name, value in states.items()}
