"""Modules that the shipped programs are made of: conditionals and decoders.

Every module takes leading sample dimensions, ``(*, n_cells, n_features)``, and builds its
distribution anew at each call. Write one more of them to give a site another family.
"""

from pyro_fcr.nn.conditionals import (
    Encoder,
    Identity,
    InteractionPrior,
    LinearPrior,
    LogNormalize,
    join,
    linear_of_parts,
    mlp,
)
from pyro_fcr.nn.decoders import (
    Decoder,
    NegativeBinomialDecoder,
    NormalDecoder,
    ZeroInflatedNegativeBinomialDecoder,
)

__all__ = [
    "Decoder",
    "Encoder",
    "Identity",
    "InteractionPrior",
    "LinearPrior",
    "LogNormalize",
    "NegativeBinomialDecoder",
    "NormalDecoder",
    "ZeroInflatedNegativeBinomialDecoder",
    "join",
    "linear_of_parts",
    "mlp",
]
