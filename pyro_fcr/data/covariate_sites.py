"""Which covariate columns make up which exogenous site of the graph."""

from collections.abc import Iterable, Mapping
from keyword import iskeyword
from typing import Any

from pyro_fcr.data.errors import SchemaError, listed

JOINT = "x"
_TAKEN = ("t", "y", "library")


def read_sites(keys: Any, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Bring covariate keys as users write them into two flat tuples.

    Parameters
    ----------
    keys
        A column, several columns, or a mapping from site to column or columns.
    names
        The site of each column if `keys` is no mapping; empty for the joint site `"x"`.

    Returns
    -------
    tuple
        The columns, and the site of each; no sites stand for the joint site alone.

    Raises
    ------
    SchemaError
        If a site has no column or a name that it cannot have, or the tuples differ in length.
    """
    if isinstance(keys, Mapping):
        pairs = [(site, key) for site, value in keys.items() for key in _columns(site, value)]
        names, keys = [site for site, _ in pairs], [key for _, key in pairs]
    keys, names = (keys,) if isinstance(keys, str) else (*keys,), (*names,)
    for name in names:
        _check_name(name)
    if set(names) <= {JOINT}:
        return keys, ()
    if len(names) != len(keys):
        raise SchemaError(
            f"covariate_sites names the sites of {len(names)} columns, covariate_keys has "
            f"{len(keys)}: {listed(keys)}; pass covariate_keys as a mapping from site to columns"
        )
    return keys, names


def group_by_site(keys: Iterable[str], names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the columns of each site, from what `read_sites` returns."""
    keys = tuple(keys)
    sites: dict[str, tuple[str, ...]] = {}
    for site, key in zip(names or (JOINT,) * len(keys), keys, strict=True):
        sites[site] = (*sites.get(site, ()), key)
    return sites


def _columns(site: Any, value: Any) -> tuple[str, ...]:
    columns = (value,) if isinstance(value, str) else (*value,)
    if not columns or "" in columns:
        raise SchemaError(
            f"covariate_keys: site {site!r} has {'an empty' if columns else 'no'} obs column, "
            "wanted one or more; name them, or leave the site out"
        )
    return columns


def _check_name(name: Any) -> None:
    if name in _TAKEN:
        raise SchemaError(
            f"covariate_keys: {name!r} cannot be the site of a covariate, {listed(_TAKEN)} have "
            "their own meaning; call the site otherwise, for instance by its column"
        )
    if not (isinstance(name, str) and name.isidentifier()) or iskeyword(name):
        raise SchemaError(
            f"covariate_keys: {name!r} is no name for a site, wanted letters, digits and '_' that "
            "make a Python identifier; write {'cell_line': ...} for {'cell line': ...}"
        )
