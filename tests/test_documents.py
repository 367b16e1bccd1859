"""What the documents promise runs: docstring examples, README blocks, notebooks."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

import pyro_fcr

ROOT = Path(__file__).resolve().parents[1]
MODULES = [m.name for m in pkgutil.walk_packages(pyro_fcr.__path__, "pyro_fcr.")]


@pytest.mark.parametrize("name", [n for n in MODULES if n != "pyro_fcr.bundled"])
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(
        module, extraglobs={"np": np, "pyro": pyro, "torch": torch}, optionflags=flags
    )
    assert result.failed == 0


def test_readme_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 2
    scope = {}
    for block in blocks:
        exec(compile(block.replace("max_epochs=150", "max_epochs=2"), "README.md", "exec"), scope)


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.name)
def test_notebooks_run(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()


@pytest.mark.parametrize("package", ["pyro_fcr", "pyro_fcr.metrics"])
def test_every_public_name_is_documented(package):
    package = importlib.import_module(package)
    for name in package.__all__:
        documented = getattr(package, name).__doc__
        assert documented, name
        assert len(documented) > 40, name


@pytest.mark.parametrize(
    ("statement", "unread"),
    [
        ("import pyro_fcr.cli", {"torch", "pyro", "anndata", "scanpy"}),
        ("import pyro_fcr; pyro_fcr.FCR", {"scanpy", "sklearn", "matplotlib", "arviz"}),
    ],
)
def test_imports_read_what_they_need(statement, unread):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert unread & set(done.stdout.split()) == set()
