"""The seal of a result: who wrote it, and the sha256 of what was written.

A result is checked where it is read again, and only results with a whole seal are ever replaced.
Formats that end before their file does (h5ad, png, pdf, svg, html) have the seal as its last line.
Others (csv, json) have it beside them as ``NAME.sha256``, folders (zarr stores, evaluations) within
them as ``pyro-fcr.sha256``; ``sha256sum -c`` reads both.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from pyro_fcr.files import atomic_write, locate

FOLDER_SEAL = "pyro-fcr.sha256"

_IN_FILE = {".h5ad", ".png", ".pdf", ".svg", ".html"}
_MARK = "pyro-fcr result 1 sha256 "
_LAST_LINE = re.compile(rb"\n[% ]<!-- pyro-fcr result 1 sha256 ([0-9a-f]{64}) -->\n")
_LENGTH = len(_MARK) + 64 + len("\n%<!-- ") + len(" -->\n")
_FLIPPED = 4  # letters of a seal that are another one, up to which it still is a seal
_STEP = 2**20

_Listed: TypeAlias = Mapping[str, frozenset[str]]  # digests of each file; two while it is replaced


class DamagedError(ValueError):
    """A result is not what was written; the message names it and the mend."""


def check_seal(path: str | Path) -> bool:
    """Check that a result is what was written.

    Parameters
    ----------
    path
        A file or folder.

    Returns
    -------
    Whether it has a seal at all; what others wrote has none.

    Raises
    ------
    DamagedError
        It has one, which does not fit.
    """
    place = locate(path)
    if place.is_dir() or place.suffix not in _IN_FILE:
        return _check_listed(path, place)
    with place.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LENGTH))
        found = _sealed_digest(file.read())
    if found is None:
        return False
    if _digest(place, size - _LENGTH) != found:
        raise DamagedError(_damaged(path, "Write or copy it again."))
    return True


def check_replaceable(path: str | Path, *, overwrite: bool = True) -> Path:
    """Refuse a place where something stands that must not be replaced.

    Parameters
    ----------
    path
        The result to write, a file or folder.
    overwrite
        Whether a result that stands there may be replaced.

    Returns
    -------
    The place that is meant, see :func:`pyro_fcr.files.locate`.

    Raises
    ------
    FileExistsError
        Something stands there: a result, without ``overwrite``, or anything else.
    """
    place = locate(path)
    beside = _beside(place)
    if os.path.lexists(beside) and not place.is_dir() and _read_list(beside) is None:
        raise FileExistsError(
            f"{path} would have its sha256 in {beside}, which pyro-fcr did not write. Remove that "
            "file, or choose another path."
        )
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return place
    if not overwrite:
        raise FileExistsError(f"{path} is there already. Choose another path.")
    try:
        is_own = check_seal(place)
    except DamagedError as error:
        raise FileExistsError(
            f"{path} was changed since pyro-fcr wrote it, so it is not replaced. Remove it, or "
            "choose another path."
        ) from error
    if not is_own:
        raise FileExistsError(
            f"{path} has no seal of pyro-fcr, so it is not replaced. If an earlier version wrote "
            "it, remove it; else choose another path."
        )
    return place


@contextmanager
def sealed(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Write a result, file or folder, that takes its place whole and with its seal.

    What somebody else put into the folder of a former result stays there.

    Parameters
    ----------
    path, overwrite
        As in :func:`check_replaceable`.

    Yields
    ------
    The path to write to, see :func:`pyro_fcr.files.atomic_write`.

    Raises
    ------
    FileExistsError
        Something stands there that must not be replaced.
    OSError
        It cannot be written.
    """
    place = check_replaceable(path, overwrite=overwrite)
    beside = None
    with atomic_write(place, replace_folder=overwrite) as draft:
        yield draft
        if draft.is_dir():
            names = sorted(_names(draft))
            _write_list(draft / FOLDER_SEAL, [(_digest(draft / name), name) for name in names])
            if place.is_dir():
                _keep_others(place, draft)
        elif place.suffix in _IN_FILE:
            _append(draft)
        else:
            beside, new = _beside(place), (_digest(draft), place.name)
            former = (_read_list(beside) or {}).get(place.name, ()) if place.exists() else ()
            _write_list(beside, [new, *((digest, place.name) for digest in former)])
    if beside is not None:
        _write_list(beside, [new])


