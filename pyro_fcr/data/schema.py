"""Which columns of an AnnData mean what."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from keyword import iskeyword
from typing import Any, Literal

from pyro_fcr.data.errors import SchemaError, listed
from pyro_fcr.data.labels import label_text
from pyro_fcr.values import Text, check_settings, several, shown

Expression = Literal["counts", "log1p"]

_JOINT = "x"
_TAKEN = ("t", "y", "library")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the columns and the matrix of an AnnData mean, in the user's own names.

    Parameters
    ----------
    treatment_key
        Column of `.obs` with the treatment of each cell; combinations are written `A+B`.
    control
        Label of untreated cells, or a list of several, which all become the first; None for data
        without any: each treatment is then one agent (or a combination), and no cell has an
        all-zero `t`.
    covariate_keys
        Column or columns of `.obs` with the context of each cell (cell line, donor, ...), together
        the site `"x"` of the graph; or a mapping from site to columns.
    dose_key
        Column of `.obs` with doses: numbers, or strings such as `"0.1+0.5"` in the order of the
        parts of `A+B`. A single number applies to each part. Control has 0 or nothing, or one
        number that stands for it everywhere, as the `1` of GEARS and CPA.
    layer
        Layer with the expression; None takes `.X`.
    split_key
        Column of `.obs` with `"train"`, optionally `"valid"` (or `"val"`, `"validation"`: held out
        for early stopping) and any other label for cells that are left out of fitting.
    expression
        Scale of the matrix: `counts` (raw, whole numbers) or `log1p` (finite values on a log
        scale).
    separator
        What stands between the parts of a combination; within brackets, as in `(+)-JQ1`, it is
        part of a name. None takes every label as one agent.
    min_cells
        Fewest training cells that each treatment and each covariate level must have.
    treatment_features
        What is known of each agent beforehand (fingerprint, target-gene embedding, ...), on any
        finite scale: a mapping from agent to numbers, a DataFrame with agents as its index and
        features as its columns, or the path of such a table as csv; kept as pairs of agent and
        features. Then t is the sum of the features of a cell's agents instead of one column per
        agent, and agents that have features but no training cells may be asked about. No row for
        the control: it is zero.
    covariate_sites
        Site of each covariate column, empty for `"x"` alone. Follows from a mapping, where
        `covariate_keys` is one.
    other_controls
        Further labels of untreated cells, which are taken as `control`. Follows from a list, where
        `control` is one.
    outcome_keys
        Further outcomes of a cell beside its expression `"y"`, for programs of your own: a mapping
        from site to the name of the array in `.obsm` that holds its values, as in
        `{"protein": "protein_counts"}`; kept as pairs. A batch has them under the site's name.

    Notes
    -----
    A single name or any sequence of names in `covariate_keys` becomes a tuple. A mapping makes
    several sites, as in `{"x": "cell_line", "d": "donor", "b": ["lane", "chemistry"]}`; the tuple
    then has all the columns in order, and `sites` tells whose they are.

    Raises
    ------
    SchemaError
        If a column has two roles, no covariate is named, a site or the features are not as
        described, or a setting has another value than those above.

    Examples
    --------
    >>> from pyro_fcr.data import Schema
    >>> schema = Schema(treatment_key="treatment", control="control", covariate_keys="patient")
    >>> schema.covariate_keys
    ('patient',)
    >>> schema = Schema(
    ...     treatment_key="treatment",
    ...     control="control",
    ...     covariate_keys={"x": "cell_line", "b": ["lane", "chemistry"]},
    ...     treatment_features={"A": [0.5, 1.0], "B": [2.0, 0.0]},
    ... )
    >>> schema.sites
    {'x': ('cell_line',), 'b': ('lane', 'chemistry')}
    """

    treatment_key: str
    control: str | None = None
    covariate_keys: tuple[str, ...]
    dose_key: str | None = None
    layer: str | None = None
    split_key: str | None = None
    expression: Expression = "counts"
    separator: None | str = "+"  # noqa: RUF036 (so the command line reads "none" as None)
    min_cells: int = 5
    treatment_features: Any = field(default=None, repr=False)
    covariate_sites: tuple[str, ...] = ()
    other_controls: tuple[str, ...] = ()
    outcome_keys: Any = ()

    def __post_init__(self) -> None:
        check_settings(self, error=SchemaError)
        keys, sites = _read_sites(self.covariate_keys, self.covariate_sites)
        object.__setattr__(self, "covariate_keys", keys)
        object.__setattr__(self, "covariate_sites", sites)
        controls = _read_controls(self.control, self.other_controls)
        object.__setattr__(self, "control", controls[0] if controls else None)
        object.__setattr__(self, "other_controls", tuple(controls[1:]))
        if self.treatment_features is not None:
            from pyro_fcr.data.features import read_features  # noqa: PLC0415 (pandas)

            features = read_features(self.treatment_features, controls=self.controls)
            object.__setattr__(self, "treatment_features", features)
        object.__setattr__(self, "outcome_keys", _read_outcomes(self.outcome_keys, self.sites))
        _check_roles(self)
        is_text = isinstance(self.separator, str) and self.separator.strip()
        if self.separator is not None and not is_text:
            raise SchemaError(
                f"separator is {self.separator!r}; expected visible characters such as '+', or "
                "None to take every label as one agent."
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """All labels of untreated cells, `control` first; none if there are no such cells."""
        return () if self.control is None else (self.control, *self.other_controls)

    @property
    def sites(self) -> dict[str, tuple[str, ...]]:
        """Columns of each covariate site of the graph; ``{"x": covariate_keys}`` by default."""
        names = self.covariate_sites or (_JOINT,) * len(self.covariate_keys)
        sites: dict[str, tuple[str, ...]] = {}
        for site, key in zip(names, self.covariate_keys, strict=True):
            sites[site] = (*sites.get(site, ()), key)
        return sites

    @property
    def outcomes(self) -> dict[str, str]:
        """Name in `.obsm` of each outcome beside the expression, by its site."""
        return dict(self.outcome_keys)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `.obs` that it names."""
        return tuple(key for key, _ in _roles(self))

    @property
    def source(self) -> str:
        """Name of the matrix in code, as messages quote it."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def to_json_dict(self) -> dict[str, Any]:
        """Return the settings in lists, dicts, strings and numbers; `Schema(**saved)` reads them.

        Examples
        --------
        >>> from pyro_fcr.data import Schema
        >>> schema = Schema(treatment_key="drug", control=None, covariate_keys={"d": "donor"})
        >>> Schema(**schema.to_json_dict()) == schema
        True
        """
        features = self.treatment_features
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "covariate_keys": list(self.covariate_keys),
            "treatment_features": features and {agent: list(row) for agent, row in features},
            "covariate_sites": list(self.covariate_sites),
            "other_controls": list(self.other_controls),
            "outcome_keys": self.outcomes,
        }


