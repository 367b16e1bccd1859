"""The command line's options are the fields of the dataclasses, and speak in their words."""

import inspect
import io
import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from cli_helpers import run, succeed
from conftest import simulate
from docstring_parser import parse

from pyro_fcr import (
    FCR,
    Architecture,
    Schema,
    TrainingPlan,
    __version__,
    effects,
    rank_interactions,
)
from pyro_fcr.cli import commands, discover, predict
from pyro_fcr.simulation import FCRDesign

SCHEMA = ["--treatment-key", "drug", "--control", "control", "--covariate-key", "line"]
RECORDS = [("fit", Schema), ("fit", Architecture), ("fit", TrainingPlan),
           ("interactions", Schema), ("interactions", Architecture), ("interactions", TrainingPlan),
           ("inspect", Schema), ("simulate", FCRDesign)]  # fmt: skip
# Tables of FCRDesign, which --leak and --interaction make; what programs in Python may have.
NO_OPTIONS = {"leaks", "interactions", "outcome_keys"}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    path = tmp_path_factory.mktemp("options") / "cells.h5ad"
    simulate(300).write_h5ad(path)
    return path


@pytest.mark.parametrize(("command", "record"), RECORDS)
def test_every_field_is_an_option_with_its_default_and_help(command, record):
    found = commands[command].assemble_argument_collection(
        default_parameter=commands.default_parameter, parse_docstring=True
    )
    options = {each.field_info.name: each for each in found if each.keys}
    words = {each.arg_name: each.description for each in parse(record.__doc__).params}
    shown = re.sub(r"[\s│]+", " ", run(command, "--help").output)
    for field in fields(record):
        if field.name in NO_OPTIONS:
            continue
        option = options[field.name]
        assert option.name in shown
        assert option.field_info.required == (field.default is MISSING)
        if field.default is not MISSING:
            assert option.field_info.default == field.default
        assert option.parameter.help == words[field.name]
        plain = re.sub(r"[`\s]+", " ", words[field.name].split(",")[0].replace("`", ""))
        assert plain in shown


@pytest.mark.parametrize(
    "option", ["align-at", "patience", "decoder", "separator", "min-cells", "lr-schedule",
               "precision", "covariate-key", "n-tx"]
)  # fmt: skip
def test_options_of_fit_have_these_names(option):
    assert f"--{option} " in run("fit", "--help").output


def test_options_reach_the_records(cells, tmp_path):
    features = tmp_path / "features.csv"
    features.write_text("agent,weight,size\ndrug1,1.5,2\ndrug2,0,1\n")
    _, bound, _ = commands.parse_args(
        ["fit", str(cells), *SCHEMA, "--out", "model", "--separator", "none", "--min-cells", "3",
         "--treatment-features", str(features), "--covariate-key", "donor", "--covariate-site", "x",
         "--covariate-site", "d", "--decoder", "joint", "--likelihood", "zinb", "--align-at",
         "none", "--patience", "7", "--no-progress", "--precision", "bf16"]
    )  # fmt: skip
    given = bound.arguments
    assert given["schema"] == Schema(
        treatment_key="drug", control="control", covariate_keys={"x": "line", "d": "donor"},
        separator=None, min_cells=3, treatment_features={"drug1": [1.5, 2], "drug2": [0, 1]},
    )  # fmt: skip
    assert given["architecture"] == Architecture(decoder="joint", likelihood="zinb")
    plan = TrainingPlan(align_at=None, patience=7, progress=False, precision="bf16")
    assert given["plan"] == plan


def test_what_was_chosen_is_saved_and_the_rest_follows_the_data(cells, tmp_path):
    succeed("fit", cells, *SCHEMA, "--out", tmp_path / "model", "--max-epochs", 1, "--decoder",
            "joint", "--n-hidden", 8, "--patience", 3, "--min-cells", 2)  # fmt: skip
    saved = json.loads((tmp_path / "model" / "model.json").read_text())
    assert saved["architecture"]["decoder"] == "joint"
    assert saved["architecture"]["n_tx"] == 3  # of 7 conditions
    assert saved["architecture"]["likelihood"] == "nb"
    assert saved["registry"]["schema"]["min_cells"] == 2


def test_what_an_architecture_leaves_open_is_chosen_by_the_data(cells, tmp_path):
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line")
    fcr = FCR(cells, schema, architecture=Architecture(decoder="joint", n_hidden=8))
    sizes = {"n_hidden": 8, "n_tx": 3}  # 7 conditions
    wanted = Architecture(**sizes, likelihood="nb", dropout=0.2)
    assert fcr.architecture == wanted == wanted.resolve(fcr.registry)
    assert FCR.load(fcr.save(tmp_path / "model")).architecture == wanted
    chosen = Architecture(n_tx=1, likelihood="zinb", dropout=0.1)
    assert FCR(cells, schema, architecture=chosen).architecture == chosen
    with pytest.raises(ValueError, match="n_tx is left to the data; give a number"):
        Architecture().build({"y": 5, "x": 2, "t": 1}, target_sum=10.0)


