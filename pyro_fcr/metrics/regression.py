"""A nonlinear regression of latents on latents, within conditions; and DCI, which rests on it.

Ridge on a rich basis (linear, hinges, polynomials, random Fourier features) whose condition means
are removed on both sides, which is the same as ridge with a free intercept per condition; then,
on the residuals, one linear map per condition, shrunk to none. Penalties are chosen per target on
cells that neither fit nor test. A linear part that is always there is what brings truth on truth to
1; intercepts per condition, not only latents, are what lets it predict what lies within conditions.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import entropy
from sklearn.preprocessing import PolynomialFeatures

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.arrays import Blocks, Codes, FloatArray

_N_CELLS = 14_000
_LEAST_CELLS = 60
_ROLES = np.array([0, 2, 0, 1, 0, 2, 0])  # of seven cells: 0 fit, 1 choose penalties, 2 test
_LARGEST = 4.0  # standard deviations; beyond, only the linear part goes on
_PENALTIES = 10.0 ** np.arange(-7.0, 4.0)  # per cell
_LEAST_R2 = 0.05  # below, a dimension counts as not predicted
_SHRINKAGE = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # cells' worth, of a condition's own map


class Roles(NamedTuple):
    """Rows that fit, choose the penalties, and test."""

    fit: Codes
    choose: Codes
    test: Codes


def draw_roles(codes: Codes, *, seed: int) -> Roles:
    """Divide at most 14,000 cells 4 : 1 : 2 within each condition; conditions below 7 fall out."""
    order = np.random.default_rng(seed).permutation(len(codes))[:_N_CELLS]
    order = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.repeat(counts >= len(_ROLES), counts)
    if kept.sum() < _LEAST_CELLS:
        raise ValueError(
            f"{kept.sum()} cells lie in conditions of at least {len(_ROLES)} cells; a held-out R2 "
            f"needs {_LEAST_CELLS}. Pass more cells or coarser conditions."
        )
    role = np.where(kept, _ROLES[rank % len(_ROLES)], -1)
    return Roles(*(order[role == number] for number in range(3)))


class _Basis:
    """Features of latents: standardised values first, then hinges, products and waves."""

    def __init__(self, latent: FloatArray, *, n_waves: int = 300, seed: int) -> None:
        rng, n_dims = np.random.default_rng(seed), latent.shape[1]
        scale = latent.std(axis=0)
        self.n_dims = n_dims
        self.mean = latent.mean(axis=0)
        self.scale = np.where(scale > 1e-12 * (np.abs(self.mean) + 1e-300), scale, np.inf)
        self.knots = np.quantile(self._standard(latent), np.linspace(0.02, 0.98, 9), axis=0)
        widths = np.repeat([0.3, 0.8], n_waves // 2)
        self.waves = rng.normal(size=(n_dims, len(widths))) * widths
        self.phases = rng.uniform(0, 2 * np.pi, len(widths))
        self.products = PolynomialFeatures(3 if n_dims <= 8 else 2, include_bias=False)

    def _standard(self, latent: FloatArray) -> FloatArray:
        return (latent - self.mean) / self.scale

    def __call__(self, latent: FloatArray) -> FloatArray:
        linear = self._standard(latent)
        clipped = linear.clip(-_LARGEST, _LARGEST)
        hinges = np.maximum(clipped[:, None] - self.knots, 0.0).reshape(len(latent), -1)
        products = self.products.fit_transform(clipped)
        waves = np.cos(clipped @ self.waves + self.phases)
        return np.concatenate([linear, hinges, products, waves], axis=1)


class Regression(NamedTuple):
    """A fitted regression; call it with latents and conditions to predict."""

    basis: _Basis
    feature_means: FloatArray
    target_means: FloatArray
    coefficients: FloatArray
    maps: FloatArray

    def baseline(self, codes: Codes) -> FloatArray:
        """Return condition means of the target over the fitting cells, ``(n_cells, n_targets)``."""
        return self.target_means[codes]

    def with_one_map(self) -> "Regression":
        """Return the regression without maps of the conditions' own, only with their means."""
        return self._replace(maps=np.zeros_like(self.maps))

    def __call__(self, latent: FloatArray, codes: Codes) -> FloatArray:
        """Predict the targets, ``(n_cells, n_targets)``."""
        features = self.basis(latent) - self.feature_means[codes]
        own = np.einsum("ni,nij->nj", features[:, : self.basis.n_dims], self.maps[codes])
        return self.baseline(codes) + features @ self.coefficients + own