def _read_controls(control: Any, others: Any) -> list[str]:
    """Return the labels of untreated cells, each once, the one that stands for all first."""
    labels, others = ([] if each is None else several(each) for each in (control, others))
    if others and control is None:
        raise SchemaError(
            f"other_controls {listed(others)} without control; name one of them as control"
        )
    texts = [label_text(label, where="control") for label in (*labels, *others)]
    if "" in texts or (control is not None and not texts):
        raise SchemaError(
            f"control is {control!r}; expected a label of untreated cells, or None without any"
        )
    return list(dict.fromkeys(texts))


def _read_sites(keys: Any, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the covariate columns and the site of each; no sites stand for the joint site alone.

    Parameters
    ----------
    keys
        A column, several columns, or a mapping from site to column or columns.
    names
        The site of each column if `keys` is no mapping; empty for the joint site `"x"`.
    """
    if isinstance(keys, Mapping):
        pairs = [(site, key) for site, value in keys.items() for key in _columns(site, value)]
        names, keys = [site for site, _ in pairs], [key for _, key in pairs]
    keys, names = _columns("x", keys, least=0), (*names,)
    for name in names:
        _check_name(name)
    if set(names) <= {_JOINT}:
        return keys, ()
    if len(names) != len(keys):
        raise SchemaError(
            f"covariate_sites names the sites of {len(names)} columns, but covariate_keys has "
            f"{len(keys)}: {listed(keys)}; pass covariate_keys as a mapping from site to columns"
        )
    return keys, names


def _read_outcomes(value: Any, sites: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the site and the obsm key of each further outcome."""
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise SchemaError(
            f"outcome_keys is {shown(value)}; expected a mapping from site to a key of adata.obsm, "
            "as in {'protein': 'protein_counts'}"
        ) from None
    key = Text("a key of adata.obsm")
    for site, name in pairs.items():
        _check_name(site, "outcome_keys")
        if site in sites:
            raise SchemaError(
                f"outcome_keys: {site!r} is the site of a covariate; call the outcome otherwise"
            )
        key.read(f"outcome_keys[{site!r}]", name, error=SchemaError)
    return tuple(pairs.items())


def _columns(site: Any, value: Any, *, least: int = 1) -> tuple[str, ...]:
    columns = tuple(several(value))
    if len(columns) < least or "" in columns:
        raise SchemaError(
            f"covariate_keys: site {site!r} has {'an empty' if columns else 'no'} obs column; "
            "expected one or more; name them, or leave the site out"
        )
    name = Text("the name of one or more columns of obs")
    return tuple(name.read("covariate_keys", column, error=SchemaError) for column in columns)


def _check_name(name: Any, argument: str = "covariate_keys") -> None:
    if name in _TAKEN:
        raise SchemaError(
            f"{argument}: {name!r} cannot be a site of its own, because "
            f"{listed(_TAKEN)} have their own meaning; call the site otherwise, for instance by "
            "its column"
        )
    if not (isinstance(name, str) and name.isidentifier()) or iskeyword(name):
        raise SchemaError(
            f"{argument}: {name!r} cannot name a site; expected a Python identifier of "
            "letters, digits and '_', as in {'cell_line': ...} for {'cell line': ...}"
        )


def _roles(schema: Schema) -> list[tuple[str, str]]:
    """Return the columns with the argument that names each."""
    single = ("treatment_key", "dose_key", "split_key")
    roles = [(key, role) for role in single if (key := getattr(schema, role)) is not None]
    sites = [f"[{site!r}]" for site in schema.covariate_sites] or [""] * len(schema.covariate_keys)
    covariates = zip(schema.covariate_keys, sites, strict=True)
    return [*roles, *((key, f"covariate_keys{site}") for key, site in covariates)]


def _check_roles(schema: Schema) -> None:
    if not schema.covariate_keys:
        raise SchemaError(
            "covariate_keys is empty; expected at least one obs column; for a single context add "
            "a constant one: adata.obs['context'] = 'all'"
        )
    roles = _roles(schema)
    for key, count in Counter(key for key, _ in roles).items():
        if count > 1:
            both = ", ".join(role for other, role in roles if other == key)
            raise SchemaError(
                f"obs column {key!r} is given twice ({both}); give each role its own column"
            )
