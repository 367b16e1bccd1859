"""Combinations of treatments: what their parts let one expect, and what they do instead."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from scipy import stats

from pyro_fcr.discovery.hill import hill_curves
from pyro_fcr.draws import QueryError
from pyro_fcr.metrics.arrays import FloatArray

_N_BISECTIONS: Final = 60
_VALUES: Final = ("estimate", "bliss", "loewe", "excess_bliss", "excess_loewe")


def synergy(
    combination: pd.DataFrame | Sequence[pd.DataFrame],
    parts: Sequence[pd.DataFrame] | Sequence[Sequence[pd.DataFrame]],
) -> pd.DataFrame:
    """Hold a combination of two agents against the expectations of Bliss and of Loewe.

    Parameters
    ----------
    combination
        Curve of the combination, from :meth:`pyro_fcr.FCR.dose_response` at doses that each of its
        parts gets, or :func:`pyro_fcr.discovery.measured_doses`; or one such table for each of
        several refits.
    parts
        The same of the two agents alone, over doses that hold those of the combination.

    Returns
    -------
    A row per context, gene and dose above 0, with

    - ``estimate``: log change of the combination;
    - ``bliss``: what independent agents would do (Bliss 1939, Annals of Applied Biology 26:585).
      Shares of expression that are left multiply, so log changes add up;
    - ``loewe``: what doses of one and the same agent would do (Loewe and Muischnek 1926, Archiv
      114:313), the effect E with ``dose / D1(E) + dose / D2(E) = 1``, D the doses at which Hill
      curves of the parts reach E; nan where the parts act in opposite directions;
    - ``excess_bliss``, ``excess_loewe``: estimate less expectation, positive where the combination
      acts more strongly in the parts' common direction, which for Loewe is that of its expectation.

    Of several refits all are means, and each excess has ``_se`` (spread over refits), ``_pvalue``
    (t distribution) and ``_qvalue`` (Benjamini and Hochberg, over all rows).

    Raises
    ------
    pyro_fcr.QueryError
        There are not two parts, or a dose, context or gene of the combination is missing in one.
    """
    single = isinstance(combination, pd.DataFrame)
    wholes = [combination] if single else list(combination)
    given = [[part] if isinstance(part, pd.DataFrame) else list(part) for part in parts]
    if len(given) != 2 or any(len(each) != len(wholes) for each in given):
        raise QueryError(
            "synergy: expected a table for each of two parts, as many refits of each as of the "
            f"combination; found {[len(each) for each in given]} of parts and {len(wholes)} of it."
        )
    tables = [_expected(*each) for each in zip(wholes, *given, strict=True)]
    first = tables[0]
    if len(tables) == 1:
        return first
    keys = [name for name in first if name not in _VALUES]
    stacked = np.stack([table[list(_VALUES)].to_numpy() for table in tables])
    found = first[keys].assign(**dict(zip(_VALUES, stacked.mean(0).T, strict=True)))
    for name in ("excess_bliss", "excess_loewe"):
        sd = stacked[:, :, _VALUES.index(name)].std(0, ddof=1)
        found[f"{name}_se"] = sd
        t = found[name] / np.where(sd > 0, sd, np.nan)
        found[f"{name}_pvalue"] = 2 * stats.t.sf(np.abs(t), len(tables) - 1)
        found[f"{name}_qvalue"] = q_values(found[f"{name}_pvalue"].to_numpy())
    return found


def q_values(p_values: FloatArray) -> FloatArray:
    """Return Benjamini and Hochberg's q-values; nan stays nan and does not count."""
    found, known = np.full(len(p_values), np.nan), np.isfinite(p_values)
    if known.any():
        found[known] = stats.false_discovery_control(p_values[known])
    return found


def _expected(whole: pd.DataFrame, one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return a refit's combination beside both expectations."""
    marks = {"treatment", "estimate", "lower", "upper", "extrapolated", "support", "se", "n_cells"}
    keys = [name for name in whole if name not in marks]
    table = whole[whole["dose"] > 0][["treatment", *keys, "estimate"]].reset_index(drop=True)
    place = pd.MultiIndex.from_frame(table[keys])
    changes, hills = [], []
    for part in (one, other):
        known = part.set_index(keys)["estimate"]
        if not place.isin(known.index).all():
            missing = dict(zip(keys, place[~place.isin(known.index)][0], strict=True))
            raise QueryError(f"synergy: {part['treatment'].iloc[0]!r} has no curve at {missing}.")
        changes.append(known.loc[place].to_numpy())
        hill = hill_curves(part).set_index([key for key in keys if key != "dose"])
        curve = hill.loc[pd.MultiIndex.from_frame(table[[k for k in keys if k != "dose"]])]
        hills.append(curve[["top", "log10_ec50", "slope"]].to_numpy())
    bliss = changes[0] + changes[1]
    loewe = loewe_effect(table["dose"].to_numpy(float), *hills)
    excess = table["estimate"] - loewe
    return table.assign(
        bliss=bliss,
        loewe=loewe,
        excess_bliss=(table["estimate"] - bliss) * np.sign(bliss),
        excess_loewe=excess * np.sign(loewe),
    )


def loewe_effect(dose: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the effect of two agents at the same dose that are doses of one another.

    Parameters
    ----------
    dose
        Dose of each of the two, ``(n,)``.
    one, other
        Top, log10 EC50 and slope of each agent's Hill curve, ``(n, 3)``.

    Returns
    -------
    ``(n,)``; nan where the two act in opposite directions, or one of them does not act.

    Examples
    --------
    >>> curve = np.array([[2.0, 0.0, 1.0]])
    >>> loewe_effect(np.array([0.5]), curve, curve)  # as a dose of 1 of the one agent
    array([1.])
    """
    tops = np.stack([one[:, 0], other[:, 0]])
    sign = np.sign(tops[0])
    most = np.abs(tops)
    low, high = np.zeros(len(dose)), most.max(axis=0)
    for _ in range(_N_BISECTIONS):
        effect = (low + high) / 2
        used = sum(
            _dose_share(dose, effect, top, curve)
            for top, curve in zip(most, (one, other), strict=True)
        )
        low, high = np.where(used > 1, effect, low), np.where(used > 1, high, effect)
    agree = (np.sign(tops[0]) == np.sign(tops[1])) & (sign != 0)
    return np.where(agree, sign * (low + high) / 2, np.nan)


def _dose_share(
    dose: FloatArray, effect: FloatArray, top: FloatArray, curve: FloatArray
) -> FloatArray:
    """Return a dose as a share of the dose that has the effect; 0 where no dose has it."""
    reached = effect < top
    odds = np.where(reached, effect, 1.0) / np.where(reached, top - effect, 1.0)
    log_needed = curve[:, 1] + np.log10(np.maximum(odds, 1e-300)) / curve[:, 2]
    return np.where(reached, dose / 10.0 ** np.clip(log_needed, -250, 250), 0.0)
