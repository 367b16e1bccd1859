"""Files and folders that are whole or not there, and places that can be written to."""

import ctypes
import errno
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TOO_LITTLE = 2**16  # bytes left on a disk by which it is called full
_LONGEST_STEM = 40  # letters of a draft's name: it is longer than the name it stands for
_POSIX = os.name == "posix"
_HOST = re.sub(r"\W", "", socket.gethostname())
_numbers = itertools.count()  # threads of one process may write to one place


def locate(path: str | Path) -> Path:
    """Return the place that a path means: ``~`` is the home folder, and links are followed.

    Raises
    ------
    OSError
        There is no such user, or links lead in a circle.
    """
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:
        raise OSError(
            f"{path} leads nowhere ({error}). A name that begins with ~ is written ./~name."
        ) from error


def check_place(path: str | Path) -> Path:
    """Refuse a place where no file or folder can be made, by trying; nothing is left behind.

    Parameters
    ----------
    path
        What is to be written, whether something stands there or not.

    Returns
    -------
    The place, see :func:`locate`.

    Raises
    ------
    OSError
        The message names the path and what is in the way.
    """
    place = locate(path)
    made: list[Path] = []
    try:
        with suppress(FileNotFoundError):
            place.lstat()  # the name may be too long
        _make_parents(place, made)
        draft = _draft(place)
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}). Choose another place."
        ) from error
    finally:
        _remove_empty(made)
    return place


@contextmanager
def atomic_write(path: str | Path, *, replace_folder: bool = False) -> Iterator[Path]:
    """Write to a file or folder beside ``path`` that replaces it once everything has gone well.

    Parameters
    ----------
    path
        The file to write; where a link stands, what it leads to. Its folder is created if it is
        missing.
    replace_folder
        Whether a folder takes the place of another one, which is removed; else it replaces nothing
        but an empty one.

    Yields
    ------
    The path to write to. After an error it is removed, and ``path`` is left as it was. What a
    killed process left there is removed by the next one that writes to ``path``.

    Raises
    ------
    OSError
        If the disk is full, in whatever words a library said so.
    """
    place = locate(path)
    made: list[Path] = []
    _make_parents(place, made)
    _remove_leftovers(place)
    draft = _draft(place)
    try:
        yield draft
        if draft.is_file():
            flush(draft)
        if replace_folder and draft.is_dir() and place.is_dir():
            _exchange(draft, place)
        else:
            os.replace(draft, place)
        made.clear()
        flush(place.parent)
    except Exception as error:
        if not _is_full(error, place.parent):
            raise
        raise OSError(
            f"The disk is full: {path} cannot be written, and what stood there is unchanged. Free "
            "some space, or choose another place."
        ) from error
    finally:
        remove(draft)
        _remove_empty(made)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    with suppress(OSError):  # some file systems cannot
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove(path: Path) -> None:
    """Remove a file or a folder if there is one; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _make_parents(place: Path, made: list[Path]) -> None:
    """Make the folders that a place needs; each that is made is added to a list."""
    for parent in reversed(place.parents):
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            made.append(parent)


def _remove_empty(made: list[Path]) -> None:
    for parent in reversed(made):
        with suppress(OSError):  # others write there, too
            parent.rmdir()


def _draft(place: Path) -> Path:
    mark = f"{_HOST}-{os.getpid()}-{next(_numbers)}"
    return place.with_name(f".{place.stem[:_LONGEST_STEM]}.{mark}.part{place.suffix}")


def _remove_leftovers(place: Path) -> None:
    """Remove drafts of this place whose process, on this machine, is gone."""
    stem, suffix = re.escape(place.stem[:_LONGEST_STEM]), re.escape(place.suffix)
    pattern = re.compile(rf"\.{stem}\.{_HOST}-(\d+)-\d+\.part{suffix}")
    for name in os.listdir(place.parent):
        found = pattern.fullmatch(name)
        if found and not _is_running(int(found[1])):
            remove(place.with_name(name))


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places: at one stroke where the system can, else one after another."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if _POSIX else None
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename and rename(here, os.fsencode(one), here, os.fsencode(other), both) == 0:
        return
    aside = other.with_name(f"{other.name}.former-{os.getpid()}")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error, or what it came from, is of a disk without space."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(folder).free < _TOO_LITTLE
