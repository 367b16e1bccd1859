"""What cells would express: draws of the programs under conditions and interventions.

Batches go in, tensors and arrays come out; nothing here knows AnnData or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
