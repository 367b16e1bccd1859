"""Names that are spelt differently and look alike."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


def look(name: str) -> str:
    """Return what is left of a name where case, spaces, dashes and Unicode forms do not count.

    Examples
    --------
    >>> look("CD4 T") == look("cd4_t"), look("IL\N{EN DASH}2") == look("il-2"), look("1.0")
    (True, True, '1')
    """
    letters = unicodedata.normalize("NFKC", name).casefold()
    kept = "".join(filter(None, map(_folded, letters)))
    try:
        return repr(float(kept)).removesuffix(".0")
    except ValueError:
        return kept


def _folded(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind == "Pd" or letter == "\N{MINUS SIGN}":
        return "-"
    return "" if kind in ("Cc", "Cf") or letter.isspace() or letter == "_" else letter


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that look alike, in order.

    Examples
    --------
    >>> look_alikes(["HeLa", "K562", "hela"])
    [['HeLa', 'hela']]
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(look(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name nearest to `name`, or an empty string.

    Letters beyond ASCII are given by their codes: they may look like those that were typed.
    """
    looks: dict[str, str] = {}
    for other in known:
        looks.setdefault(look(other), other)
    near = get_close_matches(look(name), looks, n=1)
    return f" Did you mean {looks[near[0]]!a}?" if near else ""
