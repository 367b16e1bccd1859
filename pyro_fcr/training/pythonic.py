"""What a program keeps in Python: a traced step has its values of one moment in it, for good."""

from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # parameters, hooks and the mode, which all modules have
_DEPTH = 4


def python_state(module: nn.Module) -> dict[str, str]:
    """Return the plain values that a module and its parts keep in Python, by where they are.

    Numbers, texts and containers of them on modules, on objects that these hold, in closures, and
    in global variables that a ``forward`` reads. Tensors are left out.

    Examples
    --------
    >>> part = nn.Linear(2, 2)
    >>> part.calls = 3
    >>> python_state(part)["calls"]
    '3'
    """
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        place = f"{name}." if name else ""
        for key, value in vars(part).items():
            if key not in _OWN:
                found |= dict(_plain(value, f"{place}{key}", _DEPTH))
        found |= dict(_of_function(type(part).forward, f"{place}forward", 1))
    return found


def _plain(value: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if depth == 0 or isinstance(value, Tensor | nn.Module | ModuleType | type):
        return
    if isinstance(value, FunctionType | MethodType):
        yield from _of_function(value, place, depth)
    elif (parts := _parts(value, place)) is not None:
        yield f"len({place})", str(len(parts))
        for part, each in parts.items():
            yield from _plain(each, part, depth - 1)
    elif " at 0x" not in (text := repr(value)):
        yield place, text


def _parts(value: Any, place: str) -> dict[str, Any] | None:
    if isinstance(value, list | tuple | set | frozenset):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {f"{place}[{key!r}]": each for key, each in value.items()}
    if hasattr(value, "__dict__"):
        return {f"{place}.{key}": each for key, each in vars(value).items()}
    return None


def _of_function(function: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(function, MethodType):
        yield from _plain(function.__self__, place, depth - 1)
    code = getattr(function, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name that is not bound yet
            yield from _plain(cell.cell_contents, f"{place}: {name}", depth - 1)
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, bool | int | float | str | list | dict):
            yield from _plain(value, f"{place}: {name}", depth)
