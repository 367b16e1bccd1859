"""Small AnnData objects that the tests of the data layer share."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyro_fcr.data import Schema

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_adata(*, treatments=("control", "A", "B", "A+B"), lines=("u", "v"), n_each=6, n_genes=5):
    """Poisson counts, `n_each` cells in each treatment x line, in random order."""
    rng = np.random.default_rng(0)
    pairs = [(t, line) for t in treatments for line in lines for _ in range(n_each)]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    obs = pd.DataFrame(pairs, columns=["drug", "line"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = rng.poisson(2.0, size=(len(obs), n_genes)).astype(np.float32)
    counts[:, 0] += 1
    counts[0] = np.arange(1, n_genes + 1)
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(counts, obs=obs, var=var)


def make_schema(**changes):
    settings = {
        "treatment_key": "drug",
        "control": "control",
        "covariate_keys": ("line",),
        "min_cells": 2,
    }
    return Schema(**{**settings, **changes})


def real_file(name):
    """Path of a real data set next to the checkout, or skip."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"real data {name} is not next to the checkout")
    return path


def write(adata, path):
    """Write `.h5ad` or `.zarr`, with the text columns of pandas 3 too."""
    with ad.settings.override(allow_write_nullable_strings=True):
        (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    return path


def only(caught, text):
    """Return the single warning that has `text`; other packages may add their own."""
    ours = [each for each in caught if text in str(each.message)]
    assert len(ours) == 1
    return ours[0]


def assert_batches_equal(one, other):
    for kind in ("values", "codes"):
        left, right = getattr(one, kind), getattr(other, kind)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name].numpy(), right[name].numpy(), err_msg=name)
    assert one.n_levels == other.n_levels
    assert one.n_total == other.n_total