def regress(
    latent: FloatArray, target: FloatArray, *, codes: Codes, roles: Roles, seed: int
) -> Regression:
    """Fit targets ``(n_cells, n_targets)`` on a latent block ``(n_cells, n_dims)``.

    All targets at once cost as much as one. `codes` number the conditions whose means are removed;
    zeros throughout leave one intercept.
    """
    basis, n_groups, fit = _Basis(latent[roles.fit], seed=seed), int(codes.max()) + 1, roles.fit
    means = arrays.group_means(basis(latent[fit]), codes[fit], n_groups)
    target_means = arrays.group_means(target[fit], codes[fit], n_groups)
    (a, y), (a_held, y_held) = (
        (basis(latent[rows]) - means[codes[rows]], target[rows] - target_means[codes[rows]])
        for rows in (fit, roles.choose)
    )
    coefficients = _ridge(a, y, a_held=a_held, y_held=y_held)
    maps = _maps(
        (a[:, : basis.n_dims], y - a @ coefficients, codes[fit]),
        (a_held[:, : basis.n_dims], y_held - a_held @ coefficients, codes[roles.choose]),
        n_groups=n_groups,
    )
    return Regression(basis, means, target_means, coefficients, maps)


def _ridge(a: FloatArray, y: FloatArray, *, a_held: FloatArray, y_held: FloatArray) -> FloatArray:
    """Fit ridge on features of unit scale; each target's penalty is what held-out cells prefer."""
    scale = a.std(axis=0)
    scale = np.where(scale > 1e-6, scale, np.inf)  # what conditions fix leaves rounding only
    scaled, held = a / scale, a_held / scale
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    moments = vectors.T @ (scaled.T @ y)
    paths = np.stack([
        vectors @ (moments / (values.clip(0.0) + penalty * len(a))[:, None])
        for penalty in _PENALTIES
    ])  # fmt: skip
    errors = ((y_held - held @ paths) ** 2).sum(axis=1)
    return paths[errors.argmin(axis=0), :, np.arange(y.shape[1])].T / scale[:, None]


_Sample = tuple[FloatArray, FloatArray, Codes]


def _maps(fit: _Sample, held: _Sample, *, n_groups: int) -> FloatArray:
    """Fit linear maps from latents to residuals by condition, ``(n_groups, n_dims, n_targets)``.

    Zero for a target unless some shrinkage of the maps helps on the held-out cells.
    """
    latent, residual, codes = fit
    n_dims, n_targets = latent.shape[1], residual.shape[1]
    grams, moments = np.zeros((n_groups, n_dims, n_dims)), np.zeros((n_groups, n_dims, n_targets))
    np.add.at(grams, codes, latent[:, :, None] * latent[:, None])
    np.add.at(moments, codes, latent[:, :, None] * residual[:, None])
    shrunk = [np.linalg.solve(grams + each * np.eye(n_dims), moments) for each in _SHRINKAGE]
    candidates = [np.zeros_like(moments), *shrunk]
    errors = [
        ((held[1] - np.einsum("ni,nij->nj", held[0], maps[held[2]])) ** 2).sum(axis=0)
        for maps in candidates
    ]
    best = np.argmin(errors, axis=0)
    return np.stack([candidates[k][:, :, j] for j, k in enumerate(best)], axis=-1)


def r2(truth: FloatArray, predicted: FloatArray, baseline: FloatArray) -> float:
    """Return the share of the baseline's squared error, over cells and dimensions, that is gone.

    It is nan where the baseline leaves nothing to predict.
    """
    total = float(((truth - baseline) ** 2).sum())
    if total <= 1e-18 * float((truth**2).sum()) or total == 0:
        return float("nan")
    return 1.0 - float(((truth - predicted) ** 2).sum()) / total


