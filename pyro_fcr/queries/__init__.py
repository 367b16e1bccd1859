"""Questions to a fitted model in the words of AnnData, and their answers as AnnData or tables."""

import lazy_loader

# Names stand in __init__.pyi: ArviZ and others are imported when a question needs them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
