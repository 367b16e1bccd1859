"""Interferon in seven blood cell types: what is shared, and what is particular to monocytes.

    python tests/benchmarks/interferon.py kang_ifnb_small.h5ad --figure notebooks/interferon.svg

Kang et al. 2018 (GEO GSE96583): PBMC with and without interferon beta. The response of ISG15,
IFIT1, IFIT3, ISG20 and MX1 is known to be shared by all cell types, that of CCL8, CXCL10 and CXCL11
to be stronger in monocytes and dendritic cells. Prints one JSON line: the ranking of the cell types
by interaction, the genes that drive it, and how much of each gene's response goes through z_t.
"""

import argparse
import json

import anndata as ad

import pyro_fcr
from pyro_fcr import plots

SCHEMA = pyro_fcr.Schema(treatment_key="treatment", control="control", covariate_keys="cell_type")
SHARED = ["ISG15", "IFIT1", "IFIT3", "ISG20", "MX1"]
PARTICULAR = ["CXCL10", "CXCL11", "CCL8"]


def analyse(path, *, max_epochs=100):
    """Fit once on all cells for the paths, and on halves for the claims.

    The effects of an additive decoder's blocks add up to the total, also after a short training.
    """
    additive = pyro_fcr.Architecture(decoder="additive", dropout=0.0)
    fcr = pyro_fcr.FCR(ad.read_h5ad(path), SCHEMA, architecture=additive)
    fcr.fit(max_epochs=max_epochs, progress=False)
    found = pyro_fcr.rank_interactions(pyro_fcr.cross_fit(fcr, max_epochs=max_epochs))
    return pyro_fcr.effects(fcr), found


def shares(effects):
    """Response of each gene, averaged over cell types: whole, through z_t, and spread of z_tx."""
    table = effects.to_frame(SHARED + PARTICULAR)
    mean = table.pivot_table(index="gene", columns="effect", values="estimate", sort=False)
    spread = table[table["effect"] == "z_tx"].groupby("gene", sort=False)["estimate"]
    return mean[["total", "z_t", "z_tx"]].assign(z_tx_spread=spread.max() - spread.min())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", help="kang_ifnb_small.h5ad")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--figure", help="where to draw the paths")
    options = parser.parse_args()
    effects, found = analyse(options.cells, max_epochs=options.epochs)
    if options.figure:
        table = effects.to_frame(SHARED + PARTICULAR)
        axes = plots.effect_paths(table, genes=SHARED[:4] + PARTICULAR, treatment="IFNb")
        axes.flat[0].figure.savefig(options.figure)
    genes = found.genes[found.genes["gene"].isin(SHARED + PARTICULAR)]
    columns = ["context", "gene", "estimate", "observed", "pvalue", "qvalue"]
    claims = genes.loc[genes["qvalue"] <= found.level, columns]
    report = {
        "ranking": found.pairs[["context", "strength", "z", "pvalue", "qvalue"]],
        "claims": claims,
        "paths": shares(effects).reset_index(),
    }
    print(json.dumps({k: json.loads(v.to_json(orient="records")) for k, v in report.items()}))


if __name__ == "__main__":
    main()
