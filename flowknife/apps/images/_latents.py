"""Latents of images: compiled encoding and decoding, interpolation, and resampling of one level."""

from typing import Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_key

How = Literal["spherical", "linear"]

Latents = Float[np.ndarray, "_ _"]


def way(start: Float[np.ndarray, " d"], end: Float[np.ndarray, " d"], steps: int, how: How) -> Latents:
    """Latents interpolated from `start` to `end`, both included, shape (steps, d).

    The middle of a straight line has a much smaller radius than draws of N(0, I). Spherical interpolation (Shoemake
    1985, doi 10.1145/325165.325242) changes the direction and the radius at a constant rate.
    """
    t = np.linspace(0, 1, steps)[:, None]
    line = (1 - t) * start + t * end
    radii = np.linalg.norm(start), np.linalg.norm(end)
    cosine = float(start @ end / max(radii[0] * radii[1], 1e-12))
    angle = np.arccos(np.clip(cosine, -1, 1))
    if how == "linear" or min(radii) == 0 or np.sin(angle) < 1e-4:
        return line.astype(np.float32)
    unit = (np.sin((1 - t) * angle) * start / radii[0] + np.sin(t * angle) * end / radii[1]) / np.sin(angle)
    return (((1 - t) * radii[0] + t * radii[1]) * unit).astype(np.float32)


def redrawn(z: Latents, columns: slice, n: int, key: Key, temperature: float | int) -> Float[np.ndarray, "_ _ _"]:
    """Each latent `n` times, with these columns resampled from N(0, temperature^2)."""
    new = np.repeat(z[:, None], n, axis=1)
    noise = jax.random.normal(as_key(key), (n, columns.stop - columns.start))
    new[..., columns] = temperature * np.asarray(noise)  # the same draws for every image, so that images are comparable
    return new


DRAWN_AT_ONCE = 16  # images


@eqx.filter_jit
def draw_batch(model, key, size, temperature, given):
    return model.sample(key, () if given else size, temperature=temperature, **given)