def dci(
    truth: Blocks, estimate: Blocks, *, condition: ArrayLike | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure disentanglement, completeness and informativeness.

    The measures are those of Eastwood and Williams (2018, ICLR).

    One regression (that of :func:`block_r2`) predicts all true from all estimated dimensions. The
    importance of an estimated for a true dimension is how much the held-out squared error, in units
    of the true variance, grows when the estimated one is permuted (within conditions, if given).
    A true dimension that is predicted with an R2 below 0.05 is served by none.

    Parameters
    ----------
    truth, estimate
        Block name to ``(n_cells, n_dims)``; at least two blocks each, which may differ in name.
    condition
        Labels, ``(n_cells,)``, for importances and informativeness *within conditions*.
    seed
        Seed of the division of the cells, the Fourier features and the permutations.

    Returns
    -------
    Rows ``dimensions`` and ``blocks`` (importances summed within blocks); columns:

    ``disentanglement``
        1 if every estimated dimension serves one true dimension only: one minus the entropy of its
        importances, in units of the largest possible, weighted by importance.
    ``completeness``
        1 if every true dimension is served by one estimated dimension only; plain mean over the
        true ones, those served by none counting as 0.
    ``informativeness``
        Held-out R2 of all true from all estimated dimensions, weighted by variance; the same in
        both rows.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, there is one condition only, too few cells
        are left, or there are fewer than two blocks on a side.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = {name: rng.normal(size=(2000, 2)) for name in ("z_x", "z_t")}
    >>> dci(z, z).round(2).to_numpy().tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    true, estimated, codes = arrays.checked_blocks(truth, estimate, condition)
    if min(len(true), len(estimated)) < 2:
        raise ValueError(
            f"dci compares two or more blocks on a side, got truth {list(true)} and estimate "
            f"{list(estimated)}."
        )
    importances, informativeness = _importances(
        np.concatenate(list(estimated.values()), axis=1),
        np.concatenate(list(true.values()), axis=1),
        codes=codes,
        seed=seed,
    )
    by_block = _summed(_summed(importances, estimated).T, true).T
    levels = {"dimensions": importances, "blocks": by_block}
    rows = {level: (*_entropies(table), informativeness) for level, table in levels.items()}
    columns = ["disentanglement", "completeness", "informativeness"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _importances(
    latent: FloatArray, target: FloatArray, *, codes: Codes, seed: int
) -> tuple[FloatArray, float]:
    """Return importances ``(n_estimated, n_true)`` and the R2 of the regression."""
    roles = draw_roles(codes, seed=seed)
    fitted = regress(latent, target, codes=codes, roles=roles, seed=seed)
    held, rng = roles.test, np.random.default_rng(seed)
    z, y, labels = latent[held], target[held], codes[held]
    baseline = fitted.baseline(labels)
    unit = ((y - baseline) ** 2).mean(axis=0)
    predictions = [fitted(z, labels)]
    for column in range(z.shape[1]):
        permuted = z.copy()
        permuted[:, column] = z[arrays.shuffle_within(labels, rng), column]
        predictions.append(fitted(permuted, labels))
    errors = ((y - np.stack(predictions)) ** 2).mean(axis=1)
    growth = np.maximum(errors[1:] - errors[0], 0.0)
    growth = np.divide(growth, unit, out=np.zeros_like(growth), where=unit > 0)
    growth[:, errors[0] > (1.0 - _LEAST_R2) * unit] = 0.0  # noise would have an entropy too
    return growth, r2(y, predictions[0], baseline)


def _summed(table: FloatArray, blocks: dict[str, FloatArray]) -> FloatArray:
    starts = np.cumsum([0, *(values.shape[1] for values in blocks.values())])[:-1]
    return np.add.reduceat(table, starts, axis=0)


def _entropies(importances: FloatArray) -> tuple[float, float]:
    """Return disentanglement and completeness of ``(n_estimated, n_true)`` importances."""
    total = importances.sum()
    weights = importances.sum(axis=1) / total if total > 0 else importances.sum(axis=1)
    return float(weights @ _purity(importances)), float(_purity(importances.T).mean())


def _purity(importances: FloatArray) -> FloatArray:
    """Return one minus the relative entropy of each row; 0 for a row without importance."""
    with np.errstate(invalid="ignore"):
        purity = 1.0 - entropy(importances, base=importances.shape[1], axis=1)
    return np.nan_to_num(purity)
