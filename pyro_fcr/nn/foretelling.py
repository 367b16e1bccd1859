"""What pairs of treatment and context do that were never seen, by regression on those that were.

A context of which some treatments are known is described by the contexts that resemble it in what
these do. How far that can be trusted is learnt from the seen pairs, each left out in turn: where
none foretells another, every unseen pair gets the average.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PENALTIES: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)  # of the mean square of a context
_MOST_PAIRS: Final = 300  # that are left out to choose among them


class _Regression(NamedTuple):
    """A pair's context on the contexts that had its treatment, over the other treatments."""

    contexts: npt.NDArray[np.intp]
    squares: Floats
    axes: Floats
    inner: Floats

    def weights(self, penalty: float) -> Floats:
        """Return the weights of the contexts."""
        size = self.squares.sum() / max(len(self.contexts), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shrunk = np.nan_to_num((self.axes.T @ self.inner) / (self.squares + penalty * size))
        return self.axes @ shrunk


def context_weights(effects: Floats, shares: Floats) -> Floats:
    """Weigh the contexts of each treatment to foretell what it does in another.

    Parameters
    ----------
    effects
        What each treatment does in each context, ``(n_treatments, n_contexts, n_dimensions)``;
        those of pairs that were not seen are not looked at.
    shares
        Share of each treatment's cells by context, ``(n_treatments, n_contexts)``; 0 where a pair
        was not seen.

    Returns
    -------
    ``(n_treatments, n_contexts, n_contexts)``: weights that an unseen pair (first two axes) gives
    the same treatment's deviations from its average in the contexts of the last axis; 0 for pairs
    that were seen. All are 0 where seen pairs, left out in turn, are not foretold any better than
    by the average.

    Examples
    --------
    >>> contexts = np.array([1.0, -1.0, 3.0, -3.0])  # which differ in one way
    >>> effects = np.array([1.0, 3.0, -2.0, 2.0])[:, None, None] * contexts[:, None]
    >>> shares = np.full((4, 4), 1 / 4)
    >>> shares[2] = [1 / 3, 1 / 3, 0, 1 / 3]
    >>> own = effects[2] - effects[2, [0, 1, 3]].mean()
    >>> foretold = context_weights(effects, shares)[2, 2] @ own
    >>> foretold.round(1), own[2]
    (array([-7.9]), array([-8.]))
    """
    seen = shares > 0
    pairs = np.argwhere(seen & (seen.sum(axis=1, keepdims=True) > 2))
    rng = np.random.default_rng(0)
    pairs = pairs[rng.permutation(len(pairs))[:_MOST_PAIRS]]
    losses = np.zeros(len(_PENALTIES))
    for t, x in pairs:
        found, own = _regression(effects, shares, t, x), _deviations(effects[t], shares[t], x)
        for i, penalty in enumerate(_PENALTIES):
            foretold = found.weights(penalty) @ own[found.contexts]
            losses[i] += ((foretold - own[x]) ** 2).sum()
    penalty = _PENALTIES[::-1][int(np.argmin(losses[::-1]))]
    weights = np.zeros((*shares.shape, shares.shape[1]))
    for t, x in np.argwhere(~seen):
        found = _regression(effects, shares, t, x)
        weights[t, x, found.contexts] = found.weights(penalty)
    return weights


def _deviations(effects: Floats, share: Floats, without: int) -> Floats:
    """Return a treatment's effects minus their average over all seen contexts but one."""
    seen = (share > 0)[:, None]
    others = np.where(np.arange(len(share)) == without, 0.0, share)
    average = others @ np.where(seen, effects, 0.0) / max(others.sum(), 1e-12)
    return np.where(seen, effects - average, 0.0)


def _regression(effects: Floats, shares: Floats, t: int, x: int) -> _Regression:
    level = np.arange(shares.shape[1])
    contexts = np.flatnonzero((shares[t] > 0) & (level != x))
    squares, inner = np.zeros((len(contexts), len(contexts))), np.zeros(len(contexts))
    for other in np.flatnonzero(shares[:, x] > 0):
        common = np.where(np.isin(level, [*contexts, x]), shares[other], 0.0)
        if other != t and common[contexts].any():
            own = _deviations(effects[other], common, x)
            squares += own[contexts] @ own[contexts].T
            inner += own[contexts] @ own[x]
    values, axes = np.linalg.eigh(squares)
    return _Regression(contexts, values.clip(0.0), axes, inner)
