"""Checks of settings; their words are the same in Python and on the command line."""

from collections.abc import Iterable
from typing import Literal, get_args, get_origin, get_type_hints


def unknown(name: str, value: object, known: Iterable[object]) -> str:
    """Return the message for a value that is not among the known ones.

    Examples
    --------
    >>> unknown("device", "tpu", ("auto", "cpu", "cuda"))
    "Unknown device 'tpu'; expected auto, cpu or cuda."
    """
    *others, last = map(str, known)
    expected = f"{', '.join(others)} or {last}" if others else last
    return f"Unknown {name} {value!r}; expected {expected}."


def check_choices(settings: object, *, error: type[ValueError] = ValueError) -> None:
    """Refuse a value of a dataclass's ``Literal`` field that is not among its choices.

    Parameters
    ----------
    settings
        The dataclass.
    error
        The error to raise.
    """
    for name, hint in get_type_hints(type(settings)).items():
        parts, value = (hint, *get_args(hint)), getattr(settings, name)
        known = [each for part in parts if get_origin(part) is Literal for each in get_args(part)]
        if known and value not in known and not (value is None and type(None) in parts):
            raise error(unknown(name, value, known))


def check_least(settings: object, *, error: type[ValueError] = ValueError, **least: float) -> None:
    """Refuse numbers that are too small; None is passed over.

    Parameters
    ----------
    settings
        Any object with these attributes.
    error
        The error to raise.
    **least
        The smallest value of each attribute.
    """
    for name, smallest in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= smallest:
            raise error(f"{name} is {value}; expected {smallest} or more.")
