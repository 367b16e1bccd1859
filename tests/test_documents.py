"""What the documents promise runs: docstring examples, pages of documentation, notebooks."""

import contextlib
import copy
import doctest
import importlib
import operator
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
DOCS = sorted(ROOT.glob("docs/*.md"))
READMES = [ROOT / "data" / "README.md", ROOT / "tests" / "benchmarks" / "README.md"]
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS, *READMES]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?")


@pytest.mark.parametrize("name", [n for n in MODULES if n != "pyro_fcr.bundled"])
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(
        module, extraglobs={"np": np, "pyro": pyro, "torch": torch}, optionflags=flags
    )
    assert result.failed == 0


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def shorter(code):
    """The same on a quarter of the bundled cells, with trainings of few steps."""
    code = re.sub(r"""(max_epochs['"]?[=:] ?|n_folds=|bootstrap\(fcr, )\d+""", r"\g<1>2", code)
    code = re.sub(r"((num_samples|warmup_steps)=|for _ in range\()\d+", r"\g<1>5", code)
    return code.replace("gbm_panobinostat()", "gbm_panobinostat()[::4].copy()")


def run_blocks(path, folder, scope):
    with contextlib.chdir(folder):
        for block in python_blocks(path):
            exec(compile(shorter(block), path.name, "exec"), scope)


@pytest.fixture(scope="module")
def readme_names(tmp_path_factory):
    """What is defined after the README's blocks have run in order."""
    scope = {}
    run_blocks(ROOT / "README.md", tmp_path_factory.mktemp("readme"), scope)
    return scope


@pytest.mark.xdist_group("pages")
def test_readme_blocks_run_in_order(readme_names):
    assert len(python_blocks(ROOT / "README.md")) >= 2
    assert readme_names["treated"].n_obs == readme_names["control"].n_obs


@pytest.mark.xdist_group("pages")
@pytest.mark.parametrize("path", [p for p in DOCS if python_blocks(p)], ids=lambda p: p.name)
def test_pages_continue_the_readme(path, readme_names, tmp_path):
    run_blocks(path, tmp_path, copy.copy(readme_names))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(path):
    text = re.sub(r"`[^`\n]*`", "", path.read_text())  # a drug may look like a link
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if not place.startswith(("http://", "https://")):
            page = path.parent / place if place else path
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), target


def test_every_page_is_listed():
    for index in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        text = index.read_text()
        assert all(
            path == index or f"{path.stem}.md)" in text for path in DOCS if path.stem != "index"
        )


def test_the_reference_lists_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^   ([\w.]+)$", page, flags=re.MULTILINE)
    words = {"AVERAGE", "metrics", "plots", "simulation", "training", "data", "datasets"}
    assert set(pyro_fcr.__all__) - words <= set(listed)
    for name in listed:
        assert operator.attrgetter(name)(pyro_fcr).__doc__, name


def shown(cell):
    """What a cell shows: text of each stream, kinds and text of each output; numbers masked."""
    outputs = cell.get("outputs", ())
    names = sorted({each.name for each in outputs if each.output_type == "stream"})
    streams = [(n, masked("".join(o.text for o in outputs if o.get("name") == n))) for n in names]
    rest = [each for each in outputs if each.output_type != "stream"]
    return streams + [(sorted(each.get("data", ())), masked(plain(each))) for each in rest]


def kinds(cell):
    """The kinds of a cell's outputs; what is logged to stderr is none of them."""
    outputs = cell.get("outputs", ())
    printed = any(each.get("name") == "stdout" for each in outputs)
    return printed, [sorted(each.data) for each in outputs if "data" in each]


def plain(output):
    return output.get("data", {}).get("text/plain", "")


def masked(text):
    """Mask numbers, and the spaces that align them; folders of temporary files are random."""
    text = re.sub(r"\S*/tmp\w*", "#", text)
    return " ".join(re.sub(r"-{2,}", "-", NUMBER.sub("#", text)).split())


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks, executed in one kernel: what is imported and compiled is so once."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebooks = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    together = nbformat.v4.new_notebook()
    for notebook in notebooks.values():
        together.cells.append(nbformat.v4.new_code_cell("%reset -f"))
        for cell in notebook.cells:
            cell.source = shorter(cell.source)
            together.cells.append(cell)
    place = {"metadata": {"path": tmp_path_factory.mktemp("notebooks")}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress")  # asks for ipywidgets
        nbclient.NotebookClient(together, timeout=300, resources=place).execute()
    return notebooks


@pytest.mark.xdist_group("notebooks")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_show_what_is_stored(path, executed):
    """Trainings are of few steps here, so what follows one has to be of the same kind only."""
    import nbformat  # noqa: PLC0415 (the fixture skips where it is missing)

    stored = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in stored.cells), "execute it: make notebooks"
    is_trained = False
    for old, new in zip(stored.cells, executed[path].cells, strict=True):
        is_trained |= "max_epochs" in old.source
        before, after = (kinds(each) if is_trained else shown(each) for each in (old, new))
        assert after == before, f"make notebooks: {old.source[:60]!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_stored_notebooks_are_small_and_clean(path):
    nbformat = pytest.importorskip("nbformat")
    assert path.stat().st_size < 1_000_000
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output.get("ename")
            text = plain(output) + output.get("text", "")
            assert not re.search(r"Warning:|/(root|home|work|Users)/", text), text


def test_the_top_level_has_few_names_each_with_an_example():
    assert len(pyro_fcr.__all__) <= 27
    offered = {name: getattr(pyro_fcr, name) for name in pyro_fcr.__all__}
    for name, thing in offered.items():
        if callable(thing):  # neither a module nor a constant; the examples run above
            assert ">>> " in thing.__doc__, name


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
