"""A response that biology knows: shared by all blood cells, but for what monocytes do."""

import importlib.util
from pathlib import Path

import pytest
from data_helpers import real_file


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parent / "benchmarks" / "interferon.py"
    spec = importlib.util.spec_from_file_location("interferon", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def analysed(program):
    return program.analyse(real_file("kang_ifnb_small.h5ad"), max_epochs=40)


def test_monocytes_and_dendritic_cells_come_first(analysed):
    _, found = analysed
    assert set(found.pairs["context"].iloc[:3]) == {
        "CD14+ Monocytes", "FCGR3A+ Monocytes", "Dendritic cells"
    }  # fmt: skip
    assert (found.pairs["qvalue"].iloc[:3] < 1e-6).all()


def test_their_chemokines_are_among_what_drives_it(analysed):
    _, found = analysed
    genes = found.drivers("IFNb", "CD14+ Monocytes").set_index("gene")
    for gene in ("CCL8", "CXCL11"):
        assert genes.loc[gene, "qvalue"] <= 0.1, gene
        assert genes.loc[gene, "estimate"] > 0.3, gene


def test_the_shared_response_goes_through_z_t(program, analysed):
    effects, _ = analysed
    mean = program.shares(effects)
    shared, particular = mean.loc[program.SHARED], mean.loc[program.PARTICULAR]
    assert (shared["total"] > 1.0).all()
    assert (shared["z_t"] > 0.8 * shared["total"]).all()
    assert (shared["z_tx"].abs() < 0.2 * shared["total"]).all()
    assert particular["z_tx_spread"].min() > 1.5 * shared["z_tx_spread"].median()
