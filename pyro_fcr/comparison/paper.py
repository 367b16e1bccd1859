"""The paper's analysis of a screen: fit, clusters, independences, responses, and its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from pyro_fcr.api import FCR
from pyro_fcr.data import Schema
from pyro_fcr.data.scenarios import unseen_pairs
from pyro_fcr.evaluation import Evaluation
from pyro_fcr.metrics import hsic_table
from pyro_fcr.nn.architecture import Architecture
from pyro_fcr.queries.refitting import fit_wholly
from pyro_fcr.training import TrainingPlan

# NMI of a block's clusters with a label; the paper's other numbers are in figures only.
PUBLISHED: Final[Mapping[str, Mapping[tuple[str, str], float]]] = {
    "sciplex": {("z_x", "x"): 0.886, ("z_tx", "xt"): 0.718, ("z_t", "t"): 0.276}
}


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What was found on a screen.

    Parameters
    ----------
    fcr
        The fitted model.
    evaluation
        Clusters, conditional independences, responses of held-out pairs beside all baselines.
    hsic
        Dependence of each block on each label, see :func:`pyro_fcr.metrics.hsic_table`.
    nmi
        NMI of each block's clusters with each label, by cells and encoding, and as ``published``
        what the paper gives, where it is known.
    """

    fcr: FCR
    evaluation: Evaluation
    hsic: pd.DataFrame
    nmi: pd.DataFrame

    def to_folder(self, path: str | Path, *, title: str, overwrite: bool = False) -> Path:
        """Write model, evaluation and tables to a folder; return its path."""
        folder = Path(path)
        self.fcr.save(folder / "model", overwrite=overwrite)
        self.evaluation.to_folder(folder / "evaluation", title=title, overwrite=overwrite)
        for name in ("hsic", "nmi"):
            getattr(self, name).to_csv(folder / f"{name}.csv", index=False)
        return folder


def variable_genes(adata: AnnData, n_genes: int) -> AnnData:
    """Return the cells with the genes that vary most, by scanpy's dispersion of log1p values."""
    logs = AnnData(adata.X.copy(), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.filter_genes(logs, min_cells=3)
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    sc.pp.highly_variable_genes(logs, n_top_genes=min(n_genes, logs.n_vars))
    return adata[:, logs.var_names[logs.var["highly_variable"]]].copy()


def hold_out_pairs(adata: AnnData, schema: Schema, *, share: float, seed: int) -> np.ndarray:
    """Return ``"ood"`` for cells of some pairs, of different treatments first, else ``"train"``.

    Raises
    ------
    ValueError
        No treatment was seen in two contexts with control cells.
    """
    made = unseen_pairs(adata.obs, schema).made
    if not made:
        raise ValueError("No pair can be held out: no treatment is in two contexts with controls.")
    order = np.random.default_rng(seed).permutation(len(made))
    seen: dict[str, int] = {}
    turns = []
    for i in order:
        treatment = made[i].pairs[0].treatment
        seen[treatment] = seen.get(treatment, 0) + 1
        turns.append((seen[treatment], i))
    n_out = max(1, round(share * len(made)))
    out = np.any([made[i].test for _, i in sorted(turns, key=lambda turn: turn[0])[:n_out]], axis=0)
    return np.where(out, "ood", "train")


def reproduce(
    dataset: str,
    adata: AnnData,
    schema: Schema,
    *,
    n_genes: int = 2_000,
    share: float = 0.1,
    architecture: Architecture | None = None,
    plan: TrainingPlan | None = None,
    **settings: Any,
) -> Reproduction:
    """Fit FCR to a screen and measure what the paper measures.

    Parameters
    ----------
    dataset
        Name of the screen, for the published numbers.
    adata, schema
        Its cells and what their columns mean.
    n_genes
        Most variable genes to keep.
    share
        Share of the pairs of treatment and context whose treated cells are held out.
    architecture, plan
        Sizes and training; None takes the defaults.
    **settings
        As in :meth:`pyro_fcr.FCR.evaluate`.

    Raises
    ------
    ValueError
        No pair can be held out.
    """
    plan = plan or TrainingPlan()
    cells = variable_genes(adata, n_genes)
    cells.obs["split"] = hold_out_pairs(cells, schema, share=share, seed=plan.seed)
    schema = Schema(**(schema.to_json_dict() | {"split_key": "split"}))
    fcr = FCR(cells, schema, architecture=architecture or Architecture(), seed=plan.seed)
    fit_wholly(fcr, plan)
    found = fcr.evaluate(seed=plan.seed, **settings)
    trained = fcr.split_of().train
    own = fcr.source(None)[np.sort(trained)]
    latents = {block: fcr.get_latent_representation(block, own) for block in fcr.graph.latents}
    labels = {
        "x": own.obs[list(schema.covariate_keys)].astype(str).agg(" / ".join, axis=1).to_numpy(),
        "t": own.obs[schema.treatment_key].astype(str).to_numpy(),
    }
    hsic = hsic_table(latents, labels, seed=plan.seed)
    return Reproduction(fcr, found, hsic, _beside_published(dataset, found.clustering))


def _beside_published(dataset: str, clustering: pd.DataFrame) -> pd.DataFrame:
    """Put the paper's NMI beside those of clusters; labels are sets of sites."""
    known = {(b, frozenset(label)): v for (b, label), v in PUBLISHED.get(dataset, {}).items()}
    if clustering.empty:
        return clustering
    table = clustering[clustering["metric"] == "nmi"].drop(columns="metric")
    places = zip(table["block"], map(frozenset, table["label"]), strict=True)
    return table.assign(published=[known.get(place, np.nan) for place in places])
