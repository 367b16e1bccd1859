"""Which pairs of treatment and context to measure next: those of which the model knows least.

What is not known of a pair is how far refits differ in what they expect of it; measuring it takes
that away, as far as the noise of the cells lets it. Two more things were tried and chose worse
pairs on simulated screens (`tests/benchmarks/next_pairs.py`): what measuring one pair tells of
others, by how refits differ on both, and how much a treatment's seen contexts differ.
"""

from collections.abc import Iterable, Sequence
from typing import Final

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
from pyro_fcr.queries.marks import mark
from pyro_fcr.queries.targets import contexts_of
from pyro_fcr.values import Number, checked

_N_CELLS: Final = 200  # drawn of a context
_COLUMNS: Final = ("treatment", "dose", "context", "information", "sd", "effect")


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
    A row per pair, that which tells most first: ``treatment``, ``dose`` where there are doses, the
    covariates, ``context``; ``information``, the share of what is not known of all unmeasured pairs
    (variance over fits of log fold changes, summed over genes) that measuring it takes away;
    ``sd``, what is not known of it, and ``effect``, what fits expect (both log fold changes,
    natural logarithm, root mean square over genes).

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
    first, adata = refits[0].registry, refits[0].source(None)
    layout = read_layout(adata.obs, first.schema)
    noise, _ = read_noise(first.encode_expression(adata), layout, first.schema)
    rows, values = _unmeasured(refits, arms_of(first, treatments), seed)
    variance = values.var(axis=0, ddof=1)
    learnt = (variance**2 / (variance + noise.cell / n_cells + 1e-300)).sum(axis=1)
    table = pd.DataFrame(rows).assign(
        information=learnt / max(variance.sum(), 1e-300),
        sd=np.sqrt(variance.mean(axis=1)),
        effect=np.sqrt((values.mean(axis=0) ** 2).mean(axis=1)),
    )
    table = table.sort_values("information", ascending=False, kind="stable", ignore_index=True)
    return table.head(n_pairs)


def _unmeasured(
    refits: Sequence[Fitted], arms: Sequence[Arm], seed: int
) -> tuple[list[dict[str, str]], FloatArray]:
    """Return the pairs that training lacks, and what each fit expects of their genes."""
    registry, contexts = refits[0].registry, contexts_of(refits[0])
    control = registry.schema.control
    controls = [c.covariates.items() for c in registry.conditions if c.treatment == control]
    untreated = [any(context.items() <= own for own in controls) for context in contexts]
    rows, found = [], []
    for arm in arms:
        dose = arm.dose or None
        asked = [
            context
            for context, has_control in zip(contexts, untreated, strict=True)
            if has_control and mark(registry, arm.treatment, context, dose=dose)["extrapolated"]
        ]
        if not asked:
            continue
        found.append(
            [total_effects(fcr, arm, asked, n_cells=_N_CELLS, seed=seed) for fcr in refits]
        )
        for context in asked:
            levels = named_levels(context, _COLUMNS)
            rows.append({**arm.columns, **levels, "context": ", ".join(context.values())})
    if not rows:
        raise QueryError(
            "Every pair of these treatments and the contexts with untreated cells was measured."
        )
    return rows, np.concatenate(found, axis=1)  # fits, pairs, genes
