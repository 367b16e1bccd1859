"""AnnData -> schema, checks, splits, and cells in memory ready for the model.

A `Schema` says what columns mean; `register` checks a data set and returns a `Registry`
and its `Cells`; `Registry.encode` turns later data into `Cells`; `Cells.batch` gathers tensors.
"""

from pyro_fcr.data.cells import Cells
from pyro_fcr.data.design import Condition
from pyro_fcr.data.errors import SchemaError
from pyro_fcr.data.io import read_cells
from pyro_fcr.data.ownership import changed_cells, changed_labels, snapshot
from pyro_fcr.data.registration import register
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
    "changed_cells",
    "changed_labels",
    "read_cells",
    "register",
    "snapshot",
    "split_cells",
]
