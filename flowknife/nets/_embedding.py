"""Features of observations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtr, ndtri

from flowknife._split import rounded
from flowknife._types import Constant, Key, as_key, built
from flowknife._xla import precise
from flowknife.nets._vectors import MLP


class Embedding(eqx.Module):
    """Features of an observation: fixed normal scores, and learned features.

    Each number y_i is transformed by a monotone map that makes its training distribution normal. The map is piecewise
    linear between the quantiles of the training observations, so that the networks do not see outliers or ranges of
    many decades. For a long observation, the leading principal components of the scores are used. An MLP learns further
    features.

    Args:
        y: training observations, shape (n, m).
        most: largest number of scores; longer observations are reduced to this number of principal components.
        learned: number of learned features, 0 for none.
        width: hidden units of the network that learns them.
        key: random key of its initial weights.
    """

    knots: Constant
    scores: Constant
    mean: Constant
    axes: Constant | None
    net: MLP | None

    def __init__(self, y: np.ndarray, *, most: int = 32, learned: int = 0, width: int = 128, key: Key = None):
        self.knots, self.scores = (Constant(jnp.asarray(part, jnp.float32)) for part in _normal_scores(y))
        scores = np.asarray(_scores(jnp.asarray(y[:20_000], jnp.float32), self.knots.value, self.scores.value))
        self.mean = Constant(jnp.asarray(scores.mean(axis=0)))
        self.axes = None
        if y.shape[1] > most:
            _, spread, axes = np.linalg.svd(scores - scores.mean(axis=0), full_matrices=False)
            scale = np.maximum(spread[:most] / len(scores) ** 0.5, 1e-3 * spread[0] / len(scores) ** 0.5)
            self.axes = Constant(jnp.asarray(axes[:most].T / scale))
        self.net = built(MLP, (y.shape[1],), (learned,), width=width, key=as_key(key)) if learned else None

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Event shape of an observation."""
        return self.knots.value.shape[-2:-1]

    @property
    def features(self) -> int:
        """Length of the result."""
        fixed = len(self.mean.value) if self.axes is None else self.axes.value.shape[1]
        return fixed + (0 if self.net is None else self.net.out_shape[0])

    @precise
    def __call__(self, y: Float[Array, "... m"]) -> Float[Array, "... k"]:
        scores = _scores(y, self.knots.value, self.scores.value) - self.mean.value
        fixed = scores if self.axes is None else scores @ self.axes.value
        return fixed if self.net is None else jnp.concatenate([fixed, self.net(scores)], axis=-1)


@jax.jit
def _scores(y, knots, scores):
    return jax.vmap(_interpolate, in_axes=(-1, 0, 0), out_axes=-1)(y, knots, scores)


def _interpolate(y, knots, scores):
    """The piecewise linear map through the knots, extrapolated linearly up to 3 beyond the outermost scores."""
    inside = jnp.interp(y, knots, scores)
    low, high = _slope(knots[:2], scores[:2]), _slope(knots[-2:], scores[-2:])
    beyond = low * jnp.minimum(y - knots[0], 0.0) + high * jnp.maximum(y - knots[-1], 0.0)
    return inside + jnp.clip(beyond, -3.0, 3.0)


def _slope(knots, scores):
    run = knots[1] - knots[0]
    return jnp.where(run > 0, (scores[1] - scores[0]) / jnp.where(run > 0, run, 1.0), 0.0)


def _normal_scores(y: np.ndarray, most: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Knots (m, k), ascending, and the normal scores there; those of equal knots are their mean."""
    count = max(min(most, rounded(len(y) // 4)), 2)
    levels = ndtr(np.linspace(-1, 1, count) * ndtri(1 - 1 / max(len(y) / 4, 4)))
    knots = np.quantile(np.asarray(y, np.float64), levels, axis=0).T.astype(np.float32)
    scores = np.broadcast_to(ndtri(levels), knots.shape)
    # ties (discrete numbers, a constant) share one score; values between knots are interpolated linearly
    equal = [np.unique(row, return_inverse=True)[1] for row in knots]
    means = [np.bincount(place, own) / np.bincount(place) for place, own in zip(equal, scores, strict=True)]
    return knots, np.stack([mean[place] for mean, place in zip(means, equal, strict=True)])
