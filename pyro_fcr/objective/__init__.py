"""The loss: the ELBO and the penalties that follow from the graph, by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
