"""Models, checkpoints and results on disk: whole or not there, checked, and nobody else's."""

import gc
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import run
from conftest import SCHEMA, simulate

from pyro_fcr import FCR, Architecture, files
from pyro_fcr.cli import shell
from pyro_fcr.data import Split, read_cells
from pyro_fcr.queries.answers import assemble
from pyro_fcr.saving import Saved, folder, read_model, write_model
from pyro_fcr.seals import check_seal
from pyro_fcr.training import CheckpointError, Trainer, TrainingPlan
from pyro_fcr.training.checkpoint import read_checkpoint

MODELS = Path(__file__).parent / "models"
OPTIONS = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]
SMALL = {"n_x": 1, "n_t": 1, "n_tx": 1, "n_hidden": 4, "decoder": "additive", "dropout": 0.0}
PLAN = {"max_epochs": 2, "batch_size": 64, "progress": False, "device": "cpu", "align_at": None}


def saved(number=0.0):
    """A model of a few numbers; another number is another model in every file."""
    history = pd.DataFrame({"lr": [number]}, index=pd.Index([0], name="epoch"))
    split = pd.Series(["train"], pd.Index([f"c{number}"], name="cell"), name="part")
    weights = {"model": {"a": torch.full((2,), number)}, "guide": {"b": torch.zeros(1)}}
    return Saved({"registry": number, "versions": {}}, weights, history, split)


def number_in(place):
    """The model at a place, which has to be one of :func:`saved` in all its files."""
    found = read_model(place)
    number = found.record["registry"]
    assert found.weights["model"]["a"].tolist() == [number] * 2
    assert found.history["lr"].tolist() == [number]
    assert found.split.index.tolist() == [f"c{number}"]
    return number


