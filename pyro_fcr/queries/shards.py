"""Answers in parts that were drawn apart, by other processes or machines, as the one they are."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data.io import layer_names, open_with
from pyro_fcr.draws import QueryError, block_size
from pyro_fcr.queries.answers import Output, Part, assemble, read_answer, read_shard
from pyro_fcr.queries.fitted import Fitted
from pyro_fcr.queries.libraries import Depth
from pyro_fcr.queries.targets import Asked
from pyro_fcr.values import several


def join_shards(
    shards: Iterable[AnnData | str | Path], *, store: str | Path | None = None
) -> AnnData:
    """Read all shards of an answer as one: what the question without ``shard=`` gives, bit for bit.

    Parameters
    ----------
    shards
        The shards, in any order: paths of ``.h5ad`` files or ``.zarr`` stores, or AnnData.
    store
        A new ``.h5ad`` or ``.zarr`` to write the answer to part by part; None reads it into memory.

    Returns
    -------
    The answer; with ``store`` one whose ``X`` and layers are read from the file where they are
    looked at.

    Raises
    ------
    pyro_fcr.QueryError
        Shards are missing, repeated or of different questions, or one is no shard; names them.
    pyro_fcr.seals.DamagedError
        A file is not what was written.

    Examples
    --------
    >>> import pyro_fcr
    >>> from pyro_fcr.queries import Output, join_shards
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()[::10].copy()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> ask = {"treatment": "panobinostat", "seed": 1}
    >>> parts = [fcr.counterfactual(**ask, output=Output(shard=f"{i}/3")) for i in (1, 2, 3)]
    >>> whole = fcr.counterfactual(**ask)
    >>> (join_shards(parts).X != whole.X).nnz
    0
    """
    Output(store=store).check_free()
    found = _in_order({_name(each, at): _read(each) for at, each in enumerate(several(shards), 1)})
    first = found[0]
    record = {name: said for name, said in first.uns["pyro_fcr"].items() if name != "shard"}
    obs = pd.concat([each.obs for each in found])
    frame = AnnData(obs=obs, var=first.var, uns={**first.uns, "pyro_fcr": record})
    return assemble(frame, _parts(found), store=store)


def query_digest(fcr: Fitted, record: Mapping[str, Any], asked: Asked, depth: Depth) -> str:
    """Return a digest of a question, its cells' names and labels, and the model that is asked."""
    columns = [key for key in fcr.registry.schema.columns if key in asked.obs]
    labels = asked.obs[columns].astype(str)
    parts = [
        json.dumps([record, fcr.registry.genes], sort_keys=True).encode(),
        pd.util.hash_pandas_object(labels).to_numpy().tobytes(),
    ]
    for program in (fcr.model, fcr.guide):
        for name, value in program.state_dict().items():
            parts += [name.encode(), np.ascontiguousarray(value.cpu().numpy()).tobytes()]
    parts += [s.numpy().tobytes() for s in (depth.sizes, depth.ratio) if s is not None]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _name(shard: Any, at: int) -> str:
    return f"shard {at} of those given" if isinstance(shard, AnnData) else str(shard)


def _read(shard: AnnData | str | Path) -> AnnData:
    return shard if isinstance(shard, AnnData) else open_with(shard, read_answer)


def _in_order(shards: Mapping[str, AnnData]) -> list[AnnData]:
    """Return the shards by their numbers, if these are all of one answer."""
    if not shards:
        raise QueryError("join_shards: no shards are given.")
    said = {name: _said(name, adata) for name, adata in shards.items()}
    first, (_, n_shards, query) = next(iter(said.items()))
    by_number: dict[int, str] = {}
    for name, (number, n, other) in said.items():
        if (n, other) != (n_shards, query):
            what = (
                "another question" if n == n_shards else f"an answer in {n} shards, not {n_shards},"
            )
            raise QueryError(f"{name} is a part of {what} than {first}: join those of one alone.")
        if number in by_number:
            raise QueryError(
                f"{name} and {by_number[number]} are both shard {number}/{n_shards}: give "
                "each once."
            )
        by_number[number] = name
    if missing := sorted({*range(1, n_shards + 1)} - set(by_number)):
        some = ", ".join(f"{number}/{n_shards}" for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise QueryError(
            f"join_shards: shard {some}{more} is missing; {first} is one of {n_shards}. Write it "
            "with the same question, and give all."
        )
    return [shards[by_number[number]] for number in sorted(by_number)]


def _said(name: str, adata: AnnData) -> tuple[int, int, str]:
    """Return a shard's number, how many there are, and the digest of their question."""
    try:
        said = adata.uns["pyro_fcr"]["shard"]
        return (*read_shard(str(said["shard"])), str(said["query"]))
    except (LookupError, TypeError, QueryError) as error:
        raise QueryError(
            f"{name} is not a shard of an answer: shards are written with --shard 1/8, or "
            "Output(shard='1/8')."
        ) from error


def _parts(shards: Iterable[AnnData]) -> Iterator[Part]:
    for adata in shards:
        step = block_size(adata.n_vars)
        names = layer_names(adata)
        for start in range(0, adata.n_obs, step):
            rows = slice(start, min(start + step, adata.n_obs))
            yield {"X": adata.X[rows], **{name: adata.layers[name][rows] for name in names}}
