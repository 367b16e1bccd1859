"""Simulated cells of known truth, to measure what is found against what is there."""

import lazy_loader

# Names stand in __init__.pyi: the command line reads options of FCRDesign, but not anndata.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