def in_child(function):
    """Run a function in a process of its own and return how that ended."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(event, function):
    """Kill a process at its n-th touch of the file system; True if it got to its end before."""

    def work():
        seen = []

        def kill(name, arguments):
            if name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
                name == "open" and arguments[1] not in ("r", "rb")
            ):
                seen.append(name)
                if len(seen) == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        function()

    return in_child(work) == 0


@pytest.fixture(scope="module")
def cells():
    return simulate(300, n_genes=12)


@pytest.fixture(scope="module")
def fcr(cells):
    fcr = FCR(cells, SCHEMA, architecture=Architecture(**SMALL))
    fcr.fit(**PLAN)
    return fcr


@pytest.fixture(scope="module")
def on_disk(cells, tmp_path_factory):
    place = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(place)
    return place


# A model is whole


@pytest.mark.parametrize("standing", [None, 1.0])
def test_killed_at_any_moment_a_save_leaves_the_old_or_the_new_model(tmp_path, standing):
    place, left = tmp_path / "m", set()
    for event in range(1, 60):
        shutil.rmtree(place, ignore_errors=True)
        if standing is not None:
            write_model(place, saved(standing))
        ended = killed_at(event, lambda: write_model(place, saved(2.0), overwrite=True))
        if place.exists() or standing is not None:
            assert number_in(place) in {standing, 2.0}
        left |= {path.suffix for path in tmp_path.rglob(".*")}
        write_model(place, saved(3.0), overwrite=True)
        assert number_in(place) == 3.0
        assert len(list(tmp_path.rglob("*"))) == 5, "leftovers"
        if ended:
            break
    assert ended
    assert event > 10
    assert len(left) > 2  # drafts that there were to clean up


def test_readers_never_meet_half_of_a_model(tmp_path):
    place = tmp_path / "m"
    write_model(place, saved(0.0))

    def replace_often():
        for number in range(1, 40):
            write_model(place, saved(float(number)), overwrite=True)

    child = os.fork()
    if child == 0:
        replace_often()
        os._exit(0)
    numbers = []
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        numbers.append(number_in(place))
    assert len(set(numbers)) > 3
    assert sorted(numbers) == numbers


def test_a_save_removes_and_replaces_nothing_but_a_model(tmp_path):
    place = tmp_path / "m"
    write_model(place, saved(0.0))
    (place / "notes.txt").write_text("mine")
    write_model(place, saved(1.0), overwrite=True)
    assert number_in(place) == 1.0
    assert (place / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match=r"m is there already\. Pass overwrite=True"):
        write_model(place, saved(2.0))
    foreign = {
        "graph-model": {"format": "graph-model", "modelTopology": {}},
        "list": [],
        "other": {"format": 1, "layers": []},
    }
    for name, record in foreign.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(json.dumps(record))
    (tmp_path / "history").mkdir()
    (tmp_path / "history" / "history.csv").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in (*foreign, "history", "file"):
        with pytest.raises(FileExistsError, match=f"{name} holds no model, so it is not replaced"):
            write_model(tmp_path / name, saved(1.0), overwrite=True)
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", saved(4.0))
    assert number_in(tmp_path / "empty") == 4.0


def test_home_and_links_lead_to_a_model(tmp_path, monkeypatch):
    home, real = tmp_path / "home", tmp_path / "real"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_model("~/m", saved(1.0))
    assert number_in(home / "m") == number_in("~/m") == 1.0
    write_model(real, saved(1.0))
    (tmp_path / "link").symlink_to(real)
    write_model(tmp_path / "link", saved(2.0), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert number_in(real) == 2.0
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    write_model(tmp_path / "dangling", saved(3.0))
    assert number_in(tmp_path / "later") == 3.0
    with pytest.raises(OSError, match=r"~nobody-here/m leads nowhere .* is written \./~name"):
        write_model("~nobody-here/m", saved(1.0))
    with pytest.raises(FileNotFoundError, match="no-cells.h5ad"):
        read_cells("~/no-cells.h5ad")


# A model is what was saved


@pytest.mark.parametrize("version", range(1, folder.FORMAT + 1))
def test_models_of_every_format_are_read(version):
    loaded = FCR.load(MODELS / f"format-{version}")
    labels = [(t, x) for t in ("control", "A", "B") for x in ("u", "v") for _ in range(4)]
    obs = pd.DataFrame(labels, columns=["drug", "line"], index=[f"c{i}" for i in range(24)])
    counts = (np.arange(24)[:, None] * 7 + np.arange(4) * 3).astype(np.float32) % 11 + 1
    var = pd.DataFrame(index=[f"g{i}" for i in range(4)])
    found = loaded.get_latent_representation("z_x", ad.AnnData(counts, obs=obs, var=var))
    wanted = json.loads((MODELS / f"format-{version}" / "z_x.json").read_text())
    np.testing.assert_allclose(found.ravel(), wanted, atol=2e-5)
    assert len(loaded.history) == 2
    assert len(loaded._split_by_name()) > 12


def test_models_of_a_later_format_are_refused_by_name(tmp_path):
    place = write_model(tmp_path / "m", saved())
    record = json.loads((place / "model.json").read_text())
    (place / "model.json").write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(ValueError, match=r"m has format 99; .* formats up to \d\. Update"):
        FCR.load(place)


def test_a_flipped_bit_anywhere_is_told(tmp_path):
    place = write_model(tmp_path / "m", saved(1.0))
    rng, silent = random.Random(0), {}
    for path in sorted(place.iterdir()):
        raw, silent[path.name] = path.read_bytes(), 0
        for _ in range(60):
            broken = bytearray(raw)
            broken[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            try:
                assert number_in(place) == 1.0
                silent[path.name] += 1  # white space of the record
            except ValueError as error:
                message = str(error)
                assert message.startswith(str(place)), message
                assert "\n" not in message
        path.write_bytes(raw)
    assert all(n == 0 for name, n in silent.items() if name != "model.json"), silent


def test_files_of_another_model_are_told(tmp_path):
    one, other = (write_model(tmp_path / name, saved(n)) for name, n in (("a", 1.0), ("b", 2.0)))
    for name in ("weights.safetensors", "history.csv", "split.csv.gz"):
        kept = (one / name).read_bytes()
        shutil.copy(other / name, one / name)
        with pytest.raises(ValueError, match=rf"a/{name} is damaged or of another model.*Copy"):
            read_model(one)
        (one / name).unlink()
        with pytest.raises(ValueError, match=rf"a/{name}, a file of the model, is missing"):
            read_model(one)
        (one / name).write_bytes(kept)
    assert number_in(one) == 1.0
    shutil.copy(other / "model.json", one / "model.json")
    with pytest.raises(ValueError, match=r"a/weights\.safetensors is damaged or of another"):
        read_model(one)


def without_digests(place):
    """The record of a model as versions wrote it that knew no digests."""
    record = json.loads((place / "model.json").read_text())
    return {k: v for k, v in record.items() if k not in ("files", "sha256")} | {"format": 2}


BROKEN = {
    "nothing": lambda m: (m / "model.json").write_text("{}"),
    "a list": lambda m: (m / "model.json").write_text("[]"),
    "deep": lambda m: (m / "model.json").write_text("[" * 100_000),
    "binary": lambda m: (m / "model.json").write_bytes(b"\xff\xfe\x00"),
    "weights cut": lambda m: (m / "weights.safetensors").write_bytes(b"\x08" * 100),
    "weights empty": lambda m: (m / "weights.safetensors").write_bytes(b""),
    "split cut": lambda m: (m / "split.csv.gz").write_bytes(gzip.compress(b"cell,part\na")[:-9]),
    "history of no epochs": lambda m: (m / "history.csv").write_text("a,b\n1,2\n"),
    "weights gone": lambda m: (m / "weights.safetensors").unlink(),
    "a folder": lambda m: ((m / "history.csv").unlink(), (m / "history.csv").mkdir()),
    "other sizes": lambda m: edit(m, "architecture", n_hidden=5),
    "no such size": lambda m: edit(m, "architecture", n_new=5),
    "a gene less": lambda m: edit(m, "registry", genes=["gene0"]),
    "no genes": lambda m: edit(m, "registry", genes=None),
    "no programs": lambda m: edit(m, "programs", model=None, guide=[]),
}


def edit(place, part, **changes):
    record = without_digests(place)
    record[part].update(changes)
    (place / "model.json").write_text(json.dumps(record))


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_one_line(fcr, tmp_path, name, digests):
    place = fcr.save(tmp_path / "m")
    if not digests:
        (place / "model.json").write_text(json.dumps(without_digests(place)))
    BROKEN[name](place)
    if name in ("no programs",) or (name == "a folder" and not digests):
        return  # says nothing of what is built; a history may be missing in old formats
    result = run("inspect", place)
    assert result.exit_code == 1, name
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    assert str(place) in lines[0]


def test_own_programs_that_differ_are_told(cells, fcr, tmp_path):
    model, guide = fcr.model, fcr.guide
    own = FCR(cells, SCHEMA, model=model, guide=guide)
    place = own.save(tmp_path / "m")
    other = FCR(cells, SCHEMA, architecture=Architecture(**{**SMALL, "n_hidden": 5}))
    with pytest.raises(
        ValueError, match=r"/m does .* the weight .* in the program\)\. Pass model="
    ):
        FCR.load(place, model=other.model, guide=other.guide)


# A checkpoint is of one run


def changed(cells):
    rng = np.random.default_rng(0)
    labels, lines, counts = cells.copy(), cells.copy(), cells.copy()
    labels.obs["drug"] = rng.permutation(labels.obs["drug"])
    lines.obs["line"] = rng.permutation(lines.obs["line"])
    counts.X = counts.X * 2
    renamed = cells.copy()
    renamed.obs_names = [f"other{i}" for i in range(cells.n_obs)]
    return {
        "labels of t": labels,
        "labels of x": lines,
        "expression": counts,
        "genes or their order": cells[:, ::-1].copy(),
        "names or order of cells": renamed,
    }


def test_a_checkpoint_goes_on_with_its_own_cells_only(cells, tmp_path):
    small = Architecture(**SMALL)
    FCR(cells, SCHEMA, architecture=small).fit(**PLAN, checkpoint=tmp_path / "c")
    for what, other in changed(cells).items():
        fcr = FCR(other, SCHEMA, architecture=small)
        with pytest.raises(CheckpointError, match=f"c is of another run: {what} were not the same"):
            fcr.fit(**PLAN, resume=tmp_path / "c")
    fcr = FCR(cells, SCHEMA, architecture=small)
    split = Split(np.arange(200), np.arange(200, 300))
    with pytest.raises(CheckpointError, match="another run: split were not"):
        fcr.fit(**PLAN, resume=tmp_path / "c", split=Split(np.arange(270), np.arange(270, 300)))
    with pytest.raises(CheckpointError, match=r"weights of the loss terms were not"):
        fcr.fit(**PLAN, resume=tmp_path / "c", weights={"kl": 2.0})
    wide = FCR(cells, SCHEMA, architecture=Architecture(**{**SMALL, "n_hidden": 5}))
    with pytest.raises(CheckpointError, match="model, guide or loss terms were not"):
        wide.fit(**PLAN, resume=tmp_path / "c")
    dense = cells.copy()
    dense.X = np.asarray(dense.X)
    before = FCR(dense, SCHEMA, architecture=small)
    before.fit(**PLAN, split=split)
    history = before.history
    with pytest.raises(CheckpointError):
        before.fit(**PLAN, resume=tmp_path / "c", split=Split(split.heldout, split.train))
    assert before.history is history  # a fit that was refused changes nothing
    assert before.split is split
    assert len(before.fit(**PLAN, resume=tmp_path / "c")) == 2


def test_a_checkpoint_replaces_nothing_else_and_is_checked(cells, on_disk, tmp_path):
    fcr = FCR(cells, SCHEMA, architecture=Architecture(**SMALL))
    for place in (shutil.copy(on_disk, tmp_path / "cells.h5ad"), tmp_path):
        with pytest.raises(FileExistsError, match="is no checkpoint of this version, so it is not"):
            fcr.fit(**PLAN, checkpoint=place)
    with pytest.raises(OSError, match=r"h5ad/c cannot be written \(Not a directory\)"):
        fcr.fit(**PLAN, checkpoint=tmp_path / "cells.h5ad" / "c")
    assert fcr.history is None
    assert (tmp_path / "cells.h5ad").read_bytes() == on_disk.read_bytes()
    path = tmp_path / "c"
    fcr.fit(**PLAN, checkpoint=path)
    raw, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        broken = bytearray(raw)
        broken[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="c is (damaged|no checkpoint of this version)"):
            read_checkpoint(path, TrainingPlan(**PLAN), n_epochs=2, digests={})


# What ends a run


@pytest.fixture
def signalled(monkeypatch):
    """Have a signal come in the 6th step of training."""

    def arrange(number):
        step = Trainer._validated_step

        def stepping(self, batch):
            if self.step == 5:
                signal.raise_signal(number)
            step(self, batch)

        monkeypatch.setattr(Trainer, "_validated_step", stepping)

    return arrange


FIT = [*OPTIONS, "--max-epochs", 3, "--batch-size", 64, "--n-hidden", 4, "--decoder", "additive"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_former_model_and_writes_a_checkpoint(
    fcr, on_disk, tmp_path, signalled, number, code
):
    model, checkpoint = fcr.save(tmp_path / "m"), tmp_path / "c"
    before = (model / "model.json").read_bytes()
    arguments = ["fit", on_disk, *FIT, "--out", model, "--overwrite"]
    signalled(number)
    result = run(*arguments, "--checkpoint", checkpoint)
    assert result.exit_code == code, result.output
    assert (model / "model.json").read_bytes() == before
    signalled(signal.SIGCONT)
    result = run(*arguments, "--resume", checkpoint)
    assert result.exit_code == 0, result.output
    assert FCR.load(model).history.attrs["start"] == f"resumed from {checkpoint}"
    assert len(FCR.load(model).history) == 3


def test_an_interrupted_fit_is_saved_where_nothing_stood(on_disk, tmp_path, signalled):
    signalled(signal.SIGINT)
    result = run("fit", on_disk, *FIT, "--out", tmp_path / "m")
    assert result.exit_code == 130
    assert FCR.load(tmp_path / "m").history.attrs["stopped"] == "interrupted"


def test_ctrl_c_ends_all_fits_of_a_command(on_disk, tmp_path, signalled, monkeypatch):
    fits, fit = [], FCR.fit
    monkeypatch.setattr(FCR, "fit", lambda *a, **k: fits.append(0) or fit(*a, **k))
    signalled(signal.SIGINT)
    arguments = ["interactions", on_disk, *FIT, "--out", tmp_path / "i"]
    result = run(*arguments)
    assert result.exit_code == 130
    assert result.output.endswith("Interrupted.\n")
    assert fits == [0]
    assert not (tmp_path / "i").exists()


def test_a_reader_that_has_seen_enough_is_no_error(fcr, tmp_path):
    ends = os.pipe()
    os.close(ends[0])
    command = [sys.executable, "-m", "pyro_fcr", "inspect", fcr.save(tmp_path / "m")]
    done = subprocess.run(command, stdout=ends[1], stderr=subprocess.PIPE, text=True, check=False)
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (141, "")


def test_sigterm_of_a_script_ends_it_with_143(cells, tmp_path, signalled):
    signalled(signal.SIGTERM)
    fcr = FCR(cells, SCHEMA, architecture=Architecture(**SMALL))
    with pytest.raises(SystemExit) as ended, pytest.warns(UserWarning, match="Terminated in epoch"):
        fcr.fit(**PLAN, checkpoint=tmp_path / "c")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (tmp_path / "c").is_file()


# Places


def test_places_are_tried_before_training(on_disk, tmp_path):
    long = "b" * 250
    cases = {
        "in-a-file": ["--out", on_disk / "m"],
        "too long": ["--out", tmp_path / (long + "b" * 10)],
        "checkpoint folder": ["--out", tmp_path / "m", "--checkpoint", tmp_path],
        "checkpoint in a file": ["--out", tmp_path / "m", "--checkpoint", on_disk / "c"],
        "checkpoint is cells": ["--out", tmp_path / "m", "--checkpoint", on_disk],
        "checkpoint in out": ["--out", tmp_path / "m", "--checkpoint", tmp_path / "m" / "c"],
        "out is cells": ["--out", on_disk, "--overwrite"],
    }
    for name, arguments in cases.items():
        result = run("fit", on_disk, *FIT, *arguments)
        assert result.exit_code == 1, name
        assert len(result.output.strip().splitlines()) == 1, result.output
        assert "steps" not in result.output, name
    assert list(tmp_path.iterdir()) == []
    assert run("fit", on_disk, *FIT, "--out", tmp_path / "new" / long).exit_code == 0


def test_what_a_command_reads_is_not_replaced(fcr, on_disk, tmp_path):
    model, source = fcr.save(tmp_path / "m"), shutil.copy(on_disk, tmp_path / "cells.h5ad")
    before = Path(source).read_bytes()
    (tmp_path / "link.h5ad").symlink_to(source)
    for out in (source, tmp_path / "link.h5ad"):
        for arguments in (
            ["latents", model, source],
            ["predict", model, "--cells", source, "--treatment", "drug1"],
        ):
            result = run(*arguments, "--out", out, "--overwrite")
            assert result.exit_code == 1
            assert "is what this command reads. Give another --out" in result.output
    assert Path(source).read_bytes() == before


def test_a_store_that_a_command_reads_is_not_replaced(fcr, on_disk, tmp_path):
    model, store = fcr.save(tmp_path / "m"), tmp_path / "p.zarr"
    asked = ["predict", model, "--treatment", "drug1", "--out", store]
    assert run(*asked, "--cells", on_disk).exit_code == 0
    for arguments in (
        [*asked, "--cells", store],
        ["evaluate", "--predictions", f"mine={store}", "--cells", on_disk, "--out", store,
         "--treatment-key", "drug", "--control", "control", "--covariate-key", "line"],
    ):  # fmt: skip
        result = run(*arguments, "--overwrite")
        assert result.exit_code == 1
        assert (
            result.output
            == f"Error: --out {store} is what this command reads. Give another --out.\n"
        )
    assert check_seal(store)


def test_a_column_has_one_level_in_a_question(fcr, tmp_path):
    model = fcr.save(tmp_path / "m")
    twice = ["--covariate", "line=line0", "--covariate", "line=line1"]
    result = run("predict", model, "--treatment", "drug1", *twice, "--out", tmp_path / "p.h5ad")
    assert result.output == "Error: --covariate names 'line' twice; give each column one level.\n"


@contextmanager
def files_up_to(n_bytes):
    """Let no file grow beyond a size, which is how a full disk or quota looks to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_says_so_and_leaves_what_stood_there(tmp_path, monkeypatch):
    write_model(tmp_path / "m", saved(1.0))
    table = pd.DataFrame({"a": range(9_999)})
    shell.write_table(table[:2], tmp_path / "t.csv")
    monkeypatch.setattr(shell, "_put_into", lambda *_: None)
    big = replace(saved(2.0), weights={"model": {"a": torch.zeros(9_000)}, "guide": {}})
    for act in (
        lambda: write_model(tmp_path / "m", big, overwrite=True),
        lambda: write_model(tmp_path / "new", big),
        lambda: shell.write_table(table, tmp_path / "t.csv", overwrite=True),
    ):
        with (
            files_up_to(20_000),
            pytest.raises(OSError, match="The disk is full: .* cannot be written, and what stood"),
        ):
            act()
    assert number_in(tmp_path / "m") == 1.0
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2
    assert check_seal(tmp_path / "t.csv")
    with files_up_to(20_000), pytest.raises(OSError, match="The disk is full"):
        shell.write_tables({"t.csv": table}, tmp_path / "a" / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "t.csv", "t.csv.sha256"]


