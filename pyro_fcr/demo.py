"""The main job from end to end on bundled real cells: train, look, predict, judge, report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.api import FCR
from pyro_fcr.data import Schema, datasets
from pyro_fcr.evaluation import Assessment, assess
from pyro_fcr.files import atomic_write
from pyro_fcr.metrics import (
    baseline_deltas,
    mean_log1p,
    nan_to_null,
    umap,
)
from pyro_fcr.queries.coverage import interval_coverage
from pyro_fcr.report import write_report

logger = logging.getLogger(__name__)

TREATMENT = "panobinostat"
PATIENT = "PW034"
SCHEMA = Schema(
    treatment_key="treatment", control="control", covariate_keys=("patient",), split_key="split"
)


def run_demo(
    out: str | Path, *, max_epochs: int | None = 150, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Train on the glioblastoma cells with one pair held out, and write all results.

    Parameters
    ----------
    out
        Folder for ``metrics.json``, ``report.html``, ``cells.h5ad`` (latents and UMAPs),
        ``predicted.h5ad`` (the held-out pair as predicted) and ``model/``. Made where missing.
    max_epochs
        Passes over the training cells.
    seed
        Of everything random.
    progress
        Whether to show a progress bar.

    Returns
    -------
    The contents of ``metrics.json``.

    Raises
    ------
    FileExistsError
        ``out`` holds a model already.
    """
    out = Path(out)
    if (out / "model").exists():
        raise FileExistsError(f"{out / 'model'} is there already. Give another folder.")
    start = time.perf_counter()
    adata = hold_out(datasets.gbm_panobinostat())
    logger.info("Cells: %d x %d genes; (%s, %s) is held out.", *adata.shape, PATIENT, TREATMENT)
    fcr = FCR(adata, SCHEMA, seed=seed)
    logger.info("Training: %r", fcr)
    history = fcr.fit(max_epochs=max_epochs, seed=seed, progress=progress)
    logger.info("Training ended after %d epochs: %s.", len(history), history.attrs["stopped"])
    fcr.save(out / "model")
    cells = latent_cells(fcr, adata, seed=seed)
    logger.info("Latents and UMAPs are made; predicting the held-out pair.")
    predicted, deltas, real = heldout_response(fcr, adata, seed=seed)
    assessment = assess(fcr, seed=seed)
    metrics = {
        **_facts(fcr, history, seconds=time.perf_counter() - start),
        "nmi": heldout_nmi(assessment),
        "heldout_pair": {"patient": PATIENT, "treatment": TREATMENT},
        "response": _scores(assessment),
        "coverage": heldout_coverage(fcr, adata, seed=seed).to_dict("records"),
    }
    tables = {"cells": cells, "predicted": predicted}
    _write(out, fcr, history, tables, (metrics, deltas, real, assessment))
    logger.info("Written to %s: report.html, metrics.json, cells.h5ad, predicted.h5ad, model/", out)
    return metrics


def hold_out(adata: AnnData) -> AnnData:
    """Label the held-out pair ``"test"`` in a new column ``split``, all other cells ``"train"``."""
    pair = (adata.obs["patient"] == PATIENT) & (adata.obs["treatment"] == TREATMENT)
    adata.obs["split"] = pd.Categorical(np.where(pair, "test", "train"))
    return adata


def latent_cells(fcr: FCR, adata: AnnData, *, seed: int) -> AnnData:
    """Copy the cells, with each block and its UMAP in ``obsm``."""
    cells = adata.copy()
    fcr.add_latents_to(cells)
    for block in fcr.graph.latents:
        cells.obsm[f"X_fcr_{block}_umap"] = umap(cells.obsm[f"X_fcr_{block}"], seed=seed)
    if fcr.split is not None:
        fitted = np.full(len(cells), "left out", dtype=object)
        fitted[fcr.split.train], fitted[fcr.split.heldout] = "train", "held out"
        cells.obs["fitted"] = fitted
    return cells


def heldout_nmi(assessment: Assessment) -> dict[str, dict[str, float]]:
    """Give the NMI of each block's clusters with x, t and both, labelled, on held-out cells."""
    rows = assessment.clustering.query(
        "cells == 'held out' and encoding == 'labelled' and metric == 'nmi'"
    )
    return {
        str(block): dict(zip(part["label"], part["value"], strict=True))
        for block, part in rows.groupby("block", sort=False)
    }


