"""Results carry a seal: flipped bits are told, and only results are ever replaced."""

import random
import shutil
import subprocess

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from cli_helpers import run, succeed
from test_files import killed_at

from pyro_fcr import Output
from pyro_fcr.cli import shell
from pyro_fcr.data import read_cells
from pyro_fcr.queries.answers import assemble
from pyro_fcr.report import Page
from pyro_fcr.seals import FOLDER_SEAL, DamagedError, check_replaceable, check_seal, sealed

TABLE = pd.DataFrame({"gene": ["a", "b"], "effect": [1.0, 2.0]})


def cells():
    obs = pd.DataFrame({"drug": ["A", "B", "B"]}, index=list("abc"))
    return ad.AnnData(np.arange(6.0).reshape(3, 2), obs=obs)


def parts():
    return ({"X": np.full((1, 2), float(i)), "sd": np.ones((1, 2))} for i in range(3))


def frame():
    return ad.AnnData(obs=cells().obs, var=cells().var)


def figure(path):
    history = path.with_name("history.csv")
    pd.DataFrame({"train/loss": [2.0, 1.0], "train/elbo": [2.0, 1.0]}).rename_axis("epoch").to_csv(
        history
    )
    succeed("plot", "loss", history, "--out", path)


def page(path):
    with sealed(path) as draft:
        draft.write_text("<html></html>")


KINDS = {
    "cells.h5ad": lambda path: shell.write_adata(cells(), path),
    "store.h5ad": lambda path: assemble(frame(), parts(), store=path),
    "store.zarr": lambda path: assemble(frame(), parts(), store=path),
    "table.csv": lambda path: shell.write_table(TABLE, path),
    "tables": lambda path: shell.write_tables({"a.csv": TABLE, "b.csv": TABLE}, path),
    "page.html": page,
}


