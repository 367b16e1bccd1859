"""Cells of known truth, drawn from the graph or made from real control cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyro_fcr.cli.options import Out, Overwrite, Seed
from pyro_fcr.cli.shell import check_file, plain_messages, read, write_adata

if TYPE_CHECKING:
    from pyro_fcr.simulation.planted import Interactions, RandomInteractions

Option = typer.Option


@dataclass(frozen=True)
class FromGraph:
    """Cells drawn from the graph: fields of FCRDesign that were given."""

    n_cells: Annotated[int | None, Option("--cells", help="Cells [20000].")] = None
    n_genes: Annotated[int | None, Option("--genes", help="Genes [60].")] = None
    n_contexts: Annotated[int | None, Option("--contexts", help="Contexts [6].")] = None
    n_x: Annotated[int | None, Option(help="Dimensions of z_x [2].")] = None
    n_tx: Annotated[int | None, Option(help="Dimensions of z_tx [4].")] = None
    n_t: Annotated[int | None, Option(help="Dimensions of z_t [2].")] = None
    likelihood: Annotated[str | None, Option(help="normal (log1p) or nb (counts) [normal].")] = None
    noise: Annotated[float | None, Option(help="Standard deviation, normal [0.1].")] = None
    depth: Annotated[float | None, Option(help="Median counts of a cell, nb [3000].")] = None
    n_layers: Annotated[int | None, Option("--layers", help="Of the mixing network [1].")] = None
    mixing: Annotated[str | None, Option(help="joint or additive [joint].")] = None
    leak: Annotated[
        list[str] | None,
        Option(help="Dependence to plant and its share of variance, as z_x|t=0.3; repeatable."),
    ] = None
    n_batches: Annotated[int | None, Option("--batches", help="Technical batches [0].")] = None

    def fields(self) -> dict[str, Any]:
        """Give the fields of FCRDesign.

        Raises
        ------
        ValueError
            A leak cannot be read.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        given.pop("leak", None)
        return {**given, "leaks": {(a, b): share for (a, b), share in self._leaks()}}

    def _leaks(self) -> list[tuple[list[str], float]]:
        return [_read_planted(text, "leak", "z_x|t=0.3", n_names=2) for text in self.leak or ()]


@dataclass(frozen=True)
class Planted:
    """Interactions of chosen or drawn pairs of treatment and context."""

    interaction: Annotated[
        list[str] | None,
        Option(help="Log fold change to plant, as drug1|line2|gene3=1.2; repeatable."),
    ] = None
    interacting_pairs: Annotated[
        int | None, Option(help="Draw so many pairs that interact, in place of --interaction.")
    ] = None
    interacting_genes: Annotated[int, Option(help="Genes of each drawn pair.")] = 20
    interaction_effect: Annotated[
        float, Option(help="Natural log fold change of these genes, up or down.")
    ] = 0.5

    def planted(self) -> Interactions | RandomInteractions | None:
        """Give what to plant, None if nothing was said.

        Raises
        ------
        ValueError
            An interaction cannot be read, or both chosen and drawn ones are wanted.
        """
        from pyro_fcr.simulation import RandomInteractions

        if self.interacting_pairs is None:
            return self._chosen() if self.interaction else None
        if self.interaction:
            raise ValueError("--interaction and --interacting-pairs: pass one of the two.")
        return RandomInteractions(
            n_pairs=self.interacting_pairs,
            n_genes=self.interacting_genes,
            effect=self.interaction_effect,
        )

    def _chosen(self) -> Interactions:
        found: dict[tuple[str, str], dict[str, float]] = {}
        for text in self.interaction or ():
            example = "drug1|line2|gene3=1.2"
            (treatment, context, gene), change = _read_planted(
                text, "interaction", example, n_names=3
            )
            found.setdefault((treatment, context), {})[gene] = change
        return found


def simulate(
    *,
    out: Out,
    treatments: Annotated[int, Option(help="Levels of the treatment, the control included.")] = 6,
    graph: FromGraph,
    planted: Planted,
    from_controls: Annotated[
        Path | None,
        Option(help="Real control cells with raw counts: treat these, by binomial thinning."),
    ] = None,
    context_key: Annotated[
        str | None, Option(help="With --from-controls: column of obs with the context.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate cells of known truth: latents, leaks and interactions, in obsm and uns."""
    with plain_messages():
        from pyro_fcr import simulation

        check_file(out, (".h5ad",), overwrite=overwrite)
        interactions = planted.planted()
        fields: dict[str, Any] = {"n_treatments": treatments}
        fields |= {} if interactions is None else {"interactions": interactions}
        if from_controls is None:
            if context_key is not None:
                raise ValueError("--context-key goes with --from-controls.")
            design = simulation.FCRDesign(**fields, **graph.fields())
            adata = simulation.simulate(design, seed=seed)
        else:
            effects = simulation.EffectDesign(**fields)
            key = _check_controls(graph, context_key)
            cells = read(from_controls)
            adata = simulation.simulate_from_controls(cells, effects, context_key=key, seed=seed)
        write_adata(adata, out)


def _check_controls(graph: FromGraph, context_key: str | None) -> str:
    """Refuse options that say nothing to real cells."""
    given = [name for name, value in asdict(graph).items() if value]
    if given:
        raise ValueError(
            f"{given[0]} is of cells drawn from the graph, not of those in --from-controls: leave "
            "it out."
        )
    if context_key is None:
        raise ValueError("--from-controls needs --context-key, the column of obs with the context.")
    return context_key


def _read_planted(text: str, option: str, example: str, *, n_names: int) -> tuple[list[str], float]:
    """Read names, set apart by |, and a number."""
    left, equals, right = text.rpartition("=")
    names = [name.strip() for name in left.split("|")]
    try:
        number = float(right)
    except ValueError:
        number = float("nan")
    if not equals or len(names) != n_names or not isfinite(number):
        raise ValueError(f"--{option} {text!r} is not of the form {example}.")
    return names, number