def heldout_response(
    fcr: FCR, adata: AnnData, *, seed: int
) -> tuple[AnnData, dict[str, np.ndarray], np.ndarray]:
    """Predict the held-out pair from its patient's control cells, by the model and by baselines.

    The model's change is that between its two counterfactuals of the same control cells, under the
    drug and under none, so that what it fails to reconstruct of a cell cancels.

    Returns
    -------
    The predicted cells, the change of mean log1p expression by method, and the real change.
    """
    pair = adata.obs["split"] == "test"
    control = adata[(adata.obs["patient"] == PATIENT) & (adata.obs["treatment"] == "control")]
    treated, untreated = (
        fcr.counterfactual(control, treatment=t, n_draws=5, seed=seed)
        for t in (TREATMENT, "control")
    )
    mean = mean_log1p
    baselines = baseline_deltas(
        adata[~pair],
        treatment_key="treatment",
        covariate_keys=("patient",),
        control="control",
        treatment=TREATMENT,
        covariates={"patient": PATIENT},
    )
    deltas = {"fcr": mean(treated.X) - mean(untreated.X), **baselines}
    return treated, deltas, mean(adata[pair].X) - mean(control.X)


def heldout_coverage(fcr: FCR, adata: AnnData, *, seed: int) -> pd.DataFrame:
    """Measure how often 50 and 90 % intervals hold cells that training has not seen.

    Returns
    -------
    See :func:`pyro_fcr.queries.coverage.interval_coverage`; the held-out pair has rows of its own.
    """
    parts = [None, adata[adata.obs["split"] == "test"]]
    return pd.concat([interval_coverage(fcr, part, seed=seed) for part in parts], ignore_index=True)


def _scores(assessment: Assessment) -> dict[str, dict[str, float]]:
    rows = assessment.responses.query("scale == 'mean_log1p'")
    return {
        str(method): dict(zip(part["metric"], part["value"], strict=True))
        for method, part in rows.groupby("method", sort=False)
    }


def _facts(fcr: FCR, history: pd.DataFrame, *, seconds: float) -> dict[str, Any]:
    return {
        "n_cells": sum(c.n_cells for c in fcr.registry.conditions),
        "n_genes": len(fcr.registry.genes),
        "n_conditions": len(fcr.registry.conditions),
        "epochs": len(history),
        "seconds": round(seconds, 1),
        "heldout_elbo_per_cell": fcr.elbo(),
    }


def _write(
    out: Path,
    fcr: FCR,
    history: pd.DataFrame,
    tables: Mapping[str, AnnData],
    judged: tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, Assessment],
) -> None:
    metrics, deltas, real, assessment = judged
    for name, adata in tables.items():
        with atomic_write(out / f"{name}.h5ad") as path:
            adata.write_h5ad(path, compression="gzip")
    with atomic_write(out / "metrics.json") as path:
        path.write_text(json.dumps(nan_to_null(metrics), indent=2) + "\n")
    write_report(
        out / "report.html",
        title=f"{TREATMENT} in glioblastoma: {PATIENT} held out",
        metrics=metrics,
        history=history,
        cells=tables["cells"],
        responses=deltas,
        real=real,
        gene_names=list(fcr.registry.genes),
        summary=_SUMMARY,
        notes=_NOTES,
        color_by=("patient", "treatment"),
        assessment=assessment,
    )


_SUMMARY = [
    "Glioblastoma slice cultures of 5 patients, untreated or with 0.2 uM panobinostat "
    "(Zhao et al. 2021, GSE148842; 300 genes). The treated cells of one patient were kept from "
    "training altogether; a tenth of the cells of every other condition was held out.",
]
_NOTES = [
    "Responses are changes of mean log1p expression (counts scaled to 10,000 a cell) against the "
    "patient's own control cells. With one treatment and groups of equal size, the mean shift and "
    "the additive fit are the same prediction.",
    "Each arm of each patient is its own library: treatment and library cannot be told apart.",
]
