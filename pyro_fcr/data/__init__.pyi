# What there is to import from here; read when a name is first used, see __init__.py.
from . import datasets
from .cells import Cells
from .depths import expected_depths
from .design import Condition
from .errors import SchemaError
from .io import open_cells, read_cells
from .ownership import OwnCells
from .registration import register
from .registry import Registry
from .schema import Schema
from .splits import Split, split_cells

__all__ = [
    "Cells",
    "Condition",
    "OwnCells",
    "Registry",
    "Schema",
    "SchemaError",
    "Split",
    "datasets",
    "expected_depths",
    "open_cells",
    "read_cells",
    "register",
    "split_cells",
]
