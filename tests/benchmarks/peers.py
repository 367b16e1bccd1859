"""Predictions that other tools make, side by side: scGen (pertpy) and scVI, on bundled cells.

    pip install pertpy 'scvi-tools>=1.4' 'jax[cpu]' flax optax sparse numpyro
    python tests/benchmarks/peers.py OUT [--epochs 60]

The treated cells of patient PW030 are kept from both tools. Writes what they hand back, untouched:
scgen.h5ad (control cells with the control's label) and scvi.h5ad (control cells decoded as treated
and as control). Then prints what `pyro_fcr.evaluation.evaluate_predictions` finds.
"""

import argparse
import logging
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

import pyro_fcr
from pyro_fcr.evaluation import Predicted, evaluate_predictions

PATIENT, CONTROL, DRUG = "PW030", "control", "panobinostat"
SCHEMA = pyro_fcr.Schema(
    treatment_key="treatment", control=CONTROL, covariate_keys="patient", split_key="split"
)


def cells(step=1):
    """Return counts in X and log1p values in a layer, and which cells tools may see."""
    adata = pyro_fcr.datasets.gbm_panobinostat()[::step].copy()
    out = (adata.obs["patient"] == PATIENT) & (adata.obs["treatment"] == DRUG)
    adata.obs["split"] = np.where(out, "ood", "train")
    adata.layers["log1p"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4, layer="log1p")
    sc.pp.log1p(adata, layer="log1p")
    return adata


def scgen(adata, epochs):
    """Return pertpy's scGen prediction as it hands it back."""
    import pertpy  # noqa: PLC0415

    log = adata[adata.obs["split"] == "train"].copy()
    log.X = log.layers["log1p"].toarray()
    pertpy.tools.Scgen.setup_anndata(log, batch_key="treatment", labels_key="patient")
    model = pertpy.tools.Scgen(log)
    model.train(max_epochs=epochs, batch_size=128)
    asked = log[(log.obs["patient"] == PATIENT) & (log.obs["treatment"] == CONTROL)].copy()
    return model.predict(ctrl_key=CONTROL, stim_key=DRUG, adata_to_predict=asked)[0]


def scvi(adata, epochs):
    """Return control cells as scVI decodes them under the drug, and under none; to 10,000."""
    from scvi.model import SCVI  # noqa: PLC0415

    train = adata[adata.obs["split"] == "train"].copy()
    SCVI.setup_anndata(train, batch_key="treatment", categorical_covariate_keys=["patient"])
    model = SCVI(train, n_latent=10)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False)
    rows = (train.obs["patient"] == PATIENT) & (train.obs["treatment"] == CONTROL)
    parts = []
    for label in (DRUG, CONTROL):
        values = model.get_normalized_expression(
            indices=np.flatnonzero(rows), transform_batch=label, library_size=1e4
        )
        part = ad.AnnData(values.to_numpy(), obs=train.obs[rows].copy(), var=train.var.copy())
        part.obs["treatment"] = label
        parts.append(part)
    return ad.concat(parts, index_unique="-", keys=[DRUG, CONTROL])


def predictions(folder):
    return {
        "scgen": Predicted(source=folder / "scgen.h5ad", expression="log1p", treatment=DRUG),
        "scvi": Predicted(source=folder / "scvi.h5ad", expression="counts"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--step", type=int, default=1, help="take each n-th cell")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    adata = cells(given.step)
    warnings.simplefilter("ignore")
    logging.disable()
    for tool in (scgen, scvi):
        path = given.out / f"{tool.__name__}.h5ad"
        if not path.exists():
            tool(adata, given.epochs).write_h5ad(path, compression="gzip")
    found = evaluate_predictions(adata, SCHEMA, predictions(given.out))
    print(found)
    columns = ["scale", "metric", "method", "baseline", "gain", "low", "high"]
    print(found.headline.query("against == 'best on average'")[columns].round(3).to_string())


if __name__ == "__main__":
    main()
