"""Image features for anomaly detection: latents and bits per dimension, level by level."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife._batches import IMAGES_AT_ONCE, map_batches
from flowknife._progress import Report, unreported
from flowknife._types import as_key
from flowknife.multiscale import local_log_probs

SMALL = 3072  # numbers in a colour image of 32 x 32


Given = Mapping[str, np.ndarray]
"""Conditions of images by name, such as their classes one-hot, one row for each; empty for none."""

NOTHING: Given = {}


class Look(NamedTuple):
    """Features of images under a model: `level_features`, latents `(n, H W C)`, the finest `max_local_energy`."""

    levels: np.ndarray
    latents: np.ndarray
    local_energy: np.ndarray


def features_of_levels(model: Any, pixels: Array, key: Array, given: Mapping[str, Array]) -> Array:
    """The `level_features` of a batch of images, the last of them bits/dim of each level."""
    return _look(model, pixels, key, given)[0]


@eqx.filter_jit
def _look(model, pixels, key, given):
    right = model.right_end(model.left_end(pixels, key=key, **given))
    terms = model.block_terms(right)
    latents = jnp.concatenate([z.reshape(len(pixels), -1) for z in right.blocks.values()], axis=1)
    levels = [(right.blocks[name], term) for name, term in terms.items()]
    return level_features(levels), latents, max_local_energy(levels[-1][0])


def level_bits(model, features):
    """Bits/dim of each level, coarsest first, from the last columns of the `level_features`."""
    return features[:, -len(model.partition.right) :]


def level_squares(model, latents):
    """|z|^2 of each level, coarsest first, `(n, levels)`."""
    ends = np.cumsum([block.size for block in model.partition.right])[:-1]
    return np.stack([np.sum(part**2, axis=1) for part in np.split(latents, ends, axis=1)], axis=1)


def bits_of(model, features):
    """Bits/dim of whole images, from those of their levels."""
    sizes = np.array([block.size for block in model.partition.right])
    return level_bits(model, features) @ sizes / sizes.sum()


def look(model, pixels, report: Report = unreported, given: Given = NOTHING, most: int = IMAGES_AT_ONCE) -> Look:
    """The features of every image, in batches of at most `most`."""
    # the same noise for every batch, so that scores do not differ by random draws
    levels, latents, energy = map_batches(
        lambda part: _look(model, part[0], as_key(0), part[1]), (pixels, given), most, report
    )
    return Look(levels.astype(np.float64), latents, energy)


@eqx.filter_jit
def _bits_at(model, pixels, key, first, last, given):
    terms = model.block_log_probs(pixels, key=key, **given)
    blocks = model.partition.right[first:last]
    return jnp.stack([-terms[block.name] / (block.size * math.log(2)) for block in blocks], axis=1)


def bits_at(
    model,
    pixels,
    levels: range,
    report: Report = unreported,
    given: Given = NOTHING,
    most: int = IMAGES_AT_ONCE,
):
    """Bits/dim of the levels in this range, `(n, len(levels))`; other levels are not computed."""
    if pixels[0].size <= SMALL:  # for small images, computing all levels is faster than compiling another program
        return level_bits(model, look(model, pixels, report, given, most).levels)[:, levels]

    def program(part):
        return [_bits_at(model, part[0], as_key(0), levels.start, levels.stop, part[1])]

    (bits,) = map_batches(program, (pixels, given), most, report)
    return bits.astype(np.float64)


@eqx.filter_jit
def _local(model, pixels, given):
    return local_log_probs(model, pixels, as_key(0), **given)


def local_maps(model, pixels, given: Given = NOTHING, most: int = IMAGES_AT_ONCE):
    """Log density by position, in nats per latent, for every level with spatial positions: arrays (n, h, w)."""
    return map_batches(lambda part: _local(model, *part), (pixels, given), most)


Term = tuple[Array, Array]
"""A level's latent, on its own grid, and its term of the log-likelihood, in nats, of shape `batch`."""


def level_features(terms: Sequence[Term]) -> Array:
    """Features for an anomaly detector, with little variation among normal images.

    For each level: the log root mean square of the latents, in total and (if the level has positions) by channel, and
    bits/dim. The channels distinguish an image that lacks one kind of detail (such as a blurred one) from an image with
    little detail of all kinds; the four grids that a `Squeeze` interleaves count as one channel. More features than
    these would dilute the anomalous ones.

    Args:
        terms: the terms of all levels, with one batch axis.

    Returns:
        features `(batch, k)`; the last columns are bits/dim of the levels, coarsest first.
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


def max_local_energy(z: Array) -> Array:
    """Log of the largest mean square of the latents at one position, for each image; over all latents without any."""
    channels = z.shape[-1] if z.ndim == 4 else z[0].size
    at_place = jnp.mean(z.reshape(len(z), -1, channels) ** 2, axis=-1)
    return jnp.log(jnp.max(at_place, axis=1) + 1e-6)