@pytest.mark.parametrize(
    ("record", "wrong", "words"),
    [
        (TrainingPlan, {"device": "tpu"}, "Unknown {}device 'tpu'; expected auto, cpu or cuda."),
        (TrainingPlan, {"engine": "jit"}, "Unknown {}engine 'jit'; expected auto, eager, trace or"),
        (TrainingPlan, {"align_at": 1.5}, "{}align-at is 1.5; expected a number from 0"),
        (TrainingPlan, {"batch_size": 0}, "{}batch-size is 0; expected a whole number of 1"),
        (Architecture, {"likelihood": "poisson"}, "Unknown {}likelihood 'poisson'; expected nb, "),
        (Architecture, {"n_tx": 0}, "{}n-tx is 0; expected a whole number of 1"),
        (Schema, {"expression": "log"}, "Unknown {}expression 'log'; expected counts or log1p."),
        (Schema, {"min_cells": 0}, "{}min-cells is 0; expected a whole number of 1"),
    ],
)
def test_wrong_values_have_the_same_words_in_python(cells, tmp_path, record, wrong, words):
    needed = {"treatment_key": "drug", "covariate_keys": "line"} if record is Schema else {}
    ((field, value),) = wrong.items()
    option = field.replace("_", "-")
    with pytest.raises(ValueError, match=re.escape(words.format("").replace(option, field))):
        record(**needed, **wrong)
    result = run("fit", cells, *SCHEMA, "--out", tmp_path / "none", f"--{option}", value)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {words.format('--')}")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "cells.h5ad", *SCHEMA, "--out", "x", "--patiense", 3], "Did you mean --patience?"),
        (["fit", "cells.h5ad", "--out", "x"], "--treatment-key"),
        (["fitt"], "fitt"),
    ],
)
def test_what_there_is_not_ends_with_2(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert words in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(TrainingPlan().torch_device().type == "cuda", reason="there is CUDA")
def test_cuda_is_asked_for_in_vain():
    with pytest.raises(ValueError, match="device is 'cuda:1', but torch sees no CUDA"):
        TrainingPlan(device="cuda:1")


def fit_writing_to(stream, cells, monkeypatch, *, progress=None):
    monkeypatch.setattr(sys, "stderr", stream)
    schema = Schema(treatment_key="drug", control="control", covariate_keys="line")
    FCR(cells, schema).fit(max_epochs=1, progress=progress)
    return stream.getvalue()


def test_a_bar_is_for_terminals_and_notebooks(cells, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    bar = "1/1"
    assert bar not in fit_writing_to(io.StringIO(), cells, monkeypatch)
    assert bar in fit_writing_to(Terminal(), cells, monkeypatch)
    assert bar in fit_writing_to(io.StringIO(), cells, monkeypatch, progress=True)
    assert bar not in fit_writing_to(Terminal(), cells, monkeypatch, progress=False)
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    assert bar in fit_writing_to(io.StringIO(), cells, monkeypatch)


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)


def test_fit_writes_no_bar_into_a_file_and_errors_to_stderr(cells, tmp_path):
    arguments = ["-m", "pyro_fcr", "fit", str(cells), *SCHEMA, "--out", str(tmp_path / "model")]
    done = python(*arguments, "--max-epochs", "3")
    assert "3 epochs (all epochs done)" in done.stdout
    assert "epoch/s" not in done.stderr
    assert "\r" not in done.stderr
    with pytest.raises(subprocess.CalledProcessError) as error:
        python(*arguments)
    assert error.value.returncode == 1
    assert error.value.stdout == ""
    assert re.match("Error: .* is there already", error.value.stderr)


def test_the_package_is_the_command():
    assert python("-m", "pyro_fcr", "--version").stdout == f"pyro-fcr {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["simulate", "--help"]])
def test_help_reads_neither_torch_nor_anndata(arguments):
    code = "import sys; from pyro_fcr.cli import app; app(sys.argv[1:]); print(*sys.modules)"
    read = set(python("-c", code, *arguments).stdout.splitlines()[-1].split())  # below the help
    assert "cyclopts" in read
    assert read & {"torch", "pyro", "anndata", "pandas", "numpy", "scanpy"} == set()


@pytest.mark.parametrize(
    ("command", "question"),
    [(predict.predict, FCR.predict), (predict.predict, FCR.counterfactual),
     (predict.dose_response, FCR.dose_response), (discover.effects, effects),
     (discover.interactions, rank_interactions)],
)  # fmt: skip
def test_an_option_has_the_default_of_the_question_s_parameter(command, question):
    options, words = (inspect.signature(each).parameters for each in (command, question))
    shared = [n for n in words if n in options and words[n].default is not inspect.Parameter.empty]
    assert len(shared) >= 2
    for name in set(shared) - {"library"}:  # left out, it is that of the question which is asked
        assert options[name].default == words[name].default, name
