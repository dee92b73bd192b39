"""Diagnostics of flows: the round trip and the distribution of the latents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowknife.bijections import Bijection


@eqx.filter_jit
def there_and_back(bijection: Bijection, x: Array, cond: Array | None = None) -> Array:
    """decode(encode(x)), compiled once for all bijections of one structure."""
    return bijection.decode(bijection.encode(x, cond)[0], cond)[0]


def round_trip_error(bijection: Bijection, x: ArrayLike, cond: Array | None = None) -> float:
    """Largest |decode(encode(x)) - x|, in units of the spread of x.

    Args:
        bijection: the map.
        x: points `(*batch, *shape)`.
        cond: condition, if the map takes one.
    """
    x = jnp.asarray(x)
    return float(jnp.max(jnp.abs(there_and_back(bijection, x, cond) - x)) / jnp.maximum(jnp.std(x), 1e-12))


def principal_plane(x: Float[np.ndarray, "n d"], *others: Float[np.ndarray, "_ d"]) -> list[Float[np.ndarray, "_ 2"]]:
    """Project the rows of `x`, and of each of `others`, onto the two leading principal axes of `x`.

    Every column is standardised with its mean and standard deviation in `x` first, so units do not matter. Works on the
    n x n Gram matrix, so d may be large.
    """
    x = np.asarray(x, np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-12 * np.abs(x).max(axis=0), spread, 1.0)
    centred = (x - mean) / spread
    values, vectors = np.linalg.eigh(centred @ centred.T)
    axes = (centred.T @ vectors[:, ::-1][:, :2]) / np.sqrt(np.maximum(values[::-1][:2], 1e-300))
    return [(np.asarray(rows, np.float64) - mean) / spread @ axes for rows in (x, *others)]


def ks_normal(z: Float[np.ndarray, "..."]) -> float:
    """Kolmogorov-Smirnov distance between all the numbers in `z` and N(0, 1)."""
    z = np.sort(np.ravel(z))
    normal = np.asarray(jax.scipy.stats.norm.cdf(z))
    steps = np.arange(len(z) + 1) / len(z)
    return float(max(np.max(normal - steps[:-1]), np.max(steps[1:] - normal)))
