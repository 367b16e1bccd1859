"""Which pairs of treatment and context to measure next: where most would be learnt.

What is not known of a pair has two parts. Refits of the model differ in what they expect of it, and
of several pairs together. And contexts differ in what a treatment does to them, which no fit knows
of a context that it has not seen. Measuring a pair takes away what it shares with others of the
first, and its own of the second; the best pairs are chosen one after the other (sensor placement,
Krause, Singh and Guestrin 2008, JMLR 9:235, with the sum of variances in place of the entropy).
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from pyro_fcr.data.pairs import read_layout
from pyro_fcr.discovery.effects import arms_of, check_alike, total_effects
from pyro_fcr.discovery.power import read_noise
from pyro_fcr.discovery.unused import Arm
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import FloatArray
from pyro_fcr.queries import Fitted
from pyro_fcr.queries.columns import named_levels
from pyro_fcr.queries.targets import contexts_of
from pyro_fcr.values import Number, checked

_COLUMNS: Final = ("treatment", "dose", "context", "information", "sd", "effect")


class _Pairs(NamedTuple):
    """Pairs that were not measured.

    Arrays have a row per pair; covariances are sums over genes of squared log fold changes.
    """

    rows: list[dict[str, str]]
    effect: FloatArray
    covariance: FloatArray


@checked(error=QueryError)
def next_pairs(
    refits: Sequence[Fitted],
    *,
    n_pairs: int = 10,
    n_cells: int = 100,
    treatments: Iterable[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank pairs of treatment and context that were never measured by what they would tell.

    Parameters
    ----------
    refits
        Three or more fits of one model with its cells, from :func:`pyro_fcr.bootstrap`.
    n_pairs
        Most pairs to choose.
    n_cells
        Cells that will be measured of each.
    treatments
        Labels to choose among; None takes all of training, each at its doses.
    seed
        Seed of the draws.

    Returns
    -------
    A row per pair, in the order in which they are best measured: ``treatment``, ``dose`` where
    there are doses, the covariates, ``context``; ``information``, the share of what is not known of
    all unmeasured pairs (variance of log fold changes, summed over genes) that it takes away once
    those before it are measured; ``sd``, what is not known of it now, and ``effect``, what fits
    expect (both log fold changes, natural logarithm, root mean square over genes).

    Raises
    ------
    pyro_fcr.QueryError
        There are fewer than three fits, no untreated cells, or no pair that was not measured.
    ValueError
        A fit was loaded without its cells.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::5, :40].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> treated = adata.obs["treatment"] != "control"
    >>> some = adata[~(treated & adata.obs["patient"].isin(["PW030", "PW034"]))].copy()
    >>> refits = pyro_fcr.bootstrap(pyro_fcr.FCR(some, schema), 3, max_epochs=1)
    >>> sorted(next_pairs(refits)["patient"])
    ['PW030', 'PW034']
    """
    for name, number in (("n_pairs", n_pairs), ("n_cells", n_cells)):
        Number(whole=True, least=1).read(name, number, error=QueryError)
    if len(refits) < 3:
        raise QueryError(
            f"{len(refits)} fits do not tell how far fits differ: give three or more, as "
            "pyro_fcr.bootstrap(fcr, 5) makes them."
        )
    check_alike(refits)
    first = refits[0].registry
    if first.schema.control is None:
        raise QueryError("Effects are against untreated cells, but the schema names no control.")
    adata = refits[0].source(None)
    layout = read_layout(adata.obs, first.schema)
    noise, _ = read_noise(first.encode_expression(adata), layout, first.schema)
    pairs = _unmeasured(refits, arms_of(first, treatments), seed)
    size = np.sqrt(np.diag(pairs.covariance) / len(first.genes))
    chosen = _choose(pairs.covariance, float(noise.cell.sum()) / n_cells, n_pairs)
    return pd.DataFrame(
        [
            {**pairs.rows[i], "information": share, "sd": size[i], "effect": pairs.effect[i]}
            for i, share in chosen
        ]
    )


def _unmeasured(refits: Sequence[Fitted], arms: Sequence[Arm], seed: int) -> _Pairs:
    """Return the pairs that training lacks, and how what is not known of them goes together."""
    registry, contexts = refits[0].registry, contexts_of(refits[0])
    control = registry.schema.control
    controls = [c.covariates.items() for c in registry.conditions if c.treatment == control]
    untreated = [any(context.items() <= own for own in controls) for context in contexts]
    rows, found, alone = [], [], []
    for arm in arms:
        expected = np.stack(
            [total_effects(fcr, arm, contexts, n_cells=200, seed=seed) for fcr in refits]
        )
        dose = arm.dose or None
        seen = [not registry.is_extrapolated(arm.treatment, each, dose=dose) for each in contexts]
        apart = _between(expected.mean(axis=0)[seen])
        for i, context in enumerate(contexts):
            if untreated[i] and not seen[i]:
                levels = named_levels(context, _COLUMNS)
                rows.append({**arm.columns, **levels, "context": ", ".join(context.values())})
                found.append(expected[:, i])
                alone.append(apart)
    if not rows:
        raise QueryError(
            "Every pair of these treatments and the contexts with untreated cells was measured."
        )
    values = np.stack(found, axis=1)  # fits, pairs, genes
    centred = values - values.mean(axis=0)
    shared = np.einsum("fpg,fqg->pq", centred, centred) / (len(refits) - 1)
    effect = np.sqrt((values.mean(axis=0) ** 2).mean(axis=1))
    own = np.where(np.isnan(alone), np.nanmean(alone) if np.isfinite(alone).any() else 0.0, alone)
    return _Pairs(rows, effect, shared + np.diag(own))


def _between(effects: FloatArray) -> float:
    """Return how much an effect in another context differs from the mean of those seen."""
    n = len(effects)
    return float(effects.var(axis=0, ddof=1).sum() * (1 + 1 / n)) if n > 1 else np.nan


def _choose(covariance: FloatArray, noise: float, n_pairs: int) -> list[tuple[int, float]]:
    """Choose pairs one after the other, each with the share of all variance that it takes away."""
    rest, total = covariance.copy(), max(np.trace(covariance), 1e-300)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(n_pairs, len(rest))):
        gain = (rest**2).sum(axis=0) / (np.diag(rest) + noise)
        gain[[i for i, _ in chosen]] = -1.0
        best = int(gain.argmax())
        chosen.append((best, float(gain[best] / total)))
        rest -= np.outer(rest[best], rest[best]) / (rest[best, best] + noise)
    return chosen
