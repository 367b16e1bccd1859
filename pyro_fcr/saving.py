"""Fitted models on disk: a folder with JSON and tensors, no pickled code."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_fcr.data import Split
from pyro_fcr.metrics import nan_to_null

FORMAT = 2  # 1: weights by torch.save
_RECORD, _HISTORY, _SPLIT = "model.json", "history.csv", "split.csv.gz"
_WEIGHTS, _WEIGHTS_1 = "weights.safetensors", "weights.pt"
_TRAIN, _HELDOUT = "train", "held out"
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
    """

    record: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    history: pd.DataFrame | None
    split: pd.Series | None


def name_split(split: Split, obs_names: pd.Index) -> pd.Series:
    """Say of cells by name what they were in training: positions are lost with the data.

    Parameters
    ----------
    split
        Positions of the cells.
    obs_names
        Names of all cells, ``(n_cells,)``.

    Returns
    -------
    ``"train"`` or ``"held out"`` by name; cells that were neither are not there.
    """
    names = np.asarray(obs_names, dtype=str)
    groups = [np.unique(rows) for rows in (split.train, split.heldout)]  # refits may repeat cells
    parts = np.repeat([_TRAIN, _HELDOUT], [len(rows) for rows in groups])
    return pd.Series(parts, pd.Index(names[np.concatenate(groups)], name="cell"), name="part")


def find_split(named: pd.Series, obs_names: pd.Index) -> Split:
    """Find the cells of a split again, wherever they stand.

    Parameters
    ----------
    named
        From :func:`name_split`.
    obs_names
        Names of the cells at hand, each its own; some may be missing or new.
    """
    part = named.reindex(np.asarray(obs_names, dtype=str)).to_numpy()
    return Split(*(np.flatnonzero(part == name).astype(np.int64) for name in (_TRAIN, _HELDOUT)))


def write_model(folder: str | Path, saved: Saved, *, overwrite: bool = False) -> Path:
    """Write a model as a whole or not at all.

    Parameters
    ----------
    folder
        The folder to write.
    saved
        The model to write there.
    overwrite
        Whether a model that stands there may be replaced.

    Raises
    ------
    FileExistsError
        If something stands there and may not or must not be replaced.
    TypeError
        If the state of a program is more than tensors.
    """
    folder = Path(folder)
    _check_free(folder, overwrite=overwrite)
    record, weights = {"format": FORMAT, **saved.record}, _flat(saved.weights)
    if saved.history is not None:
        record["fit"] = nan_to_null(dict(saved.history.attrs))
    with _new_folder(folder) as temporary:
        (temporary / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        save_file(weights, temporary / _WEIGHTS)
        if saved.history is not None:
            saved.history.to_csv(temporary / _HISTORY)
        if saved.split is not None:
            # Without a time stamp: the same split gives the same bytes.
            saved.split.to_csv(temporary / _SPLIT, compression={"method": "gzip", "mtime": 0})
    return folder


def read_model(folder: str | Path) -> Saved:
    """Read a model; folders of earlier versions have ``weights.pt`` and may have no split.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        If a later version wrote it.
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {_RECORD}: not a saved model. Name the folder that save() wrote."
        )
    record = json.loads((folder / _RECORD).read_text())
    if record["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {record['format']}; this version of pyro-fcr reads formats up to "
            f"{FORMAT}. Update pyro-fcr to the version that saved it, {record['versions']}."
        )
    path, split = folder / _HISTORY, folder / _SPLIT
    history = pd.read_csv(path, index_col="epoch") if path.is_file() else None
    if history is not None:
        history.attrs.update(record.get("fit", {}))
    return Saved(
        record=record,
        weights=_read_weights(folder, record["format"]),
        history=history,
        split=pd.read_csv(split, **_TEXT).squeeze(axis=1) if split.is_file() else None,
    )


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


def _read_weights(folder: Path, written: int) -> Mapping[str, Mapping[str, Tensor]]:
    if written == 1:
        return torch.load(folder / _WEIGHTS_1, map_location="cpu", weights_only=True)
    weights: dict[str, dict[str, Tensor]] = {"model": {}, "guide": {}}
    for name, value in load_file(folder / _WEIGHTS).items():
        program, key = name.split(".", 1)
        weights[program][key] = value
    return weights


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} is there already. Pass overwrite=True or another path.")
    if folder.exists() and not (folder / _RECORD).is_file():
        raise FileExistsError(
            f"{folder} holds no model, so it is not replaced. Name another folder."
        )


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
