"""Are the latent blocks as independent as the graph claims? Permutation tests within strata.

Labels are discrete, so that the cells of one stratum (``| x``: cells of one x) may change places:
the tests hold their level for any distribution and any number of cells, in time linear in cells.
Of two statistics the larger counts, each in units of its own permutations: one sees means, the
other also variances and curves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pyro_fcr.graph import Claim
from pyro_fcr.metrics.arrays import Blocks, FloatArray, codes, joint_codes
from pyro_fcr.metrics.permutation import LEVEL, Sides, beyond_chance, both_sides, p_value, whiten
from pyro_fcr.values import checked

CLAIMS = (
    Claim("structure", "z_x", "t", ("x",)),
    Claim("structure", "z_t", "x", ("t",)),
    Claim("permutation", "z_x", "z_tx", ("x",)),
    Claim("permutation", "z_tx", "z_t", ("t",)),
)
"""The four statements of the paper, which the shipped model's graph makes."""


@dataclass(frozen=True)
class IndependenceTest:
    """What a permutation test within strata found.

    Parameters
    ----------
    statement
        What was tested, such as ``z_x ⟂ t | x``.
    effect
        Beyond chance, between 0 (none; slightly negative by luck) and 1. Of a label: the share of
        the block's variance within strata that the label's means explain (eta squared, mean over
        the block's directions). Of another block: the mean squared canonical correlation within
        strata, over the directions of the narrower block.
    shape_effect
        The same for features of a Gaussian kernel: also sees variances and curves. Of a label:
        share of the features' variance; of another block: centred kernel alignment.
    p_value
        Share of arrangements, the observed one among them, at least as dependent as the observed.
    chance
        What independent cells show before the correction of `effect`: mean over permutations.
    n_cells, n_strata
        Cells and strata that could be used.
    permuted
        What changed places: ``cells``, ``cells within replicates``, or ``replicates``.
    smallest_p
        The smallest p-value that this design and number of permutations can show.
    """

    statement: str
    effect: float
    shape_effect: float
    p_value: float
    chance: float
    n_cells: int
    n_strata: int
    permuted: str
    smallest_p: float


@checked()
def independence_test(
    z: ArrayLike,
    other: ArrayLike,
    stratum: ArrayLike,
    *,
    replicate: ArrayLike | None = None,
    n_permutations: int = 200,
    seed: int = 0,
    statement: str = "z ⟂ other | stratum",
) -> IndependenceTest:
    """Test whether a block is independent of a label, or of another block, within strata.

    Cells that share a replicate (donor, well, library) share its noise. With `replicate` given,
    whole replicates exchange labels where each has one label in a stratum, among the replicates
    that occur in the same strata; where replicates hold several labels, and for two blocks, cells
    change places within replicate and stratum. A replicate must have a name of its own: "rep1" of
    two conditions is taken for one replicate.

    Parameters
    ----------
    z
        Latent block, ``(n_cells, n_dims)``. Directions with less than 1e-4 of the variance of the
        widest are left out: dimensions that the model does not use.
    other
        A label of each cell, ``(n_cells,)``, or another block, ``(n_cells, n_other_dims)``.
    stratum
        What is held fixed: a label of each cell, ``(n_cells,)``. A stratum with one level of the
        label only does not count.
    replicate
        Replicate of each cell, ``(n_cells,)``; None takes cells as independent.
    n_permutations
        Number of random permutations, at least 19.
    seed
        Seed of the permutations and of the random features.
    statement
        Name of the test in the result and in errors.

    Returns
    -------
    Effects, p-value and what they rest on. Mind that the encoders are given labels: a claim that
    holds says that the block keeps nothing of the label beyond its stratum.

    Raises
    ------
    ValueError
        Rows do not fit, values are missing, no stratum can be used, or the design is too small for
        any p-value of 0.05.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, t = rng.integers(3, size=(2, 3000))
    >>> clean = rng.gamma(2.0, size=(3000, 2)) + x[:, None]
    >>> leaky = clean + 0.3 * t[:, None]
    >>> independence_test(clean, t, x).p_value > 0.05, independence_test(leaky, t, x).p_value < 0.01
    (True, True)
    >>> bool(0.02 < independence_test(leaky, t, x).effect < 0.04)
    True
    """
    sides = both_sides(z, other, stratum, replicate, statement)
    smallest_p = sides.check_reach(n_permutations)
    rng = np.random.default_rng(seed)
    found = sides.shares(sides.block, sides.second, n_permutations, rng)
    effect, shape_effect = beyond_chance(found).tolist()
    return IndependenceTest(
        statement=statement,
        effect=effect,
        shape_effect=shape_effect,
        p_value=p_value(found),
        chance=float(found[1:, 0].mean()),
        n_cells=len(sides.strata.rows),
        n_strata=len(sides.strata.slices),
        permuted=sides.strata.permuted,
        smallest_p=smallest_p,
    )


