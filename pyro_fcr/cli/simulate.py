"""Cells of known truth, drawn from the graph or made from real control cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

import pyro_fcr
from pyro_fcr.cli import shell
from pyro_fcr.simulation.fcr_design import FCRDesign, RandomInteractions


def _option(field: str) -> str:
    """Return the option of a field of FCRDesign: ``n_genes`` is ``--genes``, ``n_tx`` stays."""
    return shell.option_name(re.sub(r"^n_(?=\w{3})", "", field))


_DesignOptions = Annotated[
    FCRDesign,
    Parameter(
        name="*",
        group=Group("Cells drawn from the graph", sort_key=1),
        name_transform=_option,
        parse=re.compile("^(?!leaks|interactions)"),  # --leak and --interaction, below
    ),
]


def simulate(
    *,
    out: shell.Out,
    design: _DesignOptions = FCRDesign(),
    leak: list[str] | None = None,
    interaction: list[str] | None = None,
    interacting_pairs: int | None = None,
    interacting_genes: int = RandomInteractions.n_genes,
    interaction_effect: float = RandomInteractions.effect,
    from_controls: Path | None = None,
    context_key: str | None = None,
    seed: shell.Seed = 0,
    overwrite: shell.Overwrite = False,
) -> None:
    """Simulate cells of known truth: latents, leaks and interactions, in obsm and uns.

    Parameters
    ----------
    leak
        Dependence to plant and its share of variance, as z_x|t=0.3; repeatable.
    interaction
        Log fold change to plant, as drug1|line2|gene3=1.2; repeatable.
    interacting_pairs
        Draw so many pairs that interact, in place of --interaction.
    interacting_genes
        Genes of each drawn pair.
    interaction_effect
        Natural log fold change of these genes, up or down.
    from_controls
        Real control cells with raw counts: treat these, by binomial thinning.
    context_key
        With --from-controls: column of obs with the context.
    """
    shell.check_file(out, ".h5ad", overwrite=overwrite)
    drawn = None
    if interacting_pairs is not None:
        drawn = RandomInteractions(
            n_pairs=interacting_pairs, n_genes=interacting_genes, effect=interaction_effect
        )
    planted = _planted(interaction or (), drawn)
    if from_controls is not None:
        key = _check_controls(design, leak, context_key)
        effects = pyro_fcr.simulation.EffectDesign(n_treatments=design.n_treatments, **planted)
        cells = pyro_fcr.data.read_cells(from_controls)
        simulate_from_controls = pyro_fcr.simulation.simulate_from_controls
        adata = simulate_from_controls(cells, effects, context_key=key, seed=seed)
    elif context_key is not None:
        raise ValueError("--context-key goes with --from-controls.")
    else:
        design = replace(design, leaks=_leaks(leak or ()), **planted)
        adata = pyro_fcr.simulation.simulate(design, seed=seed)
    shell.write_adata(adata, out, overwrite=overwrite)


def _planted(chosen: Sequence[str], drawn: RandomInteractions | None) -> dict[str, Any]:
    """Return the interactions of a design, nothing if the options do not mention any."""
    if not chosen:
        return {} if drawn is None else {"interactions": drawn}
    if drawn:
        raise ValueError("--interaction and --interacting-pairs: pass one of the two.")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for text in chosen:
        (treatment, context, gene), change = _read(text, "interaction", "drug1|line2|gene3=1.2")
        found.setdefault((treatment, context), {})[gene] = change
    return {"interactions": found}


def _leaks(texts: Sequence[str]) -> dict[tuple[str, str], float]:
    found = (_read(text, "leak", "z_x|t=0.3") for text in texts)
    return {(block, cause): share for (block, cause), share in found}


def _check_controls(design: FCRDesign, leak: Sequence[str] | None, context_key: str | None) -> str:
    """Refuse options that do not apply to real cells, and return the column of the context."""
    plain = FCRDesign(n_treatments=design.n_treatments)
    given = [f.name for f in fields(design) if getattr(design, f.name) != getattr(plain, f.name)]
    if given or leak:
        raise ValueError(
            f"--{_option(given[0]) if given else 'leak'} is for cells drawn from the graph, not "
            "for those in --from-controls: leave it out."
        )
    if context_key is None:
        raise ValueError("--from-controls needs --context-key, the column of obs with the context.")
    return context_key


def _read(text: str, option: str, example: str) -> tuple[list[str], float]:
    """Read names, separated by |, and a number; as many names as in the example."""
    left, equals, right = text.rpartition("=")
    names = [name.strip() for name in left.split("|")]
    try:
        number = float(right)
    except ValueError:
        number = float("nan")
    if not equals or len(names) != example.count("|") + 1 or not isfinite(number):
        raise ValueError(f"--{option} {text!r} is not of the form {example}.")
    return names, number
