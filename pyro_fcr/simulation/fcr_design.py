"""What simulated cells are like: designs, read by the command line without numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypeAlias

from pyro_fcr.data.errors import listed
from pyro_fcr.data.spelling import did_you_mean
from pyro_fcr.values import Each, Number, check_settings

LEAKS = (("z_x", "t"), ("z_t", "x"), ("z_x", "z_tx"), ("z_t", "z_tx"))
"""The independences of the graph that a simulation can break: a block, and what leaks into it."""

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
        check_settings(self, n_genes=Number(whole=True, least=0))


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
    def numbered(cls, n_treatments: int, n_contexts: int, n_genes: int) -> "Levels":
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
            self.check_name("treatment", treatment)
            self.check_name("context", context)
            self.check_changes(genes, place=f"interactions of {treatment!r} in {context!r}")

    def check_changes(self, changes: Mapping[str, float], *, place: str) -> None:
        """Refuse unknown genes, and log fold changes that are not finite."""
        known = set(self.genes)
        for gene, change in changes.items():
            if gene not in known:
                self.check_name("gene", gene)
            if not isfinite(change):
                raise ValueError(f"{place}: gene {gene!r} has {change}; expected a finite number.")

    def check_name(self, kind: Literal["treatment", "context", "gene"], name: str) -> None:
        """Refuse an unknown name."""
        known = getattr(self, f"{kind}s")
        if name not in known:
            raise ValueError(
                f"Unknown {kind} {name!r} in the planted effects; expected one of {listed(known)}."
                f"{did_you_mean(str(name), known)}"
            )

    def _check_numbers(self, planted: RandomInteractions) -> None:
        n_pairs = len(self.treatments) * len(self.contexts)
        if planted.n_pairs > n_pairs or planted.n_genes > len(self.genes):
            raise ValueError(
                f"interactions: {planted.n_pairs} pairs of {n_pairs} and {planted.n_genes} genes "
                f"of {len(self.genes)} are too many."
            )


@dataclass(frozen=True, kw_only=True)
class FCRDesign:
    """Cells drawn from p(z_x|x) p(z_t|t) p(z_tx|t,x) p(y|z_x,z_tx,z_t), all of it known.

    Parameters
    ----------
    n_cells
        Number of cells.
    n_genes
        Number of genes.
    n_contexts
        Number of levels of x.
    n_treatments
        Number of levels of t; the first is the control.
    n_x
        Number of dimensions of z_x.
    n_tx
        Number of dimensions of z_tx.
    n_t
        Number of dimensions of z_t.
    mean_shift
        Standard deviation over conditions of the priors' means.
    scale_shift
        Largest absolute natural log of the priors' standard deviations, which are log-uniform. With
        0, priors differ in their means only.
    centred
        Whether means and log scales of z_tx average to zero over the contexts of a treatment. What
        a treatment does everywhere is then in z_t alone. If not, every pair of treatment and
        context has its own, as in Mao et al. 2024. z_t and z_tx of controls are standard normal in
        both cases.
    free_control
        Whether controls are a condition, too, with a prior of z_tx of their own in every context,
        as in Mao et al. 2024. If not, z_tx of controls is standard normal.
    interaction_rank
        Number of ways in which contexts differ in what they make of a treatment: the means and log
        scales of z_tx add up from as many products of a number of the context and a vector of the
        treatment, so that pairs foretell others. 0 draws each pair's on its own, and nothing does.
    n_inert
        Number of treatments without any effect, the last ones.
    responding
        Share of the treated cells that respond; z_t and z_tx of the others are drawn as in
        controls.
    mixing
        ``"joint"``: all latents pass through one injective network; ``"additive"``: each block has
        one of its own, and the outputs add up.
    n_layers
        Number of hidden layers of the network, each as wide as its input and invertible; 0 is
        linear.
    widths
        Units of the hidden layers of a random network that takes the place of that one.
    activation
        Between the layers of a random network.
    conditioned
        Whether weights are orthonormal, those of a random network. If not, they are Gaussian, and
        some directions of the latents are hard to see.
    likelihood
        ``"normal"`` on the log1p scale, ``"nb"`` for counts.
    noise
        Standard deviation of the Normal.
    signal
        Standard deviation over cells of a gene's mean, on the scale of log1p expression or of
        natural log rates of counts.
    depth
        Median total count of a cell.
    dispersion
        Theta of counts: variance = mean + mean**2 / theta.
    dropout
        Probability that a count is lost (set to 0).
    imbalance
        Coefficient of variation of the expected sizes of the conditions.
    missing
        Share of the pairs of treatment and context that have no cells. Every treatment keeps one
        context or more, and every context its controls.
    n_batches
        Number of technical batches; ``obs["batch"]`` names them.
    confounding
        Share of the cells whose batch is that of their context; others are drawn at random.
    batch_effect
        Standard deviation of what each batch adds to the means of the genes.
    leaks
        Dependences against the graph by (block, cause), see :data:`LEAKS`. Each is the share of the
        block's variance within its own causes that the other variable explains.
    interactions
        Natural log fold changes of chosen genes in chosen pairs of treatment and context, as in
        ``{("drug1", "line2"): {"gene3": 1.2}}``. They are added to the mean that follows from the
        latents (log1p expression, or log rates). :class:`RandomInteractions` draws them.

    Raises
    ------
    ValueError
        If a size, share or choice is impossible, or a treatment, context or gene does not exist.

    Examples
    --------
    >>> FCRDesign(interactions={("drug1", "line2"): {"gene3": 1.2}}, n_cells=500).n_tx
    4
    """

    n_cells: int = 20_000
    n_genes: int = 60
    n_contexts: int = 6
    n_treatments: int = 6
    n_x: int = 2
    n_tx: int = 4
    n_t: int = 2
    mean_shift: float = 1.5
    scale_shift: float = 1.0
    centred: bool = True
    free_control: bool = False
    interaction_rank: int = 0
    n_inert: int = 0
    responding: float = 1.0
    mixing: Literal["joint", "additive"] = "joint"
    n_layers: int = 1
    widths: tuple[int, ...] = ()
    activation: Literal["leaky_relu", "tanh", "sine"] = "leaky_relu"
    conditioned: bool = True
    likelihood: Literal["normal", "nb"] = "normal"
    noise: float = 0.1
    signal: float = 0.7
    depth: float = 3_000.0
    dispersion: float = 10.0
    dropout: float = 0.0
    imbalance: float = 0.3
    missing: float = 0.0
    n_batches: int = 0
    confounding: float = 0.0
    batch_effect: float = 0.3
    leaks: Mapping[tuple[str, str], float] = field(default_factory=dict)
    interactions: PairEffects | RandomInteractions = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.leaks) - set(LEAKS):
            raise ValueError(f"Unknown leak {min(unknown)}; expected {', '.join(map(str, LEAKS))}.")
        if wrong := [share for share in self.leaks.values() if not 0 <= share < 1]:
            raise ValueError(f"leaks: expected shares of 0 or more and below 1, got {wrong[0]}.")
        check_settings(self, widths=Each(Number(whole=True, least=1)))
        if self.n_inert >= self.n_treatments:
            raise ValueError(
                f"n_inert is {self.n_inert}, but there are {self.n_treatments - 1} treatments "
                "beside the control."
            )
        if self.interaction_rank >= self.n_contexts:
            raise ValueError(
                f"interaction_rank is {self.interaction_rank}; expected fewer than the "
                f"{self.n_contexts} contexts."
            )
        if any(width < self.n_x + self.n_tx + self.n_t for width in self.widths):
            raise ValueError(f"widths {self.widths} are too narrow for the latents.")
        n_latent = self.n_x + self.n_tx + self.n_t
        if self.n_genes < n_latent:
            raise ValueError(
                f"{self.n_genes} genes cannot hold {n_latent} latents: the mixing is injective."
            )
        self.levels.check(self.interactions)

    @property
    def levels(self) -> Levels:
        """Names of the treatments (without the control), contexts and genes."""
        return Levels.numbered(self.n_treatments - 1, self.n_contexts, self.n_genes)
