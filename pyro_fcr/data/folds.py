"""Pairs of treatment and context in parts, each of which is left out of a fit."""

from collections.abc import Collection

import numpy as np

from pyro_fcr.data.pairs import FEWEST_CONTROLS, Layout, Mask
from pyro_fcr.data.scenarios import Scenario


def deal_pairs(
    layout: Layout, cells: Mask, n_folds: int, seed: int = 0
) -> tuple[list[Scenario], dict[str, str]]:
    """Deal pairs to folds so that the contexts, and treatments, of a fold differ where they can.

    A pair is left out where the others tell of its treatment: they have it in another context or,
    of a combination, each of its agents in another treatment.

    Parameters
    ----------
    layout
        Pair of each cell.
    cells
        The cells to look at, shape (n_cells,): those that the split keeps from training have no
        part in it.
    n_folds
        Number of folds.
    seed
        Seed of the order in which pairs are dealt.

    Returns
    -------
    A scenario per fold, and why pairs are in none.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyro_fcr.data import Schema
    >>> from pyro_fcr.data.pairs import read_layout
    >>> schema = Schema(treatment_key="drug", control="none", covariate_keys="line")
    >>> obs = pd.DataFrame({"drug": ["none", "A", "B", "A+B"] * 4, "line": ["u"] * 16})
    >>> layout = read_layout(obs, schema)
    >>> made, reasons = deal_pairs(layout, np.ones(16, dtype=bool), n_folds=2)
    >>> [str(pair) for pair in made[0].pairs], reasons["'A' in u"]
    (["'A+B' in u"], "no other context has 'A'")
    """
    size, reasons = layout.n_cells(cells), {}
    treated = {i: pair for i, pair in layout.treated().items() if size[i]}
    for i, pair in treated.items():
        lacks = layout.lacks(i, size, controls=FEWEST_CONTROLS)
        if reason := lacks or _unknown(layout, i, treated.keys() - {i}):
            reasons[str(pair)] = reason
    usable = [i for i, pair in treated.items() if str(pair) not in reasons]
    rng = np.random.default_rng(seed)
    shuffled = [usable[i] for i in rng.permutation(len(usable))]
    by_treatment = sorted(shuffled, key=lambda i: treated[i].treatment)
    folds = [by_treatment[start::n_folds] for start in range(n_folds)]
    scenarios = []
    for fold in folds:
        kept = treated.keys() - set(fold)
        stay = [i for i in fold if not _unknown(layout, i, kept)]
        reasons |= {
            str(treated[i]): "its fold has all pairs that tell of its treatment; use more folds"
            for i in set(fold) - set(stay)
        }
        if stay:
            out, pairs = np.isin(layout.codes, stay), tuple(layout.pairs[i] for i in stay)
            scenarios.append(Scenario("unseen pair", pairs, cells & ~out, cells & out))
    return scenarios, reasons


def _unknown(layout: Layout, position: int, kept: Collection[int]) -> str:
    """Say what kept pairs do not tell of a pair's treatment; nothing if it can be predicted.

    They have it in another context or, of a combination, each of its agents in another treatment.
    """
    treatment, agents = layout.pairs[position].treatment, layout.agents[position]
    if any(layout.pairs[i].treatment == treatment for i in kept):
        return ""
    if len(agents) == 1:
        return f"no other context has {treatment!r}"
    missing = sorted(set(agents).difference(*(layout.agents[i] for i in kept)))
    return f"no other treatment has {missing[0]!r}" if missing else ""
