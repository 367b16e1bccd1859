"""The folder of a model: ``model.json`` names its files and the digest of each and of itself.

A reader takes what ``model.json`` names and nothing else. So a model is replaced by writing the
new files under new names, then ``model.json`` at one stroke, and by removing the old files last.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_fcr.files import atomic_write, check_place, flush, locate
from pyro_fcr.metrics import nan_to_null
from pyro_fcr.saving.contents import Saved, read_history, read_split, read_weights, to_bytes

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 4  # 1: weights by torch.save; 2: no digests; 3: no card
RECORD = "model.json"
_NAMES = {
    "weights": "weights.safetensors",
    "history": "history.csv",
    "split": "split.csv.gz",
    "card": "README.md",
}
FILES = tuple(_NAMES.values())
_PART = r"(weights|history|split|README)"
_OWN = re.compile(_PART + r"(-[0-9a-f]{16})?\.(safetensors|csv|csv\.gz|pt|md)")
_LEFTOVER = re.compile(rf"\.?{_PART}-[0-9a-f]{{16}}\..+|\.model\..+\.part\.json")
_OF_FOLDER = ("format", "files", "replaces", "sha256")  # entries of a record
_MEND = "Copy the folder again from where it was saved, or fit and save the model again."


class BrokenModelError(ValueError):
    """The files of a model are not those that were saved; the message names one and the mend."""


def check_model_place(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse a place where a model cannot or must not be saved.

    Parameters
    ----------
    folder
        The folder to write.
    overwrite
        Whether a model that stands there may be replaced.

    Returns
    -------
    The place that is meant, see :func:`pyro_fcr.files.locate`.

    Raises
    ------
    FileExistsError
        Something stands there that may not be replaced: a model, without ``overwrite``, or
        anything else.
    OSError
        Nothing can be written there.
    """
    place = locate(folder)
    if not place.exists():
        return check_place(folder)
    names = os.listdir(place) if place.is_dir() else [place.name]
    found = [name for name in names if not _LEFTOVER.fullmatch(name)]
    if found and not _is_model(place):
        raise FileExistsError(
            f"{folder} holds no model, so it is not replaced. Name another folder."
        )
    if found and not overwrite:
        raise FileExistsError(f"{folder} is there already. Pass overwrite=True or another path.")
    check_place(place / RECORD)
    return place


def write_model(folder: str | Path, saved: Saved, *, overwrite: bool = False) -> Path:
    """Write a model as a whole or not at all; other files in its folder are left alone.

    Parameters
    ----------
    folder, overwrite
        As in :func:`check_model_place`.
    saved
        The model to write there.

    Raises
    ------
    FileExistsError
        Something stands there that may not be replaced.
    OSError
        Nothing can be written there, or the disk is full.
    TypeError
        If the state of a program is more than tensors.
    """
    place = check_model_place(folder, overwrite=overwrite)
    files, about = to_bytes(saved), {k: v for k, v in saved.record.items() if k not in _OF_FOLDER}
    record = {"format": FORMAT, **about}
    if saved.history is not None:
        record["fit"] = nan_to_null(dict(saved.history.attrs))
    if place.exists():
        _replace(place, record, files)
    else:
        with atomic_write(place) as draft:
            draft.mkdir()
            _write(draft, record, files, _NAMES)
    return Path(folder)


def read_model(folder: str | Path) -> Saved:
    """Read a model and check that its files are those that were saved.

    Folders of format 1 and 2 have no digests, and are taken as they are.

    Raises
    ------
    FileNotFoundError
        The folder holds no model.
    BrokenModelError
        A file is missing, damaged or of another model, or a later version wrote it.
    """
    place = locate(folder)
    if not (place / RECORD).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {RECORD}: not a saved model. Name the folder that save() wrote."
        )
    while True:
        data = (place / RECORD).read_bytes()
        try:
            return _read(Path(folder), place, data)
        except BrokenModelError:
            if (place / RECORD).read_bytes() == data:  # else it was replaced while it was read
                raise


@contextmanager
def reading(path: Path, *, mend: str = _MEND) -> Iterator[None]:
    """Say of whatever goes wrong that a file of a model does not hold what it should.

    Parameters
    ----------
    path
        The file or folder.
    mend
        What to do about it.

    Raises
    ------
    BrokenModelError
        In one line.
    """
    try:
        yield
    except BrokenModelError:
        raise
    except Exception as error:
        first = (str(error) or "nothing more is known").splitlines()[0]
        raise BrokenModelError(
            f"{path} does not hold what this version of pyro-fcr saves there "
            f"({type(error).__name__}: {first}). {mend}"
        ) from error


