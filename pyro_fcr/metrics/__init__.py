"""How good a fitted model is: response metrics, baselines, clusters of the latent blocks.

Everything takes plain arrays, data frames or AnnData; nothing here knows a model.
"""

import lazy_loader

# Names stand in __init__.pyi: a model that is trained and asked needs no clustering or regression.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
