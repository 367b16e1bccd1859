"""What commands have in common: options, what they read and write, and how they speak.

Names, defaults and help of the options of a dataclass stand in the dataclass and its docstring.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, CoercionError, CycloptsError, Group, Parameter, default_name_transform

from pyro_fcr.data.schema import Schema
from pyro_fcr.files import check_place, locate
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.seals import check_replaceable, sealed
from pyro_fcr.training.plan import TrainingPlan
from pyro_fcr.values import unknown

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_WRITTEN = ("out", "checkpoint", "hill")

SchemaOptions = Annotated[
    Schema,
    Parameter(
        name="*",
        group=Group("Schema", sort_key=1),
        parse=re.compile("^(?!outcome_keys)"),  # for programs of one's own, in Python
    ),
]
ArchitectureOptions = Annotated[
    Architecture, Parameter(name="*", group=Group("Architecture", sort_key=2))
]
PlanOptions = Annotated[TrainingPlan, Parameter(name="*", group=Group("Training", sort_key=3))]

CellsPath = Annotated[Path, Parameter(help="h5ad file or zarr store.")]
ModelPath = Annotated[Path, Parameter(help="Folder that `fit` wrote.")]
Out = Annotated[Path, Parameter(help="Where to write.")]
Overwrite = Annotated[
    bool, Parameter(help="Replace what stands at --out.", negative=(), show_default=False)
]
Seed = Annotated[int, Parameter(help="Seed of everything random.")]
Genes = Annotated[
    list[str] | None, Parameter("--gene", help="A gene; repeatable, all if left out.")
]


def option_name(field: str) -> str:
    """Return the option of a field; one that is repeated is singular, as in ``--covariate-key``."""
    singular = r"(?<=covariate-)(key|site)s$|(?<=^other-)(control)s$"
    return re.sub(singular, lambda found: found[0][:-1], default_name_transform(field))


@dataclass(frozen=True)
class Call:
    """What a command was asked.

    Parameters
    ----------
    words
        The option of each argument of the command.
    inputs
        What is at the bottom of an error that is not ours: the files that the command reads, or
        where there are none, the options that were given.
    """

    words: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)


@contextmanager
def plain_messages(*, debug: bool = False) -> Iterator[Call]:
    """Show log lines and warnings as text, and errors in a line without a traceback.

    Parameters
    ----------
    debug
        Whether to let errors pass, with their traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pyro_fcr").setLevel(logging.INFO)
    with warnings.catch_warnings(), _terminable():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        asked = Call()
        warnings.showwarning = lambda message, category, *_, **__: _show(message, category, asked)
        try:
            yield asked
        except BrokenPipeError as error:  # whoever reads what is printed has seen enough
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            raise SystemExit(128 + signal.SIGPIPE) from error
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                raise
            text, code = _line(error, asked)
            print(text, file=sys.stderr)
            raise SystemExit(code) from error


def _show(message: Warning | str, category: type[Warning], asked: Call) -> None:
    if issubclass(category, UserWarning):  # libraries set filters of their own for others
        print(f"Warning: {in_options(str(message), asked.words)}", file=sys.stderr)


def be_quiet() -> None:
    """Leave log lines and warnings to the first of several processes."""
    logging.getLogger("pyro_fcr").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _line(error: BaseException, asked: Call) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", 128 + signal.SIGINT
    is_usage = isinstance(error, CycloptsError) and not isinstance(error, CoercionError)
    if isinstance(error, CycloptsError) or _is_ours(error):
        return f"Error: {in_options(str(error), asked.words)}", 2 if is_usage else 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"Error: {os.fsdecode(error.filename)}: {error.strerror}.", 1
    first = (str(error).strip() or "nothing more is known").splitlines()[0]
    about = f"{', '.join(asked.inputs)}: {type(error).__name__}: {first}"
    return f"Error: {about} (--debug shows where it comes from)", 1


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised by a statement of this package, which then says what is wrong."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    package = str(Path(__file__).resolve().parents[1])
    says = isinstance(error, ValueError | OSError | FloatingPointError)
    return says and last.filename.startswith(package) and (last.line or "raise").startswith("raise")


