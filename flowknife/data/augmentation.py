"""Random augmentation of training images: shift, rotation, scale, shear, mirroring, brightness."""

from typing import Annotated

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float, Num

from flowknife._settings import Settings

Zoom = Annotated[float, pydantic.Field(ge=0, lt=1, description="scale by up to this share, larger or smaller")]
Shear = Annotated[float, pydantic.Field(ge=0, le=1, description="slant by up to this, in columns per row")]
Rotation = Annotated[float, pydantic.Field(ge=0, le=180, description="rotate by up to this, in degrees")]
Shift = Annotated[
    float,
    pydantic.Field(
        ge=0, lt=0.5, description="shift by up to this share of the side; in whole pixels if that is at least one"
    ),
]
Brightness = Annotated[float, pydantic.Field(ge=0, lt=1, description="darken or brighten by up to this share")]


class Augmentation(Settings):
    """Random changes of the training images in every batch; scored images are not changed.

    Every number is the largest change; changes are drawn uniformly from -number to +number.
    """

    flip: bool | None = pydantic.Field(
        None, description="mirror half of the images; default: true if the mean image is symmetric"
    )
    zoom: Zoom = 0.0
    shear: Shear = 0.0
    rotation: Rotation = 0.0
    shift: Shift = 0.0
    brightness: Brightness = 0.0

    @property
    def moves(self) -> bool:
        """Whether any setting other than mirroring moves pixels."""
        return max(self.zoom, self.shear, self.rotation, self.shift) > 0


def augment(
    key: Array, pixels: Num[Array, "n h w c"], settings: Augmentation, flip: bool | None = None
) -> Num[Array, "n h w c"]:
    """Randomly change every image of a batch, inside a compiled training step.

        y(p) = (1 + b) x(A (p - centre) + centre + shift),   A = zoom · rotation · shear

    All geometric changes are one bilinear interpolation; beyond its edge an image is mirrored. The result is rounded to
    integers, since only integer images have a probability. Without changes the batch is returned unchanged.

    Args:
        key: JAX key.
        pixels: images of integers from 0 to 255.
        settings: the largest changes.
        flip: mirror half of the images; default `settings.flip`, where None mirrors none.

    Returns:
        images of integers from 0 to 255, as floats if anything but `flip` is set.
    """
    flip_key, move_key, light_key = jax.random.split(key, 3)
    if settings.flip if flip is None else flip:
        chosen = jax.random.bernoulli(flip_key, 0.5, (len(pixels), 1, 1, 1))
        pixels = jnp.where(chosen, pixels[:, :, ::-1], pixels)
    if not settings.moves and not settings.brightness:
        return pixels
    values = _interpolated(pixels, *_places(move_key, pixels.shape, settings)) if settings.moves else pixels
    if settings.brightness:
        values = values * (1 + _drawn(light_key, len(pixels), settings.brightness)[..., None])
    return jnp.clip(jnp.round(values), 0, 255)


def _drawn(key, n, most):
    return jax.random.uniform(key, (n, 1, 1), minval=-most, maxval=most)


def _places(key, shape, settings):
    """The source row and column of every pixel, each of shape `(n, h, w)`."""
    n, height, width, _ = shape
    keys = jax.random.split(key, 5)
    rows = (jnp.arange(height) - (height - 1) / 2)[:, None]
    columns = (jnp.arange(width) - (width - 1) / 2)[None, :]
    # without rotation and zoom, integer coordinates must remain integers
    if settings.shear:
        columns = columns + _drawn(keys[0], n, settings.shear) * rows
    if settings.rotation:
        angle = jnp.deg2rad(_drawn(keys[1], n, settings.rotation))
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        rows, columns = cos * rows + sin * columns, cos * columns - sin * rows
    if settings.zoom:
        # uniform in the logarithm: doubling is as likely as halving
        factor = jnp.exp(_drawn(keys[2], n, jnp.log1p(settings.zoom)))
        rows, columns = factor * rows, factor * columns
    if settings.shift:
        rows = rows + _moved(keys[3], n, settings.shift * height)
        columns = columns + _moved(keys[4], n, settings.shift * width)
    place = (n, height, width)
    return jnp.broadcast_to(rows + (height - 1) / 2, place), jnp.broadcast_to(columns + (width - 1) / 2, place)


def _moved(key, n, most):
    """A shift of at most `most` pixels, in whole pixels if `most` is at least one, which needs no interpolation."""
    if most < 1:
        return _drawn(key, n, most)
    return jax.random.randint(key, (n, 1, 1), -int(most), int(most) + 1)


def _interpolated(pixels, rows, columns) -> Float[Array, "n h w c"]:
    """Bilinear interpolation of every image at its own coordinates."""
    n, height, width, channels = pixels.shape
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(int), left.astype(int)
    # flattened to one list of pixels, from which XLA gathers several times faster than from separate images
    pixel = pixels.reshape(n * height * width, channels)
    first = (jnp.arange(n) * height * width)[:, None, None]

    def at(row, column):
        index = first + _within(row, height) * width + _within(column, width)
        return pixel.at[index].get(mode="promise_in_bounds").astype(float)

    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * upper + down * lower


def _within(index, side):
    """Indices beyond the edge, mirrored at it."""
    index = jnp.maximum(index, -1 - index)
    return jnp.clip(jnp.minimum(index, 2 * side - 1 - index), 0, side - 1)
