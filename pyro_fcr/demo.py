"""The main job from end to end on bundled real cells: train, look, predict, judge, report."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.api import FCR
from pyro_fcr.data import Schema, datasets
from pyro_fcr.data.hdf5 import write_h5ad
from pyro_fcr.evaluation import Evaluation, evaluate
from pyro_fcr.metrics import nan_to_null, umap
from pyro_fcr.queries.refitting import fit_wholly
from pyro_fcr.seals import check_replaceable, sealed

logger = logging.getLogger(__name__)

TREATMENT = "panobinostat"
PATIENT = "PW034"
SCHEMA = Schema(
    treatment_key="treatment", control="control", covariate_keys=("patient",), split_key="split"
)


def run_demo(
    out: str | Path, *, max_epochs: int | None = 150, seed: int = 0, progress: bool | None = None
) -> dict[str, Any]:
    """Train on the glioblastoma cells with one pair held out, and write all results.

    Parameters
    ----------
    out
        Folder for ``metrics.json``, ``report.html``, ``cells.h5ad`` (latents and UMAPs),
        ``predicted.h5ad`` (the held-out pair as predicted) and ``model/``; made where missing.
    max_epochs
        Passes over the training cells.
    seed
        Seed of everything random.
    progress
        Whether to show a progress bar; None shows it in terminals and notebooks.

    Returns
    -------
    The contents of ``metrics.json``.

    Raises
    ------
    FileExistsError
        ``out`` holds one of these already.
    """
    out = Path(out)
    for name in ("model", "report.html", "metrics.json", "cells.h5ad", "predicted.h5ad"):
        check_replaceable(out / name, overwrite=False)
    start = time.perf_counter()
    adata = hold_out(datasets.gbm_panobinostat())
    logger.info("Cells: %d x %d genes; (%s, %s) is held out.", *adata.shape, PATIENT, TREATMENT)
    fcr = FCR(adata, SCHEMA, seed=seed)
    logger.info("Training: %r", fcr)
    history = fit_wholly(fcr, max_epochs=max_epochs, seed=seed, progress=progress)
    logger.info("Training ended after %d epochs: %s.", len(history), history.attrs["stopped"])
    fcr.save(out / "model")
    cells = latent_cells(fcr, adata, seed=seed)
    control = adata[(adata.obs["patient"] == PATIENT) & (adata.obs["treatment"] == "control")]
    predicted = fcr.counterfactual(control, treatment=TREATMENT, n_draws=5, seed=seed)
    logger.info("Latents, UMAPs and the held-out pair are made; judging.")
    found = evaluate(fcr, seed=seed)
    metrics = summary(found, seconds=time.perf_counter() - start)
    _write(out, {"cells": cells, "predicted": predicted}, metrics)
    found.to_html(
        out / "report.html",
        title=f"{TREATMENT} in glioblastoma: {PATIENT} held out",
        summary=_SUMMARY,
        notes=_NOTES,
        history=history,
        cells=cells,
        color_by=("patient", "treatment"),
    )
    logger.info("Written to %s: report.html, metrics.json, cells.h5ad, predicted.h5ad, model/", out)
    return metrics


def hold_out(adata: AnnData) -> AnnData:
    """Label the held-out pair ``"test"`` in a new column ``split``, all other cells ``"train"``."""
    pair = (adata.obs["patient"] == PATIENT) & (adata.obs["treatment"] == TREATMENT)
    adata.obs["split"] = pd.Categorical(np.where(pair, "test", "train"))
    return adata


def latent_cells(fcr: FCR, adata: AnnData, *, seed: int) -> AnnData:
    """Copy the cells, with each block, encoded without labels, and its UMAP in ``obsm``."""
    cells = adata.copy()
    fcr.add_latents_to(cells, only_in_use=True)
    for block in fcr.graph.latents:
        cells.obsm[f"X_fcr_{block}_umap"] = umap(cells.obsm[f"X_fcr_{block}"], seed=seed)
    if fcr.split is not None:
        fitted = np.full(len(cells), "left out", dtype=object)
        fitted[fcr.split.train], fitted[fcr.split.heldout] = "train", "held out"
        cells.obs["fitted"] = fitted
    return cells


def summary(found: Evaluation, *, seconds: float) -> dict[str, Any]:
    """Pick the numbers of ``metrics.json`` from an evaluation."""
    clusters = found.clustering.query(
        "cells == 'held out' and encoding == 'labelled' and metric == 'nmi'"
    )
    scores = found.responses.query("scale == 'mean_log1p'")
    return {
        **found.facts,
        "seconds": round(seconds, 1),
        "nmi": _nested(clusters, "block", "label"),
        "heldout_pair": {"patient": PATIENT, "treatment": TREATMENT},
        "response": _nested(scores, "method", "metric"),
        "coverage": found.coverage.to_dict("records"),
    }


def _nested(table: pd.DataFrame, outer: str, inner: str) -> dict[str, dict[str, float]]:
    return {
        str(name): dict(zip(rows[inner], rows["value"], strict=True))
        for name, rows in table.groupby(outer, sort=False)
    }


def _write(out: Path, cells: dict[str, AnnData], metrics: dict[str, Any]) -> None:
    for name, adata in cells.items():
        with sealed(out / f"{name}.h5ad", overwrite=False) as path:
            write_h5ad(adata, path)
    with sealed(out / "metrics.json", overwrite=False) as path:
        path.write_text(json.dumps(nan_to_null(metrics), indent=2) + "\n")


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
