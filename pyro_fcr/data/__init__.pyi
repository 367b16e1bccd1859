# What there is to import from here; read when a name is first used, see __init__.py.
from . import datasets
from .cells import Cells
from .design import Condition
from .errors import SchemaError
from .io import read_cells
from .ownership import changed_cells, changed_labels, snapshot
from .registration import register
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
    "changed_cells",
    "changed_labels",
    "datasets",
    "read_cells",
    "register",
    "snapshot",
    "split_cells",
]
