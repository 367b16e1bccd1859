"""Tables over families and fits, and how well a fit's warning tells good fits from bad ones."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pyro_fcr.simulation import FAMILIES

BAD_LEAK = 0.10
GOOD = {"share": 0.95, "leak": 0.05, "mcc": 0.93}


def with_shares(rows):
    """Add the smallest R2 of a block as a share of its ceiling, and whether all targets are met."""
    blocks = [name.removeprefix("found_") for name in rows if name.startswith("found_r2_")]
    shares = pd.concat([rows[f"found_{b}"] / rows[f"ceiling_{b}"] for b in blocks], axis=1)
    rows = rows.assign(share=shares.min(axis=1))
    met = (rows["share"] >= GOOD["share"]) & (rows["found_leak"] <= GOOD["leak"])
    return rows.assign(met=met & (rows["found_mcc"] >= GOOD["mcc"]))


def table_of(rows):
    """Medians and the worst over seeds, a row per family and fit."""
    rows, lines = with_shares(rows), []
    order = {name: number for number, name in enumerate(FAMILIES)}
    groups = sorted(
        rows.groupby(["family", "fit"]), key=lambda item: (order[item[0][0]], item[0][1])
    )
    for (family, fit), own in groups:
        r2 = [
            f"{own[f'found_r2_{b}'].median():.2f} ({own[f'ceiling_r2_{b}'].median():.2f})"
            for b in ("z_x", "z_tx", "z_t")
        ]
        lines.append({
            "family": family,
            "kind": FAMILIES[family].kind + (", tuned on" if FAMILIES[family].tuned else ""),
            "fit": fit,
            "R2 z_x / z_tx / z_t (ceiling)": " / ".join(r2),
            "share of ceiling": between(own["share"], worst="min"),
            "leak": between(own["found_leak"], worst="max"),
            "MCC z_tx": between(own["found_mcc"], worst="min"),
            "rotated": f"{own['floor_mcc'].median():.2f}",
            "met": f"{int(own['met'].sum())} of {len(own)}",
            "warned": f"{int(own['warned'].sum())} of {len(own)}",
            "CPU s": f"{own['cpu_seconds'].median():.0f}",
        })  # fmt: skip
    return pd.DataFrame(lines)


def between(values, *, worst):
    """Median and worst value."""
    return f"{values.median():.2f} ({getattr(values, worst)():.2f})"


def risk(rows):
    """One number that rises with what speaks against the blocks; 1 where a fit begins to warn."""
    margin = rows["margin"].astype(float).fillna(0.0)
    return np.maximum(rows["effects"].map(worst_effect), 1.0 - (margin - 0.01) / 0.05)


def worst_effect(effects):
    """Largest effect, of labels in units of 0.008 and of other blocks in units of 0.012."""
    bound = {statement: 0.012 if "⟂ z_" in statement else 0.008 for statement in effects or {}}
    return max((effect / bound[name] for name, effect in (effects or {}).items()), default=0.0)


def warning_scores(rows):
    """How well risk and warning tell a leak above 0.10."""
    bad = rows["found_leak"] > BAD_LEAK
    good = with_shares(rows)["met"]
    return {
        "fits": len(rows),
        "bad": int(bad.sum()),
        "auroc": round(float(roc_auc_score(bad, risk(rows))), 3)
        if 0 < bad.sum() < len(bad)
        else None,
        "bad_warned": f"{int((bad & rows['warned']).sum())} of {int(bad.sum())}",
        "good_warned": f"{int((good & rows['warned']).sum())} of {int(good.sum())}",
    }
