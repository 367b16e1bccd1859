"""Figures from the files that other commands write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

import pyro_fcr
from pyro_fcr.cli import shell
from pyro_fcr.data.errors import listed
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.files import locate
from pyro_fcr.seals import check_seal, sealed
from pyro_fcr.values import unknown

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_MOST_GENES = 60  # in a figure, if none are chosen
_EFFECTS = ("treatment", "context", "gene", "effect")


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What to draw: rows of a table, or blocks of latents and their colouring.

    Parameters
    ----------
    gene
        effects, paths, dose-response: a gene; repeatable.
    treatment
        Tables: one treatment; of effects, its genes by context.
    dose
        effects, paths: one dose.
    effect
        effects: total, interaction, or a block such as z_tx.
    block
        latents: a block; repeatable, all if left out.
    color
        latents: column of obs that colours the cells.
    seed
        Seed of everything random.
    """

    gene: list[str] | None = None
    treatment: str | None = None
    dose: str | None = None
    effect: str = "total"
    block: list[str] | None = None
    color: str | None = None
    seed: int = 0

    def rows(self, table: pd.DataFrame, *keys: str) -> pd.DataFrame:
        """Return the rows with the levels that were asked for.

        Raises
        ------
        ValueError
            No row has such a level; lists the levels.
        """
        for key in keys:
            chosen = getattr(self, key) or []
            levels = [chosen] if isinstance(chosen, str) else chosen
            if levels and key not in table:
                raise ValueError(f"--{key}: the table has no column {key}.")
            known = list(table[key].astype(str).unique()) if levels else []
            if missing := [level for level in levels if level not in known]:
                hint = did_you_mean(missing[0], known)
                raise ValueError(f"--{key} {missing[0]!r} is not among {listed(known)}.{hint}")
            table = table[table[key].isin(levels)] if levels else table
        return table

    def genes(self, table: pd.DataFrame) -> list[str]:
        """Return the genes to show.

        Raises
        ------
        ValueError
            The table has many, and none were chosen.
        """
        genes = self.gene or list(table["gene"].unique())
        if len(genes) > _MOST_GENES:
            raise ValueError(f"The table has {len(genes)} genes: choose some with --gene.")
        return genes


def plot(
    kind: str,
    files: list[Path],
    /,
    *,
    out: shell.Out,
    chosen: Annotated[_Chosen, Parameter(name="*")] = _Chosen(),
    overwrite: shell.Overwrite = False,
) -> None:
    """Draw what other commands wrote: training, latents, effects, interactions, dose-response.

    Parameters
    ----------
    kind
        loss (a model or its history.csv), latents (from `latents`), effects or paths (csv from
        `effects`), interactions (pairs.csv) or dose-response.
    files
        What to draw; tables are joined.
    out
        .png, .svg or .pdf to write.
    """
    shell.check_file(out, ".png", ".svg", ".pdf", overwrite=overwrite)
    if kind not in _KINDS:
        raise ValueError(unknown("kind of figure", kind, _KINDS))
    figure = _KINDS[kind](files, chosen).get_figure(root=True)
    with sealed(out, overwrite=overwrite) as path:
        figure.savefig(path, dpi=200)  # type: ignore[union-attr]
    print(f"Figure in {out}")


def _loss(files: Sequence[Path], chosen: _Chosen) -> Axes:
    from pyro_fcr.saving import read_model

    path = _only(files)
    history = read_model(path).history if locate(path).is_dir() else _table([path])
    if history is None:
        raise ValueError(f"{path} was saved before it was fitted, and has no history to draw.")
    return pyro_fcr.plots.loss_by_term(history)[0]


