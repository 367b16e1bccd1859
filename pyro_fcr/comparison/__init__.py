"""Models to hold FCR against: graphs with one part changed, built from the same conditionals.

scVI stands in :mod:`pyro_fcr.comparison.scvi`; it needs the extra ``pyro-fcr[scvi]``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