def contents(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return {each: each.read_bytes() for each in files if each.is_file()}


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_is_told_and_the_result_then_not_replaced(tmp_path, name):
    path = tmp_path / name
    KINDS[name](path)
    assert check_seal(path)
    rng, whole = random.Random(0), contents(path)
    for _ in range(40):
        file = rng.choice(sorted(whole))
        broken = bytearray(whole[file])
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        with pytest.raises(DamagedError, match=f"{name}.* is damaged, or was changed") as told:
            check_seal(path)
        assert "\n" not in str(told.value)
        with pytest.raises(FileExistsError, match="was changed since pyro-fcr wrote it"):
            check_replaceable(path)
        file.write_bytes(whole[file])
    assert check_replaceable(path) == path


def test_damage_is_told_where_results_are_read(tmp_path):
    for name in ("cells.h5ad", "store.zarr", "table.csv"):
        KINDS[name](tmp_path / name)
        file = max(contents(tmp_path / name), key=lambda each: each.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    for name in ("cells.h5ad", "store.zarr"):
        with pytest.raises(DamagedError, match=name):
            read_cells(tmp_path / name)
    told = run("plot", "effects", tmp_path / "table.csv", "--out", tmp_path / "f.png")
    assert told.exit_code == 1
    assert "table.csv is damaged, or was changed since pyro-fcr wrote it" in told.output
    told = run("inspect", tmp_path / "store.zarr")
    assert told.exit_code == 1
    assert "store.zarr" in told.output


def test_whole_results_are_read_by_everyone(tmp_path):
    for name, write in KINDS.items():
        write(tmp_path / name)
        assert "is what pyro-fcr wrote" in succeed("inspect", tmp_path / name)
    for name, read in (("store.h5ad", ad.read_h5ad), ("store.zarr", ad.read_zarr)):
        np.testing.assert_array_equal(read(tmp_path / name).X[:, 0], [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(read_cells(tmp_path / name).X[:, 0], [0.0, 1.0, 2.0])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), TABLE)
    for folder, seal in ((tmp_path, "table.csv.sha256"), (tmp_path / "tables", FOLDER_SEAL)):
        subprocess.run(["sha256sum", "--strict", "-c", seal], cwd=folder, check=True)
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X"][0, 0] = 9.0
    assert not check_seal(tmp_path / "cells.h5ad")  # changed by other means: no result any more
    assert read_cells(tmp_path / "cells.h5ad").X[0, 0] == 9.0


FOREIGN = {
    "mine.csv": lambda path: path.write_text("a,b\n1,2\n"),
    "mine.h5ad": lambda path: cells().write_h5ad(path),
    "mine.png": lambda path: path.write_bytes(b"\x89PNG"),
    "short.svg": lambda path: path.write_text(""),
    "page.html": lambda path: path.write_text("<html>" + "mine" * 99),
    "mine.json": lambda path: path.write_text("{}"),
    "folder": lambda path: (path.mkdir(), (path / "a.csv").write_text("mine")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_others_wrote_is_never_replaced(tmp_path, name):
    path = tmp_path / name
    FOREIGN[name](path)
    before = contents(path)
    with (
        pytest.raises(FileExistsError, match=f"{name} has no seal of pyro-fcr.*choose another"),
        sealed(path),
    ):
        raise AssertionError("it was asked to write")
    assert contents(path) == before
    assert {each.name for each in tmp_path.iterdir()} == {name}


def test_commands_replace_results_and_nothing_else(tmp_path):
    small = ["--cells", 60, "--genes", 9, "--contexts", 2, "--treatments", 2]
    out = tmp_path / "s.h5ad"
    succeed("simulate", *small, "--out", out)
    succeed("simulate", *small, "--out", out, "--seed", 1, "--overwrite")
    cells().write_h5ad(tmp_path / "mine.h5ad")
    figure(tmp_path / "f.png")
    shutil.copy(tmp_path / "history.csv", tmp_path / "mine.svg")
    for arguments, name in (
        (["simulate", *small], "mine.h5ad"),
        (["plot", "loss", tmp_path / "history.csv"], "mine.svg"),
        (["evaluate", tmp_path, out], "history.csv"),
        (["interactions", out, "--treatment-key", "treatment", "--control", "control",
          "--covariate-key", "context"], ""),
    ):  # fmt: skip
        before = contents(tmp_path / name)
        told = run(*arguments, "--out", tmp_path / name, "--overwrite")
        assert told.exit_code == 1
        assert "has no seal of pyro-fcr, so it is not replaced" in told.output
        assert len(told.output.strip().splitlines()) == 1
        assert contents(tmp_path / name) == before


def test_pages_and_answers_of_python_replace_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "mine.html").write_text("mine")
    monkeypatch.setattr(Page, "render", lambda _: "ours")
    with pytest.raises(FileExistsError, match=r"mine\.html has no seal"):
        Page(title="t", tables={}, facts={}).write(tmp_path / "mine.html")
    (tmp_path / "t.csv.sha256").write_text("mine")
    with pytest.raises(FileExistsError, match=r"t\.csv would have its sha256 in .*t\.csv\.sha256"):
        check_replaceable(tmp_path / "t.csv")
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        Output(store=tmp_path / "mine.zarr").check_free()


@pytest.mark.parametrize("name", ["table.csv", "tables"])
def test_killed_at_any_moment_a_result_is_the_old_or_the_new_one(tmp_path, name):
    path, seen = tmp_path / name, set()

    def write(number):
        table = TABLE * number
        if name == "tables":
            shell.write_tables({"a.csv": table, "b.csv": table}, path, overwrite=True)
        else:
            shell.write_table(table, path, overwrite=True)

    def number():
        files = path.glob("*.csv") if path.is_dir() else [path]
        (found,) = {pd.read_csv(each)["effect"][0] for each in files}
        return found

    write(1)
    if name == "tables":
        (path / "notes.txt").write_text("mine")
    for event in range(1, 60):
        write(1)
        ended = killed_at(event, lambda: write(2))
        assert check_seal(path)
        seen.add(number())
        if ended:
            break
    assert ended
    assert seen == {1.0, 2.0}
    write(3)
    assert not list(tmp_path.rglob(".*")), "leftovers"
    if name == "tables":
        assert (path / "notes.txt").read_text() == "mine"
