"""What one does with the latents of pictures: ways between them, directions, levels drawn anew; and who looks alike."""

from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from flowknife._types import Key, as_key

How = Literal["spherical", "linear"]
Pictures = UInt8[np.ndarray, "_ _ _ _"]
Latents = Float[np.ndarray, "_ _"]

_THUMBNAIL = 32  # largest side of what is kept of a training picture
_COMPARED_AT_ONCE = 1000  # pictures


class Nearest(NamedTuple):
    """The training pictures that look most like each of n pictures.

    Attributes:
        pictures: small, uint8 (n, k, h, w, C), the nearest first.
        distances: root-mean-square difference of the two at half their size, in grey levels of 255, shape (n, k).
    """

    pictures: np.ndarray
    distances: np.ndarray


def way(start: Float[np.ndarray, " d"], end: Float[np.ndarray, " d"], steps: int, how: How) -> Latents:
    """Latents on the way from `start` to `end`, both included, shape (steps, d).

    The middle of a straight line is nearer to the centre than latents of N(0, I) ever are. On the spherical way
    (Shoemake 1985, doi 10.1145/325165.325242) the direction turns evenly, and the radius changes evenly.
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
    """Each latent `n` times, with these columns drawn anew from N(0, temperature^2)."""
    new = np.repeat(z[:, None], n, axis=1)
    noise = jax.random.normal(as_key(key), (n, columns.stop - columns.start))
    new[..., columns] = temperature * np.asarray(noise)  # the same draws for every picture, so that rows compare
    return new


def thumbnails(pixels: Pictures) -> Pictures:
    """Pictures at a whole fraction of their size, 32 pixels at most, each pixel the mean of those it stands for."""
    return np.round(_reduced(pixels, -(-max(pixels.shape[1:3]) // _THUMBNAIL))).astype(np.uint8)


def nearest(pixels: Pictures, training: Pictures, k: int, mirrored: bool = True) -> Nearest:
    """The `k` of the training thumbnails that look most like each picture, or like its mirror image.

    Args:
        pixels: pictures.
        training: `thumbnails` of the training pictures.
        k: how many for each.
        mirrored: a mirror image is the same picture.
    """
    stored = _reduced(training, 2).reshape(len(training), -1)
    found = [
        _nearest(pixels[start : start + _COMPARED_AT_ONCE], stored, k, mirrored)
        for start in range(0, len(pixels), _COMPARED_AT_ONCE)
    ]
    order, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Nearest(training[order], distances)


def _nearest(pixels, stored, k, mirrored):
    near = _reduced(thumbnails(pixels), 2)

    def squares(rows):
        rows = rows.reshape(len(rows), -1)
        return np.sum(rows**2, axis=1)[:, None] + np.sum(stored**2, axis=1) - 2 * rows @ stored.T

    least = np.minimum(squares(near), squares(near[:, :, ::-1])) if mirrored else squares(near)
    distances = np.sqrt(np.maximum(least, 0) / stored.shape[1])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def _reduced(pixels, factor):
    """Means of factor x factor pixels; what is left over at the right and at the bottom is cut off."""
    factor = min(factor, *pixels.shape[1:3])
    count, height, width, channels = pixels.shape
    rows, columns = height // factor, width // factor
    cut = pixels[:, : rows * factor, : columns * factor].astype(np.float64)
    return cut.reshape(count, rows, factor, columns, factor, channels).mean(axis=(2, 4))
