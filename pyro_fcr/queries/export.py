"""A fitted model as ArviZ has it: groups of named draws with named dimensions.

ArviZ and xarray are imported when they are needed.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from pyro_fcr.data import Registry
from pyro_fcr.data.labels import label_text
from pyro_fcr.draws import QueryError
from pyro_fcr.draws.sites import Draws, Sampler
from pyro_fcr.queries.fitted import Fitted, Source, drawn_blocks
from pyro_fcr.queries.marks import condition_marks
from pyro_fcr.queries.targets import (
    Asked,
    Query,
    find_genes,
    intervene,
)
from pyro_fcr.values import checked, shown

_TARGET = ("treatment", "dose", "covariates", "hold")
_SAMPLE = ("chain", "draw")
_MARKS = ("extrapolated", "support")

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


@checked(error=QueryError)
def to_arviz(
    fcr: Fitted,
    adata: Source = None,
    *,
    predictions: Mapping[str, Any] | None = None,
    genes: str | Iterable[str] | None = None,
    n_draws: int = 100,
    seed: int = 0,
) -> Any:
    """Draw latents and expression of cells, for ArviZ to summarise, plot and store.

    Parameters
    ----------
    fcr
        A fitted model.
    adata
        The cells; None takes the model's own. A few hundred are usual: memory is 4 bytes times
        cells, kept genes and draws for each of three groups.
    predictions
        Another condition for the same cells, in the words of
        :meth:`pyro_fcr.FCR.counterfactual`: ``treatment``, ``dose``, ``covariates``, ``hold``.
        None makes no such group.
    genes
        The genes whose expression is kept, in this order; None keeps all.
    n_draws
        Draws per cell.
    seed
        Seed of the draws; the global random state is left alone.

    Returns
    -------
    ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.x, with the groups

    - ``posterior``: the latents, drawn from the guide given the cells' expression;
    - ``posterior_predictive``: ``y`` with its observation noise, given the latents of the same
      draw in ``posterior``;
    - ``log_likelihood``: ``y`` of a cell given its latents, nats, summed over **all** genes;
    - ``prior``, ``prior_predictive``: latents from their conditional priors under the cells'
      own treatment and covariates, and ``y`` given them;
    - ``predictions``: latents and ``y`` of the same cells under the other condition. What is
      held is that of the same draw in ``posterior``, so that a difference from
      ``posterior_predictive`` is one cell's own;
    - ``observed_data``: ``y``, counts or log1p values as in the schema;
    - ``constant_data``, ``predictions_constant_data``: the sites that are set (``x``, ``t``,
      ...), ``library``, and for each cell the columns of the schema, for the predictions those
      of the target with its ``extrapolated`` and ``support``, without what the target causes and
      is drawn. A column whose name is taken has ``obs_`` before it.

    Dimensions are ``chain`` (one), ``draw``, ``cell``, ``gene``, ``<latent>_dim``, ``<covariate
    site>_level``, ``t_agent`` (``t_feature`` with treatment features). A latent that all cells
    share has no ``cell``.

    Raises
    ------
    ImportError
        ArviZ is not installed.
    pyro_fcr.QueryError
        A gene or the target is unknown, or ``n_draws`` is less than 1.
    pyro_fcr.SchemaError
        The cells or the target are not what the schema says.

    Notes
    -----
    The spread of ``posterior`` is what the guide leaves open about a cell, that of a predictive
    group has the observation noise in it. Weights of the networks are point estimates: their
    uncertainty is nowhere, unless the model draws them as shared latents.

    The draws are independent, from variational inference: R-hat and effective sample sizes say
    nothing (``az.summary(..., kind="stats")`` leaves them out).

    ``az.loo`` leaves out one cell at a time. Each cell has latents of its own, which the guide
    drew having read that very cell; without it they have only their prior, far from the draws.
    So most Pareto k will be high, and then the estimate is not to be trusted, in either
    direction; and the networks have seen the cell, too. To compare models, take
    :meth:`pyro_fcr.FCR.elbo` of held-out cells.

    Examples
    --------
    >>> import pyro_fcr
    >>> adata = pyro_fcr.datasets.gbm_panobinostat()
    >>> schema = pyro_fcr.Schema(
    ...     treatment_key="treatment", control="control", covariate_keys="patient"
    ... )
    >>> fcr = pyro_fcr.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> cells, genes = adata[:40].copy(), adata.var_names[:5]
    >>> target = {"treatment": "panobinostat"}
    >>> data = fcr.to_arviz(cells, genes=genes, predictions=target, n_draws=20)
    >>> dict(data.posterior_predictive["y"].sizes)
    {'chain': 1, 'draw': 20, 'cell': 40, 'gene': 5}
    >>> by_patient = data.posterior["z_x"].groupby(data.constant_data["patient"]).mean()
    >>> "patient" in by_patient.dims
    True
    """
    _arviz_version()
    source = fcr.source(adata)
    target = None if predictions is None else _target(fcr, predictions, source.obs, seed)
    kept = find_genes(fcr.registry, genes)
    at = kept.to(fcr.device)
    sampler = Sampler(model=fcr.model, guide=fcr.guide, graph=fcr.graph, genes=at, n_draws=n_draws)
    draws, fixed = _sample(fcr, sampler, source, target, seed)
    coords = _coords(source, kept.tolist(), fcr.registry)
    groups = _groups(fcr, draws, fixed, source.obs, target)
    return _container({name: _dataset(group, coords) for name, group in groups.items()})


def _target(fcr: Fitted, words: Mapping[str, Any], obs: pd.DataFrame, seed: int) -> Asked:
    if not isinstance(words, Mapping):
        raise QueryError(f"predictions is {shown(words)}; expected a mapping with a target.")
    if unknown := set(words) - set(_TARGET):
        raise QueryError(
            f"predictions: {sorted(unknown)[0]!r} is not a part of a target; these are: "
            f"{', '.join(_TARGET)}."
        )
    given = {key: value for key, value in words.items() if value is not None}
    hold = given.pop("hold", None)
    return intervene(fcr, Query(**given, seed=seed), obs, hold=hold)


def _arviz_version() -> int:
    try:
        return int(version("arviz").split(".")[0])
    except PackageNotFoundError as error:
        raise ImportError(
            "to_arviz needs ArviZ, which is not installed: pip install arviz h5netcdf"
        ) from error


def _sample(
    fcr: Fitted, sampler: Sampler, source: AnnData, target: Asked | None, seed: int
) -> tuple[dict[str, Draws], dict[str, np.ndarray]]:
    chunks: list[dict[str, Draws]] = []
    fixed: list[dict[str, np.ndarray]] = []
    asked = target or Asked(obs=source.obs)
    for batch, rows, own in drawn_blocks(fcr, fcr.chunks(source), seed=seed):
        do = {site: each.of(rows).to(fcr.device, fcr.dtype) for site, each in asked.do.items()}
        kept = {"hold": asked.held, "released": asked.released}
        first = chunks[0] if chunks else None
        found = sampler.groups(batch, do=do, first=first, seed=own, **kept)
        chunks.append({name: each.to("cpu") for name, each in found.items()})
        values = {**batch.values, "y": batch["y"][:, sampler.genes]}
        fixed.append({name: value.cpu().numpy() for name, value in values.items()})
    draws = {
        name: Draws.join([chunk[name] for chunk in chunks], fcr.graph.shared) for name in chunks[0]
    }
    return draws, {name: np.concatenate([f[name] for f in fixed]) for name in fixed[0]}


def _coords(source: AnnData, kept: list[int], registry: Registry) -> dict[str, Any]:
    named = {"cell": source.obs_names, "gene": [registry.genes[i] for i in kept]}
    if registry.schema.treatment_features is None:
        named["t_agent"] = registry.agents
    for site, keys in registry.schema.sites.items():
        pairs = [(key, level) for key in keys for level in registry.covariates[key]]
        named[f"{site}_level"] = [
            level if len(keys) == 1 else f"{key}={level}" for key, level in pairs
        ]
    return {dim: np.array([str(name) for name in names], object) for dim, names in named.items()}


def _groups(
    fcr: Fitted,
    draws: Mapping[str, Draws],
    fixed: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    target: Asked | None,
) -> dict[str, Variables]:
    registry, score = fcr.registry, draws["posterior"].log_likelihood
    assert score is not None  # the cells have expression
    latents = {name: _latents(drawn, fcr) for name, drawn in draws.items()}
    y = {name: {"y": _drawn_y(drawn, registry)} for name, drawn in draws.items()}
    groups: dict[str, Variables] = {
        "posterior": latents["posterior"],
        "posterior_predictive": y["posterior"],
        "log_likelihood": {"y": ((*_SAMPLE, "cell"), score.numpy()[None])},
        "prior": latents["prior"],
        "prior_predictive": y["prior"],
        "observed_data": {"y": (("cell", "gene"), _counts(fixed["y"], registry))},
        "constant_data": _constants(fixed, obs, registry),
    }
    if target is not None:
        sites = {site: each.of(slice(None)).numpy() for site, each in target.do.items()}
        known = target.obs.assign(**{key: obs[key] for key in target.open_keys})
        constants = _constants({**fixed, **sites}, known, registry)
        drawn_anew = {*target.released, *(w for k in target.open_keys for w in (k, f"obs_{k}"))}
        constants = {name: kept for name, kept in constants.items() if name not in drawn_anew}
        marks = condition_marks(target.obs, registry, open_keys=target.open_keys)
        constants |= {name: (("cell",), values) for name, values in marks.items()}
        groups["predictions"] = {**latents["predictions"], **y["predictions"]}
        groups["predictions_constant_data"] = constants
    return groups


def _latents(draws: Draws, fcr: Fitted) -> Variables:
    variables: Variables = {}
    for site, values in draws.latents.items():
        dims = _SAMPLE if site in fcr.graph.shared else (*_SAMPLE, "cell")
        rest = values.ndim + 1 - len(dims)
        names = [f"{site}_dim"] if rest == 1 else [f"{site}_dim_{i}" for i in range(rest)]
        variables[site] = ((*dims, *names), values.numpy()[None])
    return variables


def _drawn_y(draws: Draws, registry: Registry) -> tuple[tuple[str, ...], np.ndarray]:
    return (*_SAMPLE, "cell", "gene"), _counts(draws.y.numpy()[None], registry)


def _counts(values: np.ndarray, registry: Registry) -> np.ndarray:
    """Return counts as integers, which ArviZ then plots as discrete."""
    if registry.schema.expression != "counts":
        return values
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    return whole if np.array_equal(whole, values) else values


def _constants(fixed: Mapping[str, np.ndarray], obs: pd.DataFrame, registry: Registry) -> Variables:
    schema = registry.schema
    agents = "t_agent" if schema.treatment_features is None else "t_feature"
    variables: Variables = {s: (("cell", f"{s}_level"), fixed[s]) for s in schema.sites}
    variables["t"] = (("cell", agents), fixed["t"])
    variables["library"] = (("cell",), fixed["library"][:, 0])
    taken = {*variables, *(dim for dims, _ in variables.values() for dim in dims), *_MARKS}
    for key in (schema.treatment_key, schema.dose_key, *schema.covariate_keys):
        if key is not None:
            name = f"obs_{key}" if key in taken else key
            variables[name] = (("cell",), _label(obs[key]))
    return variables


def _label(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(np.float64, na_value=np.nan)
    return np.array([label_text(value, where=str(column.name)) for value in column], object)


def _dataset(variables: Variables, coords: Mapping[str, Any]) -> Any:
    import xarray  # noqa: PLC0415

    dataset = xarray.Dataset(variables, attrs=_attrs())
    named = {d: coords.get(str(d), np.arange(n)) for d, n in dataset.sizes.items()}
    return dataset.assign_coords(named)


def _attrs() -> dict[str, str]:
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "pyro_fcr",
        "creation_library_version": version("pyro-fcr"),
        "creation_library_language": "Python",
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "sampling_method": "SVI: independent draws from the guide",
    }


def _container(groups: Mapping[str, Any]) -> Any:
    import xarray  # noqa: PLC0415

    # Not by hasattr(arviz, "InferenceData"): ArviZ 1 answers with DataTree, and a warning.
    if _arviz_version() >= 1:
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=_attrs()), **groups})
    from arviz import InferenceData  # noqa: PLC0415

    return InferenceData(attrs=_attrs(), **groups)
