"""What one asks a fitted model; :class:`pyro_fcr.FCR` inherits these methods."""

from pyro_fcr.questions.counterfactuals import Responses
from pyro_fcr.questions.measures import Measures
from pyro_fcr.questions.representations import Latents


class Questions(Latents, Responses, Measures):
    """All questions to a fitted model.

    They are about the model's own cells, or about others: ``adata`` is an AnnData, or the path of
    an h5ad file or zarr store, with the columns that the schema names.
    """


__all__ = ["Questions"]
