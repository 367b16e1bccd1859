"""Fitted models on disk: a folder with JSON and tensors, no pickled code."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

_RECORD, _WEIGHTS, _HISTORY = "model.json", "weights.pt", "history.csv"


def write_model(
    folder: str | Path,
    record: Mapping[str, Any],
    *,
    weights: Mapping[str, Any],
    history: pd.DataFrame | None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a whole or not at all.

    Parameters
    ----------
    folder
        The folder to be.
    record
        What JSON can hold.
    weights
        State dicts.
    history
        One row per epoch, or None.
    overwrite
        Whether a model that stands there may be replaced.

    Raises
    ------
    FileExistsError
        Something stands there and may not or must not be replaced.
    """
    folder = Path(folder)
    _check_free(folder, overwrite=overwrite)
    with _new_folder(folder) as temporary:
        (temporary / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        torch.save(dict(weights), temporary / _WEIGHTS)
        if history is not None:
            history.to_csv(temporary / _HISTORY)
    return folder


def read_model(
    folder: str | Path,
) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame | None]:
    """Read record, state dicts (on the CPU) and history of a model.

    Raises
    ------
    FileNotFoundError
        The folder holds no model.
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {_RECORD}: not a saved model. Give the folder that save() wrote."
        )
    record = json.loads((folder / _RECORD).read_text())
    weights = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
    path = folder / _HISTORY
    return record, weights, pd.read_csv(path, index_col="epoch") if path.is_file() else None


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{folder} is there already. Pass overwrite=True or another path.")
    if not (folder / _RECORD).is_file():
        raise FileExistsError(
            f"{folder} holds no model, so it is not replaced. Give another folder."
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
