"""Peak memory of a summarised counterfactual that is written to a file, above model and data.

    python tests/benchmarks/response_memory.py --cells 100000 --genes 2000 --draws 100

prints one line of JSON. The model is not trained: its sizes are what counts.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import pyro_fcr
from pyro_fcr.queries.answers import Output

_CONTEXTS, _TREATMENTS = 5, 4


def main():
    arguments = parse()
    fcr = build(arguments)
    forget_peak()
    before = memory("VmRSS")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        output = Output(
            "summary",
            uncertainty=arguments.uncertainty,
            store=Path(folder) / f"answer.{arguments.format}",
            memory=arguments.memory * 2**20,
        )
        start = time.perf_counter()
        answer = fcr.counterfactual(treatment="drug1", n_draws=arguments.draws, output=output)
        seconds, peak = time.perf_counter() - start, memory("VmHWM")
        on_disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    numbers = {
        **vars(arguments),
        "layers": sorted(answer.layers),
        "state_mib": before,
        "peak_above_state_mib": peak - before,
        "answer_mib": round(on_disk / 2**20),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(numbers))


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--memory", type=int, default=1024, help="MiB for the draws at work")
    parser.add_argument("--format", choices=("zarr", "h5ad"), default="zarr")
    parser.add_argument("--uncertainty", choices=("latent", "observation"), default="latent")
    parser.add_argument("--folder", default=None, help="where the answer is written for a while")
    return parser.parse_args()


def build(arguments):
    """Counts of which 12 % are not zero, and a model of the usual sizes."""
    rng = np.random.default_rng(0)
    counts = sparse.random(
        arguments.cells, arguments.genes, density=0.12, format="csr", dtype=np.float32, rng=rng
    )
    counts.data = rng.poisson(1.0, counts.nnz).astype(np.float32) + 1.0
    x = rng.integers(_CONTEXTS, size=arguments.cells)
    t = rng.integers(_TREATMENTS, size=arguments.cells)
    obs = pd.DataFrame(
        {
            "line": np.char.add("line", x.astype(str)),
            "drug": np.where(t == 0, "control", np.char.add("drug", t.astype(str))),
        },
        index=np.char.add("cell", np.arange(arguments.cells).astype(str)),
    )
    schema = pyro_fcr.Schema(treatment_key="drug", control="control", covariate_keys="line")
    return pyro_fcr.FCR(ad.AnnData(counts, obs=obs), schema)


def memory(field):
    """Read ``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 2**10 for line in lines if line.startswith(field))


def forget_peak():
    """Let the peak of resident memory start again from here."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
