"""AnnData -> schema, checks, splits, and cells in memory ready for the model.

A `Schema` says what columns mean; `Schema.register` checks a data set and returns a `Registry`;
`Registry.encode` turns that and later data into `Cells`; `Cells.batch` gathers tensors.
"""

from pyro_fcr.data.cells import Cells
from pyro_fcr.data.conditions import Condition
from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.io import read_cells
from pyro_fcr.data.registry import Registry
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.splits import Split, split_cells

__all__ = [
    "Cells",
    "Condition",
    "Registry",
    "Schema",
    "SchemaError",
    "Split",
    "read_cells",
    "split_cells",
]