def in_options(text: str, words: Mapping[str, str]) -> str:
    """Say arguments as options: what a message names, and its mend, then exist on this side.

    Examples
    --------
    >>> words = {"control": "--control", "min_cells": "--min-cells"}
    >>> in_options("control is 3; pass control=None, control='A', or lower min_cells", words)
    "--control is 3; pass no --control, --control 'A', or lower --min-cells"
    """
    for name, option in words.items():
        text = re.sub(rf"\b{name}=None\b", f"no {option}", text)
        value = r"(\[[^\]]*\]|'[^']*'|[\w.+-]*\w)"
        text = re.sub(rf"\b{name}={value}", partial(_set, option), text)
        if "_" in name:
            text = re.sub(rf"(?<![\w'\"-]){name}\b(?!['\"=])", option, text)
    start = re.compile(r"^(Unknown )?(\w+)(?= is | '|:)")
    return start.sub(lambda found: (found[1] or "") + words.get(found[2], found[2]), text)


def _set(option: str, found: re.Match[str]) -> str:
    """Write an option with its value, once for each of several."""
    value = found[1]
    values = re.findall(r"'[^']*'|[^\[\], ]+", value) if value.startswith("[") else [value]
    return " ".join(f"{option} {each}" for each in values)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as an error does, which removes files that are half written."""

    def end(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    try:
        former = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def read_options(app: App, arguments: Sequence[str], asked: Call) -> Callable[[], Any]:
    """Return the command that arguments ask for, ready to run.

    Parameters
    ----------
    app
        The commands.
    arguments
        What stands behind ``pyro-fcr``.
    asked
        Filled with what is asked.

    Raises
    ------
    ValueError
        An option has a value that it cannot have; in the words of its dataclass.
    cyclopts.CycloptsError
        A command or option is unknown, or an option is missing.
    """
    try:
        command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    except CoercionError as error:
        if get_origin(error.target_type) is not Literal or error.token is None:
            raise
        known = get_args(error.target_type)
        raise ValueError(unknown(str(error.token.keyword), error.token.value, known)) from error
    except ValueError:
        asked.words.update(_options_of(app, arguments))
        raise
    if command.__module__.startswith("pyro_fcr."):  # and not --help
        asked.words.update(_options_of(app, arguments))
    given = [each for each in arguments[1:] if each.startswith("-") and each != "--out"]
    read = [str(path) for path in _keep_inputs(bound.arguments)]
    asked.inputs.extend(read or given or arguments[:1])
    return partial(command, *bound.args, **bound.kwargs)


def _options_of(app: App, arguments: Sequence[str] | None) -> dict[str, str]:
    """Return the option of each argument of the command that is asked for."""
    _, apps, _ = app.parse_commands(arguments)
    found = apps[-1].assemble_argument_collection(default_parameter=app.default_parameter)
    names = {each.field_info.name: each.name for each in found if each.keys or each.name}
    options = {name: option for name, option in names.items() if option.startswith("--")}
    # In Python one argument takes several, where an option is repeated.
    several = {f"{name}s": option for name, option in options.items() if f"{name}s" not in options}
    return {**several, **options}


def _keep_inputs(arguments: Mapping[str, Any]) -> list[Path]:
    """Return the files that the command reads, cells first; refuse to write to one.

    Raises
    ------
    FileExistsError
        ``--out`` is such a file.
    """
    out = locate(arguments["out"]) if "out" in arguments else None
    inputs: list[Path] = []
    for name, value in arguments.items():
        paths = value if isinstance(value, list) else [value]
        if name == "predictions":
            paths = [Path(text.split("=", 1)[-1]) for text in value or ()]
        inputs += [path for path in paths if isinstance(path, Path) and name not in _WRITTEN]
    for path in inputs:
        if locate(path) == out and out.exists():
            raise FileExistsError(f"--out {path} is what this command reads. Give another --out.")
    return inputs[::-1]


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, holds what is no result of ours, or cannot be written to.

    Raises
    ------
    OSError
        The message says which of these.
    """
    check_untaken(out, overwrite=overwrite)
    check_replaceable(out)
    check_place(out)


