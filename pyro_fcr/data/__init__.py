"""AnnData -> schema, checks, splits, and cells in memory ready for the model.

A `Schema` says what columns mean; `register` checks a data set and returns a `Registry`
and its `Cells`; `Registry.encode` turns later data into `Cells`; `Cells.batch` gathers tensors.
"""

import lazy_loader

# Names stand in __init__.pyi: the command line reads options of Schema, but not anndata.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