@checked()
def independence_table(
    latents: Blocks,
    labels: Mapping[str, ArrayLike],
    *,
    claims: Sequence[Claim] = CLAIMS,
    replicate: ArrayLike | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Test every independence that a graph claims, see `independence_test`.

    Parameters
    ----------
    latents
        Block name to ``(n_cells, n_dims)``.
    labels
        Name of an exogenous site (``x``, ``t``) to the label of each cell, ``(n_cells,)``.
    claims
        What to test, by default the paper's four statements; for a graph of your own take
        ``pyro_fcr.graph.claims``.
    replicate, n_permutations, seed
        See `independence_test`.

    Returns
    -------
    One row per claim, the fields of `IndependenceTest` as columns.

    Raises
    ------
    ValueError
        A claim names a block or site that is not given, or a test is not possible.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = {"x": rng.integers(3, size=900), "t": rng.integers(4, size=900)}
    >>> latents = {name: rng.normal(size=(900, 2)) for name in ("z_x", "z_t", "z_tx")}
    >>> table = independence_table(latents, labels)
    >>> table["statement"].tolist()
    ['z_x ⟂ t | x', 'z_t ⟂ x | t', 'z_x ⟂ z_tx | x', 'z_tx ⟂ z_t | t']
    """
    _check_sites(latents, labels, claims)
    found = []
    for claim in claims:
        z = latents[claim.left]
        n = len(np.asarray(z))
        given = [codes(labels[site], n, site) for site in claim.given]
        test = independence_test(
            z,
            latents[claim.right] if claim.kind == "permutation" else labels[claim.right],
            joint_codes(*given, n_cells=n),
            replicate=replicate,
            n_permutations=n_permutations,
            seed=seed,
            statement=str(claim),
        )
        found.append(asdict(test))
    return pd.DataFrame(found)


def _check_sites(latents: Blocks, labels: Mapping[str, ArrayLike], claims: Sequence[Claim]) -> None:
    for claim in claims:
        right = latents if claim.kind == "permutation" else labels
        sites = ((labels, site) for site in claim.given)
        for given, name in ((latents, claim.left), (right, claim.right), *sites):
            if name not in given:
                what = "latents" if given is latents else "labels"
                raise ValueError(f"{claim}: {what} has {sorted(given)}, but not {name!r}.")


@checked()
def power_against_leak(
    z: ArrayLike,
    other: ArrayLike,
    stratum: ArrayLike,
    *,
    leak: Sequence[float] = (0.0, 0.01),
    replicate: ArrayLike | None = None,
    n_draws: int = 200,
    n_permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how often the test finds a leak of known size in cells like these, or a false one.

    In each draw the label (or the other block) is permuted as in the test, which makes it
    independent, and a random function of it, linear for a block, is mixed into every direction of
    `z` (whitened within strata) at the same share of its variance. The measured effect is that
    share, or more where the other block is narrower than `z`.

    Parameters
    ----------
    z, other, stratum, replicate, n_permutations
        See `independence_test`.
    leak
        Shares of the variance within strata, between 0 and 1.
    n_draws
        Tests per leak.
    seed
        Seed of everything random.

    Returns
    -------
    One row per leak: ``leak``, ``rejected`` (share of draws with p-value at most 0.05: false
    positives at leak 0, power elsewhere), ``effect`` (mean of the measured effects), ``n_draws``.

    Raises
    ------
    ValueError
        Nothing can be tested, see `independence_test`, or a leak is not between 0 and 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z, (x, t) = rng.normal(size=(600, 2)), rng.integers(3, size=(2, 600))
    >>> power_against_leak(z, t, x, leak=[0.1], n_draws=10, n_permutations=50)["rejected"].tolist()
    [1.0]
    """
    if wrong := [share for share in leak if not 0 <= share <= 1]:
        raise ValueError(f"leak is {wrong[0]}; expected a share of variance, such as 0.01.")
    sides = both_sides(z, other, stratum, replicate, "power_against_leak")
    sides.check_reach(n_permutations)
    rng, rows = np.random.default_rng(seed), []
    for share in leak:
        p_values, effects = [], []
        for _ in range(n_draws):
            drawn = sides.second[sides.strata.shuffle(rng)]
            leaky = _plant(sides, drawn, share, rng)
            found = sides.shares(leaky, drawn, n_permutations, rng)
            p_values.append(p_value(found))
            effects.append(beyond_chance(found)[0])
        rows.append((share, np.mean(np.array(p_values) <= LEVEL), np.mean(effects), n_draws))
    return pd.DataFrame(rows, columns=["leak", "rejected", "effect", "n_draws"])


def _plant(sides: Sides, drawn: NDArray[Any], share: float, rng: np.random.Generator) -> FloatArray:
    """Mix a random function of the permuted other side into every direction of the block."""
    if sides.of_label:
        score = rng.normal(size=(drawn.max() + 1, sides.block.shape[1]))[drawn][sides.strata.unit]
    else:
        score = drawn @ rng.normal(size=(drawn.shape[1], sides.block.shape[1]))
    score = sides.strata.centre(score)
    mixed, _ = whiten(sides.block, sides.strata)
    for rows in sides.strata.slices:
        spread = score[rows].std(axis=0)
        unit = score[rows] / np.where(spread > 0, spread, np.inf)
        mixed[rows] = np.sqrt(1 - share) * mixed[rows] + np.sqrt(share) * unit
    return mixed
