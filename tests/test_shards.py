"""Questions about cells in parts: the draws of one run, read back as one."""

import re
from functools import partial
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import run, succeed
from conftest import SCHEMA, simulate
from data_helpers import write
from scipy import sparse

from pyro_fcr import AVERAGE, FCR, Architecture, Output, QueryError, api, draws
from pyro_fcr.data.stored import StoredMatrix
from pyro_fcr.draws import responder
from pyro_fcr.queries import answers, ask, join_shards
from pyro_fcr.seals import DamagedError

N_CELLS, N_GENES = 333, 12
ASK = {"treatment": "drug1", "n_draws": 2, "seed": 3}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    adata = simulate(N_CELLS, N_GENES)
    adata.X = sparse.csr_matrix(adata.X)
    return write(adata, tmp_path_factory.mktemp("shards") / "cells.h5ad")


@pytest.fixture(scope="module")
def fcr(cells):
    torch.manual_seed(0)
    sizes = Architecture(n_x=3, n_t=2, n_tx=2, n_hidden=16)
    return FCR(cells, SCHEMA, architecture=sizes, memory=1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(responder, "_VALUES_PER_BLOCK", 64 * N_GENES)
    monkeypatch.setattr(answers, "_VALUES_PER_PIECE", 1000)


def dense(values):
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def same(one, other):
    one, other = (each.to_memory() if each.isbacked else each for each in (one, other))
    layers = [name for name in one.layers if name is not None]
    assert layers == [name for name in other.layers if name is not None]
    np.testing.assert_array_equal(dense(one.X[:]), dense(other.X[:]))
    for name in layers:
        np.testing.assert_array_equal(dense(one.layers[name][:]), dense(other.layers[name][:]))
    pd.testing.assert_frame_equal(one.obs, other.obs, check_categorical=False)
    assert one.uns["pyro_fcr"].keys() == other.uns["pyro_fcr"].keys()


def shards(question, n, **output):
    return [question(output=Output(**output, shard=f"{i}/{n}")) for i in range(1, n + 1)]


@pytest.mark.parametrize(
    ("of", "form", "n_shards"),
    [
        ("own", "draws", 3),  # whole blocks of 64
        ("path", "summary", 3),
        ("path", "draws", 7),  # parts of blocks
        ("new", "draws", 1),
        ("new", "mean", 9),
    ],
)
def test_shards_are_the_whole(fcr, cells, of, form, n_shards):
    def question(output):
        if of == "new":
            return fcr.predict("drug1", covariates={"line": AVERAGE}, n_cells=200, output=output)
        return fcr.counterfactual(None if of == "own" else cells, **ASK, output=output)

    same(join_shards(shards(question, n_shards, form=form)[::-1]), question(form))


def test_every_question_about_cells_has_shards(fcr):
    library = np.linspace(10, 90, N_CELLS)
    for question, more in [
        (fcr.posterior_predictive, {"library": library}),
        (fcr.unit_counterfactual, {"treatment": "drug2"}),
        (fcr.counterfactual, {"treatment": "drug2", "library": "target"}),
    ]:
        parts = shards(partial(question, **more), 3)
        same(join_shards(parts), question(**more))


def test_draws_do_not_change_with_the_chunks(fcr, monkeypatch):
    expected, data = fcr.counterfactual(**ASK), fcr.to_arviz(n_draws=3)
    monkeypatch.setattr(api, "_CHUNK", 50)  # no multiple of a block
    same(fcr.counterfactual(**ASK), expected)
    for group in ("posterior", "posterior_predictive"):
        one, other = data[group], fcr.to_arviz(n_draws=3)[group]
        for name in one.data_vars:
            np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_a_shard_reads_its_own_cells_alone(fcr, cells, monkeypatch):
    read = []
    inner = StoredMatrix._read

    def watched(self, runs):
        read.extend((self._first + first, self._first + last) for first, last in runs)
        return inner(self, runs)

    monkeypatch.setattr(StoredMatrix, "_read", watched)
    fcr.counterfactual(cells, **ASK, output=Output(shard="2/5"))
    assert min(first for first, _ in read) == 64
    assert max(last for _, last in read) == 128


def test_stored_shards_are_joined_part_by_part(fcr, tmp_path):
    expected = fcr.counterfactual(**ASK, output="mean")
    paths = [tmp_path / f"part{i}{end}" for i, end in enumerate([".zarr", ".h5ad", ".zarr"])]
    for number, path in enumerate(paths, 1):
        fcr.counterfactual(**ASK, output=Output("mean", store=path, shard=f"{number}/3"))
    same(join_shards(paths), expected)
    joined = join_shards(paths, store=tmp_path / "all.zarr")
    assert not isinstance(joined.X, np.ndarray)
    same(joined.to_memory(), expected)
    with pytest.raises(FileExistsError, match="is there already"):
        join_shards(paths, store=tmp_path / "all.zarr")
    next(paths[0].rglob("X/0*")).write_bytes(b"0")
    with pytest.raises(DamagedError, match="part0"):
        join_shards(paths)


def test_shards_that_are_not_those_of_one_answer_are_refused(fcr, tmp_path):
    one, two, three = shards(lambda output: fcr.counterfactual(**ASK, output=output), 3)
    answer = {**ASK, "output": Output(shard="2/3")}
    few = fcr.source(None)[:300].to_memory()
    weights = fcr.model.state_dict()
    for wrong, message in [
        ([one, three], r"shard 2/3 is missing; shard 1 of those given is one of 3"),
        ([three], r"shard 1/3, 2/3 is missing"),
        ([one, two, two, three], "shard 3 .* and shard 2 .* are both shard 2/3: give each once"),
        ([one, fcr.counterfactual(**{**answer, "seed": 4}), three], "part of another question"),
        ([one, fcr.counterfactual(few, **answer), three], "part of another question"),
        ([one, fcr.counterfactual(**{**answer, "library": 9.0}), three], "another question"),
        ([one, fcr.counterfactual(**ASK, output=Output(shard="2/4")), three], "in 4 shards, not 3"),
        ([one, fcr.counterfactual(**ASK), three], "shard 2 of those given is not a shard"),
        ([], "no shards are given"),
    ]:
        with pytest.raises(QueryError, match=message) as caught:
            join_shards(wrong)
        assert "\n" not in str(caught.value)
    try:
        fcr.model.load_state_dict({name: value + 0.1 for name, value in weights.items()})
        other = fcr.counterfactual(**answer)
    finally:
        fcr.model.load_state_dict(weights)
    with pytest.raises(QueryError, match="another question"):
        join_shards([one, other, three])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        join_shards([tmp_path / "nowhere.zarr"])


@pytest.mark.parametrize("shard", ["2", "0/8", "9/8", "1/0", "two", 2, (2, 8), "-1/8", "1/8/2"])
def test_a_shard_that_there_is_not_is_refused(shard):
    with pytest.raises(QueryError, match=r"^shard is .*expected '1/8' to '8/8'"):
        Output(shard=shard)


def test_more_shards_than_cells_are_refused(fcr):
    with pytest.raises(QueryError, match=r"'2/8', but there are 5 cells: ask for fewer"):
        fcr.predict("drug1", covariates={"line": "line0"}, n_cells=5, output=Output(shard="2/8"))


def test_blocks_are_cut_and_joined_at_multiples():
    whole = draws.new_cells({}, torch.arange(100.0)[:, None], n_genes=2)
    edges = [7, 10, 33, 40, 97]
    chunks = [(whole.take(slice(a, b)), slice(a, b)) for a, b in pairwise(edges)]
    found = list(draws.blocks_of(chunks, 10))
    assert [at.stop for _, at in found] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 97]
    for block, at in found:
        assert torch.equal(block["library"], whole["library"][at])


