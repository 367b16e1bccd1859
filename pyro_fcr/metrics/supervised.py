"""What can be read of true latents from expression at all: a regression that knows the truth."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from pyro_fcr.metrics import arrays
from pyro_fcr.metrics.arrays import Blocks, FloatArray

_COMPONENTS, _FOLDS = 50, 2
_NETWORK: Mapping[str, Any] = {
    "hidden_layer_sizes": (128, 128),
    "learning_rate_init": 3e-3,
    "early_stopping": True,
    "n_iter_no_change": 5,
    "max_iter": 60,
}


def supervised_latents(
    truth: Blocks, expression: ArrayLike, condition: ArrayLike, *, seed: int = 0
) -> dict[str, FloatArray]:
    """Predict the true latents of cells from their expression and condition, supervised.

    Counts are noisy, so that nothing reads latents off them exactly. A network is trained on the
    true latents of half of the cells and predicts those of the others, in turns. What its
    predictions score is a ceiling for models that never see the truth; not a strict one, as a
    generative model may know more of the noise.

    Parameters
    ----------
    truth
        Block name to ``(n_cells, n_dims)``.
    expression
        Normalised, on the log1p scale, ``(n_cells, n_genes)``.
    condition
        Label of each cell, ``(n_cells,)``.
    seed
        Seed of folds and networks.

    Returns
    -------
    Block name to ``(n_cells, n_dims)``.

    Raises
    ------
    ValueError
        The rows do not match, an entry is not finite, or there is one condition only.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z, x = rng.normal(size=(600, 2)), rng.integers(2, size=600)
    >>> expression = z @ rng.normal(size=(2, 30)) + rng.normal(size=(600, 30))
    >>> found = supervised_latents({"z_x": z}, expression, x)["z_x"]
    >>> bool(0.7 < np.corrcoef(found[:, 0], z[:, 0])[0, 1] < 1.0)
    True
    """
    true = arrays.matrices(truth, "truth")
    values = arrays.matrix(expression, "expression")
    arrays.check_rows({**true, "expression": values})
    codes = arrays.condition_codes(condition, len(values))
    target = np.concatenate(list(true.values()), axis=1)
    center, spread = target.mean(axis=0), target.std(axis=0)
    n_components = min(_COMPONENTS, *values.shape)
    components = PCA(n_components, random_state=seed).fit_transform(values)
    features = np.hstack([scale(components), np.eye(codes.max() + 1)[codes]])
    found = np.empty_like(target)
    for fit, held in KFold(_FOLDS, shuffle=True, random_state=seed).split(features):
        network = MLPRegressor(random_state=seed, **_NETWORK)
        network.fit(features[fit], (target[fit] - center) / spread)
        found[held] = network.predict(features[held]).reshape(len(held), -1) * spread + center
    ends = np.cumsum([z.shape[1] for z in true.values()])[:-1]
    return dict(zip(true, np.split(found, ends, axis=1), strict=True))
