"""Factorized causal representations of single-cell perturbation responses, as a Pyro model.

:class:`FCR` takes an AnnData and a :class:`Schema` to latents and responses. Below it stand the
two Pyro programs, :class:`Model` and :class:`Guide`, and their loss, :class:`Objective`, for those
who change the graph or write their own loop.
"""

from importlib.metadata import version

import lazy_loader

# The names stand in __init__.pyi and are imported when they are first used, so that the command
# line answers before torch and Pyro are read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("pyro-fcr")
