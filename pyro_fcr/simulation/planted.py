"""Interactions that a simulation plants: chosen pairs of treatment and context, chosen genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, TypeAlias

from pyro_fcr.data.errors import did_you_mean, listed

if TYPE_CHECKING:  # the command line reads options of FCRDesign without numpy
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]

PairEffects: TypeAlias = Mapping[tuple[str, str], Mapping[str, float]]
"""Natural log fold changes: ``{("drug1", "line2"): {"gene3": 1.2}}``."""


@dataclass(frozen=True, kw_only=True)
class RandomInteractions:
    """Interactions on pairs and genes that the seed of the simulation draws.

    Parameters
    ----------
    n_pairs
        Number of pairs of treatment and context that interact.
    n_genes
        Number of genes that each pair affects.
    effect
        Size of the effect on these genes, up or down, as a natural log fold change.

    Raises
    ------
    ValueError
        If a number is negative.

    Examples
    --------
    >>> RandomInteractions(n_pairs=3, n_genes=10).effect
    0.5
    """

    n_pairs: int = 6
    n_genes: int = 20
    effect: float = 0.5

    def __post_init__(self) -> None:
        for name in ("n_pairs", "n_genes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more.")


def names(word: str, n: int) -> list[str]:
    """Return ``word1`` to ``word<n>``."""
    return [f"{word}{i + 1}" for i in range(n)]


@dataclass(frozen=True)
class Levels:
    """Names that interactions can refer to: treatments without the control, contexts, genes."""

    treatments: Sequence[str]
    contexts: Sequence[str]
    genes: Sequence[str]

    @classmethod
    def numbered(cls, n_treatments: int, n_contexts: int, n_genes: int) -> Levels:
        """Return the names of simulated levels."""
        return cls(names("drug", n_treatments), names("line", n_contexts), names("gene", n_genes))

    def check(self, planted: PairEffects | RandomInteractions) -> None:
        """Refuse interactions of unknown treatments, contexts or genes.

        Raises
        ------
        ValueError
            If a name is unknown or a number too large. The message has the nearest known name.
        """
        if isinstance(planted, RandomInteractions):
            self._check_numbers(planted)
            return
        for (treatment, context), genes in planted.items():
            self._check_name("treatment", treatment, self.treatments)
            self._check_name("context", context, self.contexts)
            self.check_changes(genes, place=f"interactions of {treatment!r} in {context!r}")

    def check_changes(self, changes: Mapping[str, float], *, place: str) -> None:
        """Refuse unknown genes, and log fold changes that are not finite."""
        known = set(self.genes)
        for gene, change in changes.items():
            if gene not in known:
                self._check_name("gene", gene, self.genes)
            if not isfinite(change):
                raise ValueError(f"{place}: gene {gene!r} has {change}; expected a finite number.")

    def check_treatments(self, treatments: Sequence[str]) -> None:
        """Refuse unknown treatments."""
        for treatment in treatments:
            self._check_name("treatment", treatment, self.treatments)

    def draw(
        self, planted: PairEffects | RandomInteractions, rng: np.random.Generator
    ) -> PairEffects:
        """Return the interactions by name; draw them if they are random."""
        if not isinstance(planted, RandomInteractions):
            return planted
        pairs, genes = list(product(self.treatments, self.contexts)), list(self.genes)
        found = {}
        for pair in rng.permutation(len(pairs))[: planted.n_pairs]:
            chosen = rng.choice(genes, planted.n_genes, replace=False).tolist()
            changes = planted.effect * rng.choice([-1.0, 1.0], planted.n_genes)
            found[pairs[pair]] = dict(zip(chosen, changes.tolist(), strict=True))
        return found

    def log_fold_changes(self, interactions: PairEffects) -> Floats:
        """Return the changes, ``(1 + n_treatments, n_contexts, n_genes)``; the control is first."""
        import numpy as np  # noqa: PLC0415

        positions = {
            kind: {name: i for i, name in enumerate(getattr(self, kind))} for kind in vars(self)
        }
        changes = np.zeros((1 + len(self.treatments), len(self.contexts), len(self.genes)))
        for (treatment, context), genes in interactions.items():
            t, x = positions["treatments"][treatment] + 1, positions["contexts"][context]
            changes[t, x, [positions["genes"][gene] for gene in genes]] = list(genes.values())
        return changes

    def _check_numbers(self, planted: RandomInteractions) -> None:
        n_pairs = len(self.treatments) * len(self.contexts)
        if planted.n_pairs > n_pairs or planted.n_genes > len(self.genes):
            raise ValueError(
                f"interactions: {planted.n_pairs} pairs of {n_pairs} and {planted.n_genes} genes "
                f"of {len(self.genes)} are too many."
            )

    def _check_name(self, kind: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            raise ValueError(
                f"Unknown {kind} {name!r} in the planted effects; expected one of {listed(known)}."
                f"{did_you_mean(str(name), known)}"
            )


def tidy(interactions: PairEffects) -> dict[str, npt.NDArray[np.object_] | Floats]:
    """Return columns with a row per pair and gene, in a form that ``uns`` can store."""
    import numpy as np  # noqa: PLC0415

    rows = [(*pair, gene, c) for pair, genes in interactions.items() for gene, c in genes.items()]
    keys = ("treatment", "context", "gene")
    columns = {key: np.array([row[i] for row in rows], object) for i, key in enumerate(keys)}
    return {**columns, "log_fold_change": np.array([row[3] for row in rows], float)}