def _read(folder: Path, place: Path, data: bytes) -> Saved:
    with reading(folder / RECORD):
        record = json.loads(data)
        _check_record(folder, record)
        listed = _listed(record, place)
        names = {part: name for part, (name, _) in listed.items()}
        fit = dict(record.get("fit", {}))
        if "weights" not in names:
            raise BrokenModelError(f"{folder / RECORD} names no weights. {_MEND}")
    files = {part: _content(folder, place, *each) for part, each in listed.items()}
    history = split = None
    with reading(folder / names["weights"]):
        weights = read_weights(files["weights"], pickled=record["format"] == 1)
    if "history" in files:
        with reading(folder / names["history"]):
            history = read_history(files["history"], fit)
    if "split" in files:
        with reading(folder / names["split"]):
            split = read_split(files["split"])
    card = files["card"].decode() if "card" in files else None
    return Saved(record=record, weights=weights, history=history, split=split, card=card)


def _content(folder: Path, place: Path, name: str, digest: str | None) -> bytes:
    """Return the bytes of a file of a model that are those that were saved."""
    if not _OWN.fullmatch(name):
        raise BrokenModelError(f"{folder / RECORD} names {name!r}, no file of a model. {_MEND}")
    try:
        data = (place / name).read_bytes() if (place / name).is_file() else None
    except FileNotFoundError:
        data = None
    if data is None:
        raise BrokenModelError(f"{folder / name}, a file of the model, is missing. {_MEND}")
    if digest is not None and _digest(data) != digest:
        raise BrokenModelError(
            f"{folder / name} is damaged or of another model: its sha256 is not the one in "
            f"{RECORD}. {_MEND}"
        )
    return data


def _check_record(folder: Path, record: Any) -> None:
    found = record["format"]
    if not isinstance(found, int) or found > FORMAT:
        raise BrokenModelError(
            f"{folder} has format {found!r}; this version of pyro-fcr reads formats up to "
            f"{FORMAT}. Update pyro-fcr to the version that saved it, {record.get('versions')}."
        )
    if (found >= 3 or "sha256" in record) and record.get("sha256") != _digest_of(record):
        raise BrokenModelError(
            f"{folder / RECORD} is damaged or was edited: its own sha256 does not fit. {_MEND}"
        )


def _listed(record: Mapping[str, Any], place: Path) -> dict[str, tuple[str, str | None]]:
    """Return name and digest of the files of a model by what they hold."""
    if "files" in record:
        return {part: (each["name"], each["sha256"]) for part, each in record["files"].items()}
    names = {**_NAMES, "weights": "weights.pt"} if record["format"] == 1 else _NAMES
    there = {part for part, name in names.items() if (place / name).is_file()} - {"card"}
    return {part: (name, None) for part, name in names.items() if part in {"weights", *there}}


def _is_model(place: Path) -> bool:
    try:
        record = json.loads((place / RECORD).read_bytes())
        if (place / RECORD).is_symlink():  # it belongs to another folder
            return False
        return isinstance(record["format"], int) and "registry" in record
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _replace(place: Path, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Put a model in the place of another one, or into a folder without one."""
    names = {part: _with_digest(_NAMES[part], data) for part, data in files.items()}
    with _locked(place) as alone:
        former = _files_of_former(place) - set(names.values())
        for name in names.values():
            if (place / name).is_symlink():
                (place / name).unlink()
        # If it is killed before the last line, the next one knows what is left of the former.
        _write(place, {**record, "replaces": sorted(former)}, files, names)
        if alone:
            former |= {name for name in os.listdir(place) if _LEFTOVER.fullmatch(name)}
        for name in former - set(names.values()):
            (place / name).unlink(missing_ok=True)


def _files_of_former(place: Path) -> set[str]:
    if not _is_model(place):
        return set()
    record = json.loads((place / RECORD).read_bytes())
    listed = dict(_listed(record, place).values())
    names = {str(n) for n in [*listed, *record.get("replaces", [])] if _OWN.fullmatch(str(n))}
    card = _NAMES["card"]  # a name that anybody's file may have
    written = (place / card).is_file() and _digest((place / card).read_bytes())
    return names if card in listed and listed[card] == written else names - {card}


def _write(
    place: Path, record: Mapping[str, Any], files: Mapping[str, bytes], names: Mapping[str, str]
) -> None:
    """Write the files of a model, and at last the record that makes them one."""
    listed = {}
    for part, data in files.items():
        with atomic_write(place / names[part]) as draft:
            draft.write_bytes(data)
        listed[part] = {"name": names[part], "sha256": _digest(data)}
    whole = {**record, "files": listed}
    whole["sha256"] = _digest_of(json.loads(json.dumps(whole)))
    with atomic_write(place / RECORD) as draft:
        draft.write_text(json.dumps(whole, indent=1) + "\n")
    flush(place)


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Let one process at a time replace a model; False where the file system knows no locks."""
    if fcntl is None:
        yield False
        return
    opened = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)


def _with_digest(name: str, data: bytes) -> str:
    stem, suffix = name.split(".", 1)
    return f"{stem}-{_digest(data)[:16]}.{suffix}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(record: Mapping[str, Any]) -> str:
    """Return the digest of what a record says, whatever its layout."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return _digest(json.dumps(rest, sort_keys=True).encode())