def check_untaken(out: Path, *, overwrite: bool) -> None:
    """Refuse a place where something stands, unless it may be replaced.

    Raises
    ------
    FileExistsError
        Something stands there.
    """
    place = locate(out)
    if place.exists() and not overwrite and not (place.is_dir() and not any(place.iterdir())):
        raise FileExistsError(f"{out} is there already. Pass --overwrite or another --out.")


def check_file(out: Path, *suffixes: str, overwrite: bool) -> None:
    """Refuse a file of a kind that is not written, or a place as :func:`check_free` does.

    Raises
    ------
    ValueError
        The name does not end in one of ``suffixes``.
    OSError
        The place is taken.
    """
    if out.suffix not in suffixes:
        expected = " or ".join(suffixes)
        raise ValueError(f"--out {out} ends in {out.suffix!r}; expected {expected}.")
    if locate(out).is_dir():
        raise FileExistsError(
            f"{out} is a folder, which is not replaced. Remove it or give another --out."
        )
    check_free(out, overwrite=overwrite)


def put(out: Path, write: Callable[[Path], object]) -> None:
    """Write what took work to make; if its place fails, to another one, which the error names.

    Parameters
    ----------
    out
        The place that was asked for.
    write
        Writes to the path that it is given.

    Raises
    ------
    OSError
        ``out`` could not be written; says where the result is.
    """
    try:
        write(out)
    except OSError as error:
        for folder in (Path.cwd(), Path(tempfile.gettempdir())):
            if other := _put_into(folder, out.name, write):
                raise OSError(f"{error} The result is in {other} for now.") from error
        raise


def _put_into(folder: Path, name: str, write: Callable[[Path], object]) -> Path | None:
    with suppress(OSError):
        own = Path(tempfile.mkdtemp(prefix="pyro-fcr-", dir=folder))
        try:
            write(own / name)
        except OSError:
            own.rmdir()
            raise
        return own / name
    return None


def write(out: Path, make: Callable[[Path], object], *, overwrite: bool = False) -> None:
    """Write a result with its seal; if its place fails, to another one, see :func:`put`."""

    def sealed_at(path: Path) -> None:
        with sealed(path, overwrite=overwrite) as draft:
            make(draft)

    put(out, sealed_at)


def write_adata(adata: AnnData, out: Path, *, overwrite: bool = False, rows: str = "cells") -> None:
    """Write an h5ad, and say so; a zarr store is there already, written part by part."""
    from pyro_fcr.data.hdf5 import write_h5ad
    from pyro_fcr.queries.columns import writable

    adata.obs = writable(adata.obs)

    if out.suffix != ".zarr":
        write(out, partial(write_h5ad, adata), overwrite=overwrite)
    print(f"{adata.n_obs} {rows} x {adata.n_vars} genes in {out}")


def write_tables(tables: Mapping[str, pd.DataFrame], out: Path, *, overwrite: bool = False) -> None:
    """Write a folder of csv files, which takes its place whole."""

    def fill(folder: Path) -> None:
        folder.mkdir()
        for name, table in tables.items():
            table.to_csv(folder / name, index=False)

    write(out, fill, overwrite=overwrite)


def write_table(table: pd.DataFrame, out: Path, *, overwrite: bool = False) -> None:
    """Write a csv, and say so."""
    write(out, lambda draft: table.to_csv(draft, index=False), overwrite=overwrite)
    print(f"{len(table)} rows in {out}")


def levels(pairs: Sequence[str] | None) -> dict[str, str]:
    """Read ``key=level``."""
    if wrong := [pair for pair in pairs or () if "=" not in pair]:
        raise ValueError(f"--covariate {wrong[0]!r} is not of the form key=level.")
    found = dict(pair.split("=", 1) for pair in pairs or ())
    if twice := [key for key in found if sum(p.startswith(f"{key}=") for p in pairs or ()) > 1]:
        raise ValueError(f"--covariate names {twice[0]!r} twice; give each column one level.")
    return found
