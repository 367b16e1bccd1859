"""Which columns of an AnnData mean what."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pyro_fcr.data.errors import SchemaError, listed

if TYPE_CHECKING:
    from anndata import AnnData

    from pyro_fcr.data.registry import Registry

Expression = Literal["counts", "log1p"]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns and the matrix of an AnnData mean, in the user's own names.

    Parameters
    ----------
    treatment_key
        Column of `.obs` with the treatment of each cell; combinations are written `A+B`.
    control
        The label of untreated cells, or None for data without any: each treatment is then one
        agent (or a combination), and no cell has an all-zero `t`.
    covariate_keys
        Column or columns of `.obs` with the context of each cell (cell line, donor, ...); a single
        name or any sequence of names becomes a tuple.
    dose_key
        Column of `.obs` with doses: numbers, or strings such as `"0.1+0.5"` in the order of the
        parts of `A+B`. A single number applies to each part. Control has 0 or nothing.
    layer
        Layer that holds the expression; None means `.X`.
    split_key
        Column of `.obs` with `"train"`, optionally `"valid"` (held out for early stopping) and any
        other label for cells that are left out of fitting.
    expression
        The scale promised for the matrix: `"counts"` (raw, whole numbers) or `"log1p"` (finite
        values on a log scale).
    separator
        What stands between the parts of a combination; None takes every label as one agent.
    min_cells
        Fewest training cells that each treatment and each covariate level must have.

    Raises
    ------
    SchemaError
        If a column has two roles, no covariate is named, or a setting is none of those above.

    Examples
    --------
    >>> from pyro_fcr.data import Schema
    >>> schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    >>> schema.covariate_keys
    ('patient',)
    """

    treatment_key: str
    control: str | None
    covariate_keys: tuple[str, ...]
    dose_key: str | None = None
    layer: str | None = None
    split_key: str | None = None
    expression: Expression = "counts"
    separator: str | None = "+"
    min_cells: int = 5

    def __post_init__(self) -> None:
        keys = self.covariate_keys
        object.__setattr__(self, "covariate_keys", (keys,) if isinstance(keys, str) else (*keys,))
        if self.control is not None:
            object.__setattr__(self, "control", str(self.control).strip())
        _check_roles(self)
        _check_settings(self)

    @property
    def source(self) -> str:
        """Name of the matrix in code, as messages quote it."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def register(self, adata: "AnnData | str | Path") -> "Registry":
        """Check a data set and learn its levels, dose ranges and training conditions.

        Parameters
        ----------
        adata
            Cells x genes, in memory or backed, or the path of an `.h5ad` or `.zarr`. Not changed.

        Returns
        -------
        Registry
            What `Registry.encode` needs to turn this or other data into tensors.

        Raises
        ------
        SchemaError
            If anything in the data would make training fail or mean something else.

        Warns
        -----
        UserWarning
            If a covariate level has no control cells, or counts are given as log1p.
        """
        # Registry holds a Schema, so importing it above would be a circle.
        from pyro_fcr.data.registration import register  # noqa: PLC0415

        return register(adata, self)


def _check_roles(schema: Schema) -> None:
    if not schema.covariate_keys:
        raise SchemaError(
            "covariate_keys is empty, wanted at least one obs column; for a single context add a "
            "constant one: adata.obs['context'] = 'all'"
        )
    single = ("treatment_key", "dose_key", "split_key")
    roles = [(key, role) for role in single if (key := getattr(schema, role)) is not None]
    roles += [(key, "covariate_keys") for key in schema.covariate_keys]
    for key, count in Counter(key for key, _ in roles).items():
        if count > 1:
            both = ", ".join(role for other, role in roles if other == key)
            raise SchemaError(
                f"obs column {key!r} is given twice ({both}); give each role its own column"
            )


def _check_settings(schema: Schema) -> None:
    if schema.expression not in get_args(Expression):
        raise SchemaError(
            f"expression is {schema.expression!r}, wanted one of {listed(get_args(Expression))}"
        )
    if schema.separator is not None and not schema.separator.strip():
        raise SchemaError(
            f"separator is {schema.separator!r}, wanted visible characters such as '+'; pass None "
            "to take every label as one agent"
        )
    if schema.min_cells < 1:
        raise SchemaError(f"min_cells is {schema.min_cells}, wanted 1 or more")