def test_an_h5ad_that_the_disk_refuses_is_closed_all_the_same(cells, tmp_path):
    frame = ad.AnnData(obs=pd.DataFrame(index=list("abc")), var=pd.DataFrame(index=cells.var_names))
    parts = ({"X": np.random.default_rng(0).random((1, 12))} for _ in range(3))
    for write in (
        lambda: shell.write_adata(cells, tmp_path / "cells.h5ad"),
        lambda: assemble(frame, parts, store=tmp_path / "answer.h5ad"),
    ):
        with (
            files_up_to(3_000),
            pytest.raises(OSError, match=r"The disk is full: .*h5ad cannot be"),
        ):
            write()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    own = cells.copy()
    own.raw, own.layers["counts"], own.uns["of"] = own[:, :3], own.X.copy(), {"a": [1, 2]}
    shell.write_adata(own, tmp_path / "cells.h5ad")
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(found.obs, own.obs)
    np.testing.assert_array_equal(found.raw.X, own.raw.X)
    np.testing.assert_array_equal(found.layers["counts"], own.X)
    assert list(found.uns["of"]["a"]) == [1, 2]


def test_what_took_work_is_put_elsewhere_if_its_place_fails(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(path):
        if path == tmp_path / "m":
            raise OSError("The disk is full.")
        write_model(path, saved(5.0))

    with pytest.raises(
        OSError, match="The disk is full. The result is in .*here.* for now"
    ) as told:
        shell.put(tmp_path / "m", write)
    place = str(told.value).split(" is in ")[1].removesuffix(" for now.")
    assert number_in(place) == 5.0
    with pytest.raises(OSError, match="^nowhere$"):
        shell.put(tmp_path / "m", lambda _: (_ for _ in ()).throw(OSError("nowhere")))


def test_leftovers_of_a_killed_process_are_removed_and_no_others(tmp_path):
    place = tmp_path / "a.csv"

    def die():
        with files.atomic_write(place) as draft:
            draft.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with files.atomic_write(place) as mine:  # that of a living process
        with files.atomic_write(place) as draft:
            draft.write_text("whole")
        assert not left.exists()
        mine.write_text("later")
    assert place.read_text() == "later"
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_foreign_errors_are_one_line_and_have_a_traceback_with_debug(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise KeyError("no\nsuch thing")

    monkeypatch.setattr("pyro_fcr.simulation.simulate", fail)
    result = run("simulate", "--out", tmp_path / "s.h5ad")
    assert result.exit_code == 1
    assert result.output.startswith("Error: simulate: KeyError: 'no")
    assert len(result.output.strip().splitlines()) == 1
    with pytest.raises(KeyError):
        run("simulate", "--out", tmp_path / "s.h5ad", "--debug")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00,")
    (tmp_path / "c.h5ad").write_text("")
    monkeypatch.setattr("pyro_fcr.data.read_cells", lambda path: 1 / len("x"[1:]))
    result = run("simulate", "--from-controls", tmp_path / "c.h5ad", "--context-key", "line",
                 "--out", tmp_path / "s.h5ad")  # fmt: skip
    assert result.output.startswith(f"Error: {tmp_path / 'c.h5ad'}: ZeroDivisionError: division")
    assert len(result.output.strip().splitlines()) == 1
    result = run("plot", "effects", tmp_path / "t.csv", "--out", tmp_path / "f.png")
    assert result.output.startswith(f"Error: {tmp_path / 't.csv'} cannot be read as a table")


def test_warnings_for_developers_are_not_shown_whatever_a_library_wants(monkeypatch, tmp_path):
    def warn(*_, **__):
        warnings.filterwarnings("always", "old", DeprecationWarning)  # as libraries do on import
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("seen", UserWarning, stacklevel=1)
        raise ValueError("stop")

    monkeypatch.setattr("pyro_fcr.simulation.simulate", warn)
    result = run("simulate", "--out", tmp_path / "s.h5ad")
    assert result.output.splitlines()[0] == "Warning: seen"
    assert "old" not in result.output
