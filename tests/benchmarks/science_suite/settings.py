"""The simulated settings that fits are judged on."""

from dataclasses import replace

from pyro_fcr.data import Schema
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.simulation import FCRDesign

# A: Normal noise on 60 genes. B: counts of 500 genes.
SETTINGS = {
    "A": FCRDesign(),
    "B": FCRDesign(likelihood="nb", n_genes=500, n_treatments=8, n_x=3, n_tx=4, n_t=3),
}


def architecture_of(design: FCRDesign) -> Architecture:
    """Return the architecture with the dimensions and the likelihood of a design."""
    sizes = {name: getattr(design, name) for name in ("n_x", "n_tx", "n_t", "likelihood")}
    return Architecture(**sizes, decoder=design.mixing)


def schema_of(design: FCRDesign) -> Schema:
    """Return the schema of the cells that a design makes."""
    return Schema(
        treatment_key="treatment",
        control="control",
        covariate_keys=("context",),
        expression="counts" if design.likelihood == "nb" else "log1p",
    )


def n_conditions(design: FCRDesign) -> int:
    """Count the conditions that tell z_tx apart: all controls are one."""
    return (design.n_treatments - 1) * design.n_contexts + 1


def condition_sweep(name: str, design: FCRDesign) -> dict[str, FCRDesign]:
    """Vary the number of conditions around the ``2 n_tx + 1`` that identify z_tx.

    Designs have names such as ``"A 3x4"`` for 3 drugs beside the control in 4 contexts. Numbers of
    drugs and contexts are equal or differ by 1, or give ``2 n_tx + 1`` conditions exactly (n_tx
    drugs in 2 contexts); the most conditions are the first beyond ``4 n_tx + 2``.

    >>> list(condition_sweep("A", FCRDesign(n_tx=4)))
    ['A 1x2', 'A 2x2', 'A 2x3', 'A 4x2', 'A 3x3', 'A 3x4', 'A 4x4', 'A 4x5']
    """
    wanted, sizes, drugs, contexts = 2 * design.n_tx + 1, [(design.n_tx, 2)], 1, 2
    while True:
        sizes.append((drugs, contexts))
        if drugs * contexts + 1 > 2 * wanted:
            break
        drugs, contexts = (drugs + 1, contexts) if drugs < contexts else (drugs, contexts + 1)
    sizes = sorted(set(sizes), key=lambda size: (size[0] * size[1], size[1]))
    return {f"{name} {d}x{c}": replace(design, n_treatments=d + 1, n_contexts=c) for d, c in sizes}