def _keep_others(place: Path, draft: Path) -> None:
    """Put what is no part of a result into the folder that takes its place, too."""
    own = {FOLDER_SEAL, *(_read_list(place / FOLDER_SEAL) or ())}
    for name in sorted(_names(place) - own):
        if os.path.lexists(draft / name):
            raise FileExistsError(
                f"{place / name} is no part of the former result, and would be replaced. Move it "
                "elsewhere, or choose another path."
            )
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(place / name, draft / name, follow_symlinks=False)
        except OSError:  # not on this file system
            shutil.copy2(place / name, draft / name, follow_symlinks=False)


def _append(path: Path) -> None:
    mark = "%" if path.suffix == ".pdf" else " "
    line = f"\n{mark}<!-- {_MARK}{_digest(path)} -->\n"
    with path.open("ab") as file:
        file.write(line.encode())


def _sealed_digest(end: bytes) -> str | None:
    """Return the digest in the last line of a file, None if it is no seal."""
    found = _LAST_LINE.fullmatch(end)
    if found:
        return found[1].decode()
    blank = f"\n <!-- {_MARK}".encode()
    wrong = sum(a != b for a, b in zip(end, blank, strict=False)) if len(end) == _LENGTH else 99
    return "flipped" if wrong <= _FLIPPED else None


def _check_listed(path: str | Path, place: Path) -> bool:
    within = place.is_dir()
    seal = place / FOLDER_SEAL if within else _beside(place)
    listed = _read_list(seal)
    if listed is None:
        return False
    mend = f"Write or copy it again; if you changed it, remove {seal}."
    folder = place if within else place.parent
    for name, digests in listed.items() if within else ((place.name, listed.get(place.name, ())),):
        if not (folder / name).is_file() or _digest(folder / name) not in digests:
            raise DamagedError(_damaged(folder / name if within else path, mend))
    return True


def _damaged(path: str | Path, mend: str) -> str:
    return f"{path} is damaged, or was changed since pyro-fcr wrote it (by its sha256). {mend}"


def _read_list(seal: Path) -> _Listed | None:
    """Read a list of digests, None if there is none or it is not ours.

    Raises
    ------
    DamagedError
        It is ours, and not as it was written.
    """
    if not seal.is_file():
        return None
    data = seal.read_bytes()
    head, _, lines = data.partition(b"\n")
    expected = f"# {_MARK}".encode()
    if sum(a != b for a, b in zip(head, expected, strict=False)) > _FLIPPED or len(head) < len(
        expected
    ):
        return None
    if head != expected + hashlib.sha256(lines).hexdigest().encode():
        raise DamagedError(_damaged(seal, "Write the result again."))
    found: dict[str, frozenset[str]] = {}
    for line in lines.decode().splitlines():
        digest, name = line.split("  ", 1)
        found[name] = found.get(name, frozenset()) | {digest}
    return found


def _write_list(seal: Path, rows: list[tuple[str, str]]) -> None:
    lines = "".join(f"{digest}  {name}\n" for digest, name in rows)
    head = f"# {_MARK}{hashlib.sha256(lines.encode()).hexdigest()}\n"
    with atomic_write(seal) as draft:
        draft.write_text(head + lines)


def _names(folder: Path) -> set[str]:
    """Return the files of a folder as paths within it, its seal left out."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in files} - {FOLDER_SEAL}


def _beside(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _digest(path: Path, size: int | None = None) -> str:
    """Return the digest of a file, or of so many bytes of it."""
    found, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(_STEP, left))):
            found.update(data)
            left -= len(data)
    return found.hexdigest()
