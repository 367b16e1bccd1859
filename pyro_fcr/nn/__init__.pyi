# What there is to import from here; read when a name is first used, see __init__.py.
from .conditionals import (
    Encoder,
    Identity,
    InteractionPrior,
    LinearPrior,
    LogNormalize,
    join,
    linear_of_parts,
    mlp,
)
from .decoders import (
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
