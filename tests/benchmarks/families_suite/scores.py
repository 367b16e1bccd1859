"""How far one fit found the true latents, beside what labels alone and the truth itself allow."""

import numpy as np

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.identifiability import label_only_estimate
from pyro_fcr.metrics.recovery import block_r2_tables, leakage, mcc, rotation_floor
from pyro_fcr.metrics.supervised import supervised_latents

BLOCKS = ("z_x", "z_tx", "z_t")


def judge(fcr, latents, adata, *, seed):
    """Return the scores of latents by block, which are of dimensions in use."""
    truth = {block: np.asarray(adata.obsm[block], dtype=np.float64) for block in BLOCKS}
    labels = arrays.joint_codes(*(adata.obs[key].to_numpy() for key in ("context", "treatment")))
    codes = arrays.condition_codes(labels, adata.n_obs)
    in_use = {}
    if set(fcr.graph.blocks) == set(BLOCKS):
        in_use = fcr.dimension_use().groupby("block")["in_use"].sum().astype(int).to_dict()
    known = supervised_latents(truth, log1p(adata), codes, seed=seed)
    labels_only = {block: label_only_estimate(z, codes, seed=seed) for block, z in truth.items()}
    estimates = {"found": latents, "ceiling": known, "floor": labels_only}
    scores = {name: scored(truth, each, codes, seed=seed) for name, each in estimates.items()}
    scores["floor"]["mcc"] = rotation_floor(truth["z_tx"], condition=codes, seed=seed)
    flat = {
        f"{kind}_{score}": value for kind, each in scores.items() for score, value in each.items()
    }
    separation = (fcr.history.attrs.get("separation") or {}) if fcr.history is not None else {}
    return {**flat, **about(separation), "in_use": {k: int(v) for k, v in in_use.items()}}


def scored(truth, estimate, codes, *, seed):
    """R2 of each block, the largest R2 of another block, and the MCC of z_tx."""
    _, table = block_r2_tables(truth, {block: estimate[block] for block in truth}, codes, seed=seed)
    diagonal = {f"r2_{block}": float(table.loc[block, block]) for block in truth}
    found = mcc(truth["z_tx"], estimate["z_tx"], condition=codes)
    return {**diagonal, "leak": leakage(table)["max"], "mcc": found}


def log1p(adata):
    """Expression at equal depth, on the log1p scale."""
    counts = adata.X.toarray()
    library = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts / library * np.median(library))


def about(separation):
    """What the fit said of itself."""
    alignment = separation.get("alignment", {})
    return {
        "separated": separation.get("separated"),
        "margin": separation.get("smallest_margin"),
        "effect": max(separation.get("effects", {}).values(), default=None),
        "shape_effect": max(separation.get("shape_effects", {}).values(), default=None),
        "effects": separation.get("effects"),
        **{key: alignment.get(key) for key in ("gain", "lead", "agreement", "n_starts", "n_moved")},
    }
