# What there is to import from here; read when a name is first used, see __init__.py.
from . import datasets
from .cells import Cells
from .conditions import Condition
from .errors import SchemaError
from .io import read_cells
from .registry import Registry
from .schema import Schema
from .splits import Split, split_cells

__all__ = [
    "Cells",
    "Condition",
    "Registry",
    "Schema",
    "SchemaError",
    "Split",
    "datasets",
    "read_cells",
    "split_cells",
]