def test_a_stored_answer_says_its_size_before_and_cells_per_second(
    fcr, tmp_path, caplog, monkeypatch, capsys
):
    output = Output(store=tmp_path / "answer.zarr", shard="1/3")
    monkeypatch.setattr(ask, "shows_progress", lambda: True)
    with caplog.at_level("INFO", logger="pyro_fcr"):
        fcr.counterfactual(**ASK, output=output)
    assert "64 cells x 12 genes, 2 times each, are drawn into" in caplog.text
    assert re.search(r"100%.*64\.0/64\.0 .*cell/s", capsys.readouterr().err)


def test_the_command_line_writes_and_joins_shards(fcr, cells, tmp_path):
    fcr.save(tmp_path / "model")
    ask = [tmp_path / "model", "--cells", cells, "--treatment", "drug1", "--seed", 5]
    names = ["whole.zarr", "one.zarr", "two.h5ad", "joined.zarr"]
    whole, one, two, joined = (tmp_path / name for name in names)
    succeed("predict", *ask, "--out", whole)
    for out, shard in [(one, "1/2"), (two, "2/2")]:
        succeed("predict", *ask, "--out", out, "--shard", shard)
    wrong = run("join", one, "--out", joined)
    assert wrong.exit_code == 1
    assert "shard 2/2 is missing" in wrong.output
    assert not joined.exists()
    succeed("join", two, one, "--out", joined)
    assert "is what pyro-fcr wrote" in succeed("inspect", joined)
    same(ad.read_zarr(joined), ad.read_zarr(whole))
