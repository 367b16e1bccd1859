"""The one error of the data layer, and lists of names in its messages."""

from collections.abc import Iterable


class SchemaError(ValueError):
    """Data or a query that the model cannot take.

    The message names the column, gene, cell or level, what was found, what was expected and
    the mend. It is raised before any training starts.

    Examples
    --------
    >>> from pyro_fcr.data import Schema, SchemaError
    >>> try:
    ...     Schema(treatment_key="drug", control="DMSO", covariate_keys="drug")
    ... except SchemaError as error:
    ...     print(error)
    obs column 'drug' is given twice (treatment_key, covariate_keys); give each role its own column
    """


def listed(names: Iterable[object], limit: int = 8, *, quoted: bool = True) -> str:
    """List names for a message, the first `limit` of them, with their number if there are more."""
    texts = [repr(str(name)) if quoted else str(name) for name in names]
    if len(texts) > limit:
        return f"{', '.join(texts[:limit])}, ... ({len(texts)} in all)"
    return ", ".join(texts) or "none"
