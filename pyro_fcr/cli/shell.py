"""What commands read and write, and how they speak."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from pyro_fcr.data import Registry


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show log lines and warnings as text, and errors that name their mend without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pyro_fcr").setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"Warning: {message}", err=True)
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken or cannot be written to.

    Raises
    ------
    OSError
        Says which.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already. Pass --overwrite or another --out.")
    parent = next(each for each in out.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OSError(f"{out} cannot be written: {parent} is no folder that you can write to.")


def check_file(out: Path, suffixes: Iterable[str], *, overwrite: bool) -> None:
    """Refuse a file of a kind that is not written, or a place as :func:`check_free` does.

    Raises
    ------
    ValueError
        The suffix is none of ``suffixes``.
    OSError
        The place is taken.
    """
    wanted = tuple(suffixes)
    if out.suffix not in wanted:
        raise ValueError(f"--out {out} ends in {out.suffix!r}, wanted {' or '.join(wanted)}.")
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder, which is not replaced. Give another --out.")
    check_free(out, overwrite=overwrite)


def check_genes(genes: Iterable[str] | None, registry: Registry) -> None:
    """Refuse genes that a model does not have.

    Raises
    ------
    ValueError
        Names the first one, and the nearest that there is.
    """
    from pyro_fcr.data.errors import did_you_mean

    for gene in genes or ():
        if gene not in registry.genes:
            hint = did_you_mean(gene, registry.genes)
            raise ValueError(f"--gene {gene!r} is no gene of the model.{hint}")


def read(path: Path) -> AnnData:
    """Read cells."""
    from pyro_fcr.data import read_cells

    return read_cells(path)


def write_adata(adata: AnnData, out: Path, *, rows: str = "cells") -> None:
    """Write an h5ad, and say so."""
    from pyro_fcr.files import atomic_write

    with atomic_write(out) as path:
        adata.write_h5ad(path, compression="gzip")
    say_written(adata, out, rows=rows)


def say_written(adata: AnnData, out: Path, *, rows: str = "cells") -> None:
    """Say what stands where."""
    typer.echo(f"{adata.n_obs} {rows} x {adata.n_vars} genes in {out}")


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a csv, and say so."""
    from pyro_fcr.files import atomic_write

    with atomic_write(out) as path:
        table.to_csv(path, index=False)
    typer.echo(f"{len(table)} rows in {out}")


def levels(pairs: Iterable[str]) -> dict[str, str]:
    """Read ``key=level``."""
    pairs = list(pairs)
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--covariate {wrong[0]!r} is not of the form key=level.")
    return dict(pair.split("=", 1) for pair in pairs)
