"""The shape of the house: which room may look into which."""

import ast
import os
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest
import torch

import pyro_fcr

ROOT = Path(pyro_fcr.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"demo"},
    {"comparison"},
    {"api"},
    {"discovery", "evaluation"},
    {"report"},
    {"plots"},
    {"saving", "queries"},
    {"metrics"},
    {"programs"},
    {"draws"},
    {"training"},
    {"objective"},
    {"nn"},
    {"model", "guide"},
    {"graph"},
    {"distributions"},
    {"simulation"},
    {"data"},
    {"params"},
    {"batch", "modes", "seals", "values"},
    {"files"},
    {"parts"},
    {"ranks"},
    {"_torch"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_ANNDATA = {
    "batch", "modes", "params", "distributions", "nn", "graph", "model", "guide", "objective",
    "draws",
}  # fmt: skip


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Modules imported at run time; what only the type checker sees does not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "pyro_fcr" and len(parts) > 1 and parts[1] in FLOOR:
            other = parts[1]
            assert other == room or FLOOR[other] > FLOOR[room], f"{room} imports {other}"
        if room in WITHOUT_ANNDATA:
            assert parts[0] not in {"anndata", "scanpy", "pandas"}, f"{room} imports {parts[0]}"
        if room == "metrics":
            assert parts[:2] != ["pyro_fcr", "training"]


def test_every_room_has_its_floor():
    assert {room_of(path) for path in modules()} == set(FLOOR)


@pytest.mark.parametrize("name", ["model", "guide"])
def test_programs_stay_on_one_screen(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 60
    tree = ast.parse("\n".join(lines))
    forward = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "forward"]
    assert all(node.end_lineno - node.lineno <= 12 for node in forward)


def test_functions_stay_short():
    long = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                documented = isinstance(node.body[0], ast.Expr)
                first = node.body[1 if documented and len(node.body) > 1 else 0].lineno
                if node.end_lineno - first + 1 > 40:
                    long.append(f"{path.name}:{node.name}")
    assert long == []


def test_no_file_and_no_class_has_the_name_of_another():
    files = Counter(path.name for path in modules() if path.name != "__init__.py")
    classes = Counter(
        node.name
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, n in (files + classes).items() if n > 1] == []


def test_files_do_not_import_one_another_in_a_circle():
    names = {
        ".".join(["pyro_fcr", *path.relative_to(ROOT).with_suffix("").parts]): path
        for path in modules()
    }
    arrows = nx.DiGraph(
        (name, other) for name, path in names.items() for other in imports(path) if other in names
    )
    assert list(nx.simple_cycles(arrows)) == []


@pytest.mark.skipif(
    "PYTEST_XDIST_WORKER" not in os.environ, reason="one process may have all cores"
)
def test_workers_have_one_thread_each():
    """Two workers with two threads each wait for one another: tests take several times as long."""
    assert torch.get_num_threads() == 1