def _latents(files: Sequence[Path], chosen: _Chosen) -> Axes:
    from matplotlib.figure import Figure

    adata = pyro_fcr.data.read_cells(_only(files))
    if chosen.color is None:
        raise ValueError(f"--color: name a column of obs, of {listed(adata.obs.columns)}.")
    n_legend = 1 + (len(pyro_fcr.plots.category_colors(adata, chosen.color)) - 1) // 18
    blocks = _with_umaps(adata, chosen)
    figure = Figure(figsize=(3.9 * len(blocks) + 1.4 * n_legend, 4.0), layout="constrained")
    for ax, block in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        pyro_fcr.plots.latent_umap(
            adata, block, color=chosen.color, ax=ax, legend=block == blocks[-1]
        )
    return ax


def _with_umaps(adata: AnnData, chosen: _Chosen) -> list[str]:
    """Return the blocks to draw, and add the UMAPs that they lack."""
    names = [key.removeprefix("X_fcr_") for key in adata.obsm if key.startswith("X_fcr_")]
    known = [name for name in names if not name.endswith("_umap")]
    if not known:
        raise ValueError('The cells have no obsm["X_fcr_<block>"]: add them with `latents`.')
    blocks = chosen.block or known
    if wrong := set(blocks) - set(known):
        raise ValueError(unknown("--block", sorted(wrong)[0], known))
    for block in blocks:
        if f"{block}_umap" not in names:
            latent = adata.obsm[f"X_fcr_{block}"]
            adata.obsm[f"X_fcr_{block}_umap"] = pyro_fcr.metrics.umap(latent, seed=chosen.seed)
    return blocks


def _effects(files: Sequence[Path], chosen: _Chosen) -> Axes:
    table = chosen.rows(_table(files, *_EFFECTS), "effect", "treatment", "dose", "gene")
    rows = "treatment" if chosen.treatment is None else "gene"
    if rows == "gene":
        chosen.genes(table)
    return pyro_fcr.plots.effect_heatmap(table, rows=rows)


def _paths(files: Sequence[Path], chosen: _Chosen) -> Axes:
    table = chosen.rows(_table(files, *_EFFECTS), "treatment", "dose", "gene")
    found = list(table["treatment"].unique())
    if len(found) != 1:
        raise ValueError(f"The table has {len(found)} treatments: choose one with --treatment.")
    return pyro_fcr.plots.effect_paths(table, genes=chosen.genes(table), treatment=found[0])[0]


def _interactions(files: Sequence[Path], chosen: _Chosen) -> Axes:
    return pyro_fcr.plots.interaction_ranking(chosen.rows(_table(files), "treatment", "dose"))


def _dose_response(files: Sequence[Path], chosen: _Chosen) -> Axes:
    table = _table(files, "treatment", "gene", "dose").astype({"dose": float})
    table = chosen.rows(table, "treatment", "gene")
    genes, ylabel = chosen.genes(table), "log change against dose 0"
    return pyro_fcr.plots.dose_response(table, genes=genes, ylabel=ylabel)[0]


_KINDS: dict[str, Callable[[Sequence[Path], _Chosen], Axes]] = {
    "loss": _loss,
    "latents": _latents,
    "effects": _effects,
    "paths": _paths,
    "interactions": _interactions,
    "dose-response": _dose_response,
}


def _only(files: Sequence[Path]) -> Path:
    if len(files) != 1:
        raise ValueError(f"{len(files)} files are given; expected one for this figure.")
    return files[0]


def _table(files: Sequence[Path], *columns: str) -> pd.DataFrame:
    """Read tables and put them below one another.

    Raises
    ------
    ValueError
        One lacks a column.
    """
    import pandas as pd

    labels = dict.fromkeys(["gene", "treatment", "context", "dose", "effect"], str)
    # A treatment or gene may be called NA or None.
    settings: dict[str, Any] = {"dtype": labels, "keep_default_na": False, "na_values": [""]}
    tables = []
    for path in files:
        check_seal(path)
        try:
            tables.append(pd.read_csv(locate(path), **settings))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read as a table ({error}).") from error
    for path, table in zip(files, tables, strict=True):
        if missing := [column for column in columns if column not in table]:
            found = listed(table.columns, limit=20)
            raise ValueError(f"{path} has no column {listed(missing)}; its columns are {found}.")
    return pd.concat(tables, ignore_index=True)
