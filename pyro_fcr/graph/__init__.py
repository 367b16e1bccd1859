"""The causal graph of a program, its independences, and what model and guide owe one another."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
