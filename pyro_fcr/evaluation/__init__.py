"""A fitted model held against all that can be known of it, in one call."""

import lazy_loader

# Names stand in __init__.pyi: a model that is only trained needs no clustering and no figures.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
