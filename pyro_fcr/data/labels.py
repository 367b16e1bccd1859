"""A label as people have it -> its one text, and the parts of a combination."""

from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from math import isfinite, isnan
from numbers import Integral, Real
from typing import Any, Final

from pyro_fcr.data.errors import SchemaError

_BLANK: Final = ("", "nan", "NaN", "<NA>", "NaT")  # what missing values are called as text
_LARGEST_WHOLE: Final = 1e16  # beyond, floats have gaps
_BRACKETS: Final = {")": "(", "]": "[", "}": "{"}


def label_text(value: Any, *, where: str) -> str:
    """Return the one text of a label, whatever type it has; empty where there is none.

    Spaces at the ends do not count. Whole numbers are written without a point, so that 1 and 1.0
    are one label; other numbers with the fewest digits that tell a float32 apart, or their own if
    these are at most 15, dates as ISO 8601, midnight as the day alone. Types thus
    need not survive a file or a concatenation.

    Parameters
    ----------
    value
        Text, a number, a truth value, a date, a period, an interval, ...
    where
        The argument or column that a message names.

    Raises
    ------
    SchemaError
        If it is a collection, such as a list, or nothing that has a text in UTF-8.

    Examples
    --------
    >>> import numpy as np
    >>> [label_text(v, where="line") for v in (" u ", 1.0, np.float32(0.1), np.datetime64("2020"))]
    ['u', '1', '0.1', '2020-01-01']
    """
    if isinstance(value, str | bytes):
        text = utf8_text(value, where=where).strip()
    elif value is None or isinstance(value, bool):
        text = "" if value is None else str(value)
    elif type(value).__name__ == "timedelta64":  # an integer to numpy
        text = _other_text(value, where)
    elif isinstance(value, Integral):
        text = str(int(value))
    elif isinstance(value, Real | Decimal):
        text = _number_text(value)
    else:
        text = _other_text(value, where)
    return "" if text in _BLANK else text


def utf8_text(value: Any, *, where: str) -> str:
    """Return text that every file takes.

    Raises
    ------
    SchemaError
        It was read in another encoding than that in which it was written.
    """
    try:
        if isinstance(value, bytes):
            return value.decode()
        text = str.__str__(value) if isinstance(value, str) else str(value)  # of an enum its text
        text.encode()
    except UnicodeError as error:
        raise SchemaError(
            f"{where}: found {value!a}, which is no text in UTF-8; rename it, or read it in the "
            "encoding in which it was written"
        ) from error
    return text


def _number_text(value: Any) -> str:
    if not isfinite(value):
        return "" if isnan(value) else str(float(value))
    if value == int(value) and abs(int(value)) < _LARGEST_WHOLE:
        return str(int(value))
    import numpy as np  # noqa: PLC0415 (the command line reads a schema without it)

    number = float(value)
    with np.errstate(over="ignore"):
        short = np.float32(number)
    # In float64 a float32 has digits that nobody wrote, and so has what was computed: beyond 15.
    is_written = float(f"{number:.15g}") == number
    is_short = not is_written or number in (float(short), float(str(short)))
    return str(short if is_short and isfinite(short) else number)


def _other_text(value: Any, where: str) -> str:
    import pandas as pd  # noqa: PLC0415

    is_plain = type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__
    if isinstance(value, Iterable) or is_plain or isinstance(value, type):
        raise SchemaError(
            f"{where}: found {type(value).__name__} {_shortened(value)}; expected one label: text, "
            "a number or a date"
        )
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, date) or type(value).__name__ == "datetime64":
        stamp = pd.Timestamp(value)
        is_day = stamp.tz is None and stamp == stamp.normalize()
        return str(stamp.date()) if is_day else stamp.as_unit("ns").isoformat()
    if isinstance(value, timedelta) or type(value).__name__ == "timedelta64":
        return str(pd.Timedelta(value))
    return str(value).strip()


def _shortened(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def split_parts(label: str, separator: str | None) -> list[str]:
    """Split a combination; a separator within brackets is part of a name.

    Examples
    --------
    >>> split_parts("(+)-JQ1 + C[N+](C)C", "+")
    ['(+)-JQ1', 'C[N+](C)C']
    """
    if separator is None:
        return [label]
    parts, start, position, ends = [], 0, 0, _bracketed(label)
    while position < len(label):
        if label.startswith(separator, position):
            parts.append(label[start:position])
            start = position = position + len(separator)
        else:
            position = ends.get(position, position) + 1
    return [part.strip() for part in (*parts, label[start:])]


def is_balanced(name: str) -> bool:
    """Tell whether every bracket of a name has its partner."""
    ends = _bracketed(name)
    inside = {*ends, *ends.values()}
    return not any(c in "()[]{}" and at not in inside for at, c in enumerate(name))


def _bracketed(label: str) -> dict[int, int]:
    """Return where each bracket that is closed opens, and where it is closed."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for at, letter in enumerate(label):
        if letter in _BRACKETS.values():
            opened.append(at)
        elif letter in _BRACKETS and any(label[other] == _BRACKETS[letter] for other in opened):
            while label[opened[-1]] != _BRACKETS[letter]:
                opened.pop()
            ends[opened.pop()] = at
    return ends
