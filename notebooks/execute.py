"""Execute notebooks in place: ``python notebooks/execute.py [NOTEBOOK ...]``, all by default."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # the progress bar asks for ipywidgets

for path in map(Path, sys.argv[1:] or sorted(Path(__file__).parent.glob("*.ipynb"))):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # its version is of no interest
    nbformat.write(notebook, path)
