"""Checks of settings and arguments; their words are the same in Python and on the command line."""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from numbers import Real
from operator import index
from typing import Any, Final, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")

_MOST: Final = 2**53  # what float64 counts
_BOUNDS: Final = {
    # at least, above, at most, below
    (True, False, False, False): "{0} or more",
    (False, True, False, False): "above {1}",
    (True, False, True, False): "from {0} to {2}",
    (True, False, False, True): "from {0} to below {3}",
    (False, True, False, True): "between {1} and {3}",
    (False, True, True, False): "above {1} and up to {2}",
    (False, False, False, False): "",
}


@dataclass(frozen=True, kw_only=True)
class Number:
    """What a number must be: whole or not, and in which range; it is never a truth value."""

    whole: bool = False
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def read(self, name: str, value: Any, *, error: type[ValueError] = ValueError) -> Any:
        """Return the value as Python's own number, or say what was expected instead."""
        is_number = isinstance(value, Real) and type(value).__name__ not in ("bool", "bool_")
        try:
            number = index(value) if self.whole else float(value) if is_number else None
        except TypeError:
            number = None
        if number is None or not is_number or not self._holds(number):
            raise error(f"{name} is {shown(value)}; expected {self.words}.")
        return number

    def _holds(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and not (self.whole and number >= _MOST)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    @property
    def words(self) -> str:
        """The range in words."""
        bounds = (self.least, self.above, self.most, self.below)
        texts = map(str, bounds)
        kind = "a whole number" if self.whole else "a number"
        least, above, most, below = (each is not None for each in bounds)
        place = _BOUNDS[least, above, most, below].format(*texts)
        return f"{kind} {'of ' if place.endswith('more') else ''}{place}".strip()


@dataclass(frozen=True)
class Flag:
    """True or False, and nothing that counts as such."""

    def read(self, name: str, value: Any, *, error: type[ValueError] = ValueError) -> bool:
        """Return the value as Python's own, or say what was expected instead."""
        if type(value).__name__ not in ("bool", "bool_"):
            raise error(f"{name} is {shown(value)}; expected True or False.")
        return bool(value)


@dataclass(frozen=True)
class Text:
    """One name, and no list of names."""

    what: str = "one name"

    def read(self, name: str, value: Any, *, error: type[ValueError] = ValueError) -> str:
        """Return the value as Python's own text, or say what was expected instead."""
        if not isinstance(value, str) or not value.strip():
            raise error(f"{name} is {shown(value)}; expected {self.what}.")
        return str.__str__(value)


_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


@dataclass(frozen=True)
class Size:
    """What a size of memory must be: a number of bytes, or text such as ``"2GB"``."""

    words = "a size such as '2GB', '500MB' or a number of bytes of 1 or more"

    def read(self, name: str, value: Any, *, error: type[ValueError] = ValueError) -> int:
        """Return the number of bytes, or say what was expected instead."""
        text = value.lower() if isinstance(value, str) else str(value)
        found = re.fullmatch(r"(\d+\.?\d*) *([kmgt]?b|)", text)
        size = 0 if found is None else int(float(found[1]) * _UNITS[found[2]])
        if size < 1 or isinstance(value, bool | float):
            raise error(f"{name} is {shown(value)}; expected {self.words}.")
        return size


@dataclass(frozen=True)
class Each:
    """Several values, each of which is checked; a single one counts as several."""

    kind: Number | Text
    least: int = 0

    def read(self, name: str, value: Any, *, error: type[ValueError] = ValueError) -> tuple:
        """Return the values as a tuple, or say what was expected instead."""
        values = several(value)
        if len(values) < self.least:
            raise error(f"{name} is {shown(value)}; expected {self.least} or more.")
        return tuple(self.kind.read(name, each, error=error) for each in values)


_COUNT, _NUMBER_OF, _SHARE = (
    Number(whole=True, least=1),
    Number(whole=True, least=0),
    Number(least=0, most=1),
)
_POSITIVE, _NOT_NEGATIVE = Number(above=0), Number(least=0)
_COLUMN = Text("the name of one column of obs")

VOCABULARY: Final[Mapping[str, Number | Flag | Text | Each | Size]] = {
    # how much of everything
    "seed": Number(whole=True, least=0, most=2**32 - 1),
    **dict.fromkeys(
        ("n_cells", "n_draws", "n_labels", "n_permutations", "n_starts", "max_cells", "max_epochs",
         "batch_size", "patience", "adversary_steps", "checkpoint_every", "min_cells",
         "n_x", "n_t", "n_tx", "n_embedding", "n_hidden", "n_neighbors", "n_latent", "n_genes"),
        _COUNT,
    ),
    **dict.fromkeys(("n_pairs", "n_inert", "n_batches", "interaction_rank"), _NUMBER_OF),
    "n_layers": _NUMBER_OF,
    "memory": Size(),
    "n_refits": Number(whole=True, least=2),
    "n_contexts": Number(whole=True, least=2),
    "n_treatments": Number(whole=True, least=2),
    # shares and levels
    **dict.fromkeys(("level",), Number(above=0, below=1)),
    "levels": Each(Number(above=0, below=1), least=1),
    "doses": Each(Number(least=0), least=1),
    "quantiles": Each(_SHARE),
    **dict.fromkeys(("heldout_fraction", "align_at", "dropout"), Number(least=0, below=1)),
    **dict.fromkeys(("responding", "missing", "confounding", "affected"), _SHARE),
    # other numbers
    **dict.fromkeys(
        ("learning_rate", "adversary_lr", "gradient_clip", "depth", "dispersion"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("weight_decay", "min_counts", "noise", "signal", "mean_shift", "scale_shift",
         "imbalance", "batch_effect", "main_effect", "start", "end"),
        _NOT_NEGATIVE,
    ),
    "until": _SHARE,
    "effect": Number(),
    # names, and yes or no
    **dict.fromkeys(
        ("treatment_key", "dose_key", "split_key", "replicate_key", "context_key"), _COLUMN
    ),
    "genes": Each(Text("the name of a gene"), least=1),
    "hold": Each(Text("the name of a latent or label")),
    "covariate_sites": Each(Text("the name of a site")),
    "layer": Text("the name of one layer"),
    "device": Text("auto, cpu or cuda"),
    "block": Text("the name of one latent"),
    **dict.fromkeys(
        ("only_in_use", "labelled", "warm_start", "overwrite", "progress", "centred",
         "free_control", "conditioned"),
        Flag(),
    ),
}  # fmt: skip
"""What an argument of a name must be, wherever it is taken; None is left alone where it may be."""


def several(value: Any) -> list[Any]:
    """Return the members of a collection; anything else, text among it, is one."""
    is_many = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return [*value] if is_many and getattr(value, "ndim", 1) > 0 else [value]


def shown(value: object) -> str:
    """Return a value as a message shows it, on one line and not too long."""
    name = type(value).__name__
    text = " ".join((repr(value) if isinstance(value, str | list | tuple) else str(value)).split())
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str | Real) or value is None else f"{name} {text}"


def checked(*, error: type[ValueError] = ValueError) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that reads the arguments of the vocabulary before the function runs.

    Parameters
    ----------
    error
        The error to raise.

    Examples
    --------
    >>> @checked()
    ... def draw(*, n_cells: int = 5) -> int:
    ...     return n_cells
    >>> draw(n_cells=2.5)
    Traceback (most recent call last):
    ValueError: n_cells is 2.5; expected a whole number of 1 or more.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        given = signature.parameters.values()
        free = {p.name for p in given if p.default is None or "None" in str(p.annotation)}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.arguments.update(_read(bound.arguments, free, error))
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def check_settings(
    settings: Any, *, error: type[ValueError] = ValueError, **own: Number | Each
) -> None:
    """Read the fields of a dataclass, of its choices and of the vocabulary, in place.

    Parameters
    ----------
    settings
        The dataclass.
    error
        The error to raise.
    **own
        What fields must be that mean something else here than in the vocabulary.
    """
    check_choices(settings, error=error)
    free = {each.name for each in fields(settings) if "None" in str(each.type)}
    given = {each.name: getattr(settings, each.name) for each in fields(settings)}
    for name, value in _read(given, free, error, {**VOCABULARY, **own}).items():
        object.__setattr__(settings, name, value)


def _read(
    given: Mapping[str, Any],
    free: Iterable[str],
    error: type[ValueError],
    rules: Mapping[str, Number | Flag | Text | Each | Size] = VOCABULARY,
) -> dict[str, Any]:
    return {
        name: rules[name].read(name, value, error=error)
        for name, value in given.items()
        if name in rules and not (value is None and name in free)
    }


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


def check_choice(
    name: str, value: object, known: Iterable[object], *, error: type[ValueError] = ValueError
) -> None:
    """Refuse a value that is not one of the known names.

    Examples
    --------
    >>> check_choice("method", float("nan"), ("pearson", "spearman"))
    Traceback (most recent call last):
    ValueError: Unknown method nan; expected pearson or spearman.
    """
    known = tuple(known)
    if not (isinstance(value, str) and value in known):  # comparing with other things may fail
        raise error(unknown(name, value, known))


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
        others = tuple(p for p in parts if isinstance(p, type) and p is not Any)
        if known and not isinstance(value, others):
            check_choice(name, value, known, error=error)
