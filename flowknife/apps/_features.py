"""Features of an image's latents that an anomaly detector compares, level by level."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

Term = tuple[Array, Array]
"""A level's latent, on its own grid, and its term of the log-likelihood, in nats, of shape `batch`."""


def level_features(terms: Sequence[Term]) -> Array:
    """What an anomaly detector should look at: numbers that are the same for all pictures of a kind, up to chance.

    Per level the log of the latents' root mean square, as a whole and channel by channel where it has places, and
    bits/dim. The channels tell a picture of too little detail of one kind (blurred, say) from one that has merely
    little of all kinds; the four grids that a `Squeeze` interleaves are one. More numbers than that hide what is
    strange among them.

    Args:
        terms: of one batch axis, as `level_terms` returns them.

    Returns:
        features `(batch, k)`; the last ones are bits/dim of the levels, coarsest first.
    """
    spread, bits = [], []
    for z, term in terms:
        channels = z.shape[-1] if z.ndim == 4 else 1
        square = z.reshape(len(z), -1, channels) ** 2
        spread.append(log_spread(z))
        if channels > 1:
            of_channel = jnp.mean(square, axis=1).reshape(len(z), 4 if channels % 4 == 0 else 1, -1)
            spread.append(0.5 * jnp.log(jnp.mean(of_channel, axis=1) + 1e-3))
        bits.append(-term / (z[0].size * math.log(2)))
    return jnp.concatenate([*spread, jnp.stack(bits, axis=1)], axis=1)


def log_spread(z: Array) -> Array:
    """Log of the root mean square of each latent of a batch, shape `(batch, 1)`."""
    return 0.5 * jnp.log(jnp.mean(z.reshape(len(z), -1) ** 2, axis=1, keepdims=True) + 1e-6)


def largest_spot(z: Array) -> Array:
    """Log of the largest mean square of the latents at one place, of each latent of a batch; of all, without places."""
    channels = z.shape[-1] if z.ndim == 4 else z[0].size
    at_place = jnp.mean(z.reshape(len(z), -1, channels) ** 2, axis=-1)
    return jnp.log(jnp.max(at_place, axis=1) + 1e-6)
