"""Modules that the shipped programs are made of: conditionals and decoders.

Every module takes leading sample dimensions, ``(*, n_cells, n_features)``, and builds its
distribution anew at each call. Write one more of them to give a site another family.
"""

import lazy_loader

# Names stand in __init__.pyi: the command line reads options of Architecture, but not torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
