import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread per worker, before torch and numba are imported: numba raises torch's number of
    # threads as well, and two workers with two threads each wait for one another.
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    if "numba" in sys.modules:  # a plugin of pytest was earlier
        sys.modules["numba"].config.reload_config()

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_fcr.batch import Batch
from pyro_fcr.data import Schema, register, split_cells
from pyro_fcr.modes import set_seed
from pyro_fcr.nn.architecture import Architecture


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where models are trained: cpu or cuda")


def pytest_configure(config):
    if config.getoption("--device") == "cpu":  # "auto" is what it is in CI, with or without a card
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """On a card only those tests run that ask for the device; the others compare bits of a CPU."""
    name = config.getoption("--device")
    if name == "cpu":
        return
    asking = [item for item in items if "device" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    items[:] = asking
    if not torch.cuda.is_available():
        word = pytest.mark.skip(reason=f"--device {name}, but torch sees no CUDA here")
        for item in items:
            item.add_marker(word)


@pytest.fixture(scope="session")
def device(request):
    """Where to train and to ask; bits of one device are not compared with another's."""
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _same_noise_and_empty_param_store():
    set_seed(0)
    pyro.clear_param_store()


def simulate(n_cells=1200, n_genes=40, *, n_x=3, n_t=2, interaction=1.0, seed=0):
    """Counts whose log rates have a context, a treatment and an interaction effect."""
    rng = np.random.default_rng(seed)
    x, t = rng.integers(n_x, size=n_cells), rng.integers(n_t + 1, size=n_cells)
    effect_t = rng.normal(size=(n_t + 1, n_genes))
    effect_tx = interaction * rng.normal(size=(n_x, n_t + 1, n_genes))
    effect_t[0] = effect_tx[:, 0] = 0.0
    log_rate = rng.normal(size=(n_x, n_genes))[x] + effect_t[t] + effect_tx[x, t]
    log_rate += rng.normal(size=(n_cells, 2)) @ rng.normal(scale=0.3, size=(2, n_genes))
    rate = np.exp(log_rate)
    library = rng.lognormal(np.log(400), 0.3, size=(n_cells, 1))
    counts = rng.poisson(library * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "line": [f"line{i}" for i in x],
            "drug": ["control" if i == 0 else f"drug{i}" for i in t],
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    counts[:, 0] += 1.0  # no cell without counts
    return ad.AnnData(counts, obs=obs, var=var)


SCHEMA = Schema(treatment_key="drug", control="control", covariate_keys="line")


@pytest.fixture(scope="session")
def adata():
    return simulate()


@pytest.fixture(scope="session")
def schema():
    return SCHEMA


@pytest.fixture(scope="module")
def cells(adata):
    return register(adata, SCHEMA)[1]


@pytest.fixture(scope="module")
def split(adata):
    return split_cells(adata.obs, SCHEMA, heldout_fraction=0.2)


NO_PENALTIES = {"structure": 0.0, "permutation": 0.0}
"""Weights of a training whose latents' independence is not looked at: half the work of a step."""


def make_batch(n=24, *, n_genes=10, n_x=3, n_t=2, device="cpu"):
    """A small batch in which every condition occurs; code 0 of t is the control."""
    x, t = torch.arange(n) % n_x, (torch.arange(n) // n_x) % (n_t + 1)
    y = torch.poisson(torch.full((n, n_genes), 3.0)) + 1.0
    one_hot_t = torch.eye(n_t + 1)[t][:, 1:]
    values = {"y": y, "x": torch.eye(n_x)[x], "t": one_hot_t, "library": y.sum(1, keepdim=True)}
    return Batch(values, {"x": x, "t": t}, {"x": n_x, "t": n_t + 1}, n_total=n).to(device)


@pytest.fixture
def batch(device):
    return make_batch(device=device)


def make_programs(batch, **sizes):
    sizes = {"n_x": 2, "n_t": 2, "n_tx": 2, "n_hidden": 16, **sizes}
    widths = {name: batch[name].shape[-1] for name in ("y", "x", "t")}
    target_sum = None if sizes.get("likelihood") == "normal" else 30.0
    model, guide = Architecture(**sizes).build(widths, target_sum=target_sum)
    device = batch["library"].device
    return model.to(device), guide.to(device)


@pytest.fixture
def programs(batch):
    return make_programs(batch)
