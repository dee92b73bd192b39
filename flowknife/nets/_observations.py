"""Features of observations that are sets, series or images, or that have gaps."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._types import Constant, Key, Shape, as_key
from flowknife._xla import precise
from flowknife.errors import InputError
from flowknife.nets._images import Conv
from flowknife.nets._vectors import MLP, Dense

_FARTHEST = 8.0  # inputs are clipped at this distance from the mean, in spreads
_LONG = 32  # longer observations are reduced to this number of principal components
_LAGS = 4  # number of lags of the products of a series
_COARSE = 8, 4  # length of a series, and side of an image, at which a network stops halving


class ObservationEmbedding(eqx.Module):
    """Features of observations that come with a mask: numbers first, then 1 for each that is there and 0 for a gap.

    The value in a gap has no influence. Every kind has fixed features, which the linear-Gaussian start of a posterior
    uses, and learned ones:

    - numbers: the numbers and the mask, or principal components; an MLP.
    - set: mean and mean square over the elements, and how many there are; an MLP of each element, averaged, and an MLP
      of that (Zaheer et al. 2017, arXiv 1703.06114), so that the order of the elements does not matter.
    - series: as numbers, and mean products of neighbours up to 3 steps apart; convolutions of stride 2.
    - image: as numbers; convolutions between halvings of the image.

    Args:
        kind: "numbers", "set", "series" or "image".
        shape: of an observation: (elements,) or (elements, numbers of each), (steps,) or (steps, channels), (height,
            width) or (height, width, channels); any for numbers.
        y: training observations with their masks, shape (n, 2 m), m the numbers of a shape.
        learned: number of learned features.
        width: hidden units.
        key: random key of the initial weights.

    Raises:
        InputError: for another kind, or a shape that does not fit.
    """

    mean: Constant
    scale: Constant
    axes: Constant | None
    local: tuple[Dense | Conv | MLP, ...]
    head: MLP
    kind: str = eqx.field(static=True)
    shape: Shape = eqx.field(static=True)

    def __init__(
        self,
        kind: Literal["numbers", "set", "series", "image"],
        shape: Shape,
        y: np.ndarray,
        *,
        learned: int = 64,
        width: int = 128,
        key: Key = None,
    ):
        axes = {"numbers": (1, 2, 3), "set": (1, 2), "series": (1, 2), "image": (2, 3)}
        if kind not in axes or len(shape) not in axes[kind] or y.shape[1:] != (2 * math.prod(shape),):
            raise InputError(
                f"got kind={kind!r}, shape {shape} and observations with masks of shape {y.shape}; expected one of "
                f"{', '.join(axes)}, a shape that fits, and twice as many columns as numbers"
            )
        self.kind, self.shape = kind, tuple(shape)
        values, known = np.split(np.asarray(y, np.float64), 2, axis=1)
        if kind == "set":  # elements share their units
            values, known = (part.reshape(-1, self.grid[-1]) for part in (values, known))
        count = np.maximum(known.sum(axis=0), 1)
        mean = (values * known).sum(axis=0) / count
        scale = np.sqrt((known * (values - mean) ** 2).sum(axis=0) / count)
        scale = np.where(scale > 0, scale, 1.0)
        if kind == "set":
            mean, scale = (np.tile(part, self.grid[0]) for part in (mean, scale))
        self.mean, self.scale = (Constant(jnp.asarray(part, jnp.float32)) for part in (mean, scale))
        self.axes = None
        rows = np.asarray(self._standard(jnp.asarray(y[:5000], jnp.float32))[0])
        if kind != "set" and rows.shape[1] > _LONG:
            _, spread, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
            size = np.maximum(spread[:_LONG], 1e-3 * spread[0]) / len(rows) ** 0.5
            self.axes = Constant(jnp.asarray(axes[:_LONG].T / size, jnp.float32))
        first, last = jax.random.split(as_key(key))
        self.local = self._layers(width, first)
        inputs = jax.eval_shape(
            lambda row: self._summary(row), jax.ShapeDtypeStruct((2 * math.prod(shape),), jnp.float32)
        ).shape
        self.head = MLP(inputs, (learned,), width=width, key=last)

    @property
    def in_shape(self) -> Shape:
        """Event shape of an observation with its mask."""
        return (2 * math.prod(self.shape),)

    @property
    def features(self) -> int:
        """Length of the result."""
        return jax.eval_shape(lambda row: self(row), jax.ShapeDtypeStruct(self.in_shape, jnp.float32)).shape[0]

    @property
    def grid(self) -> Shape:
        """The shape with its last axis, the channels, or the numbers of an element."""
        full = {"set": 2, "series": 2, "image": 3}.get(self.kind, len(self.shape))
        return (*self.shape, *(1,) * (full - len(self.shape)))

    def _layers(self, width, key):
        keys = jax.random.split(key, 12)
        channels = 2 * self.grid[-1]
        if self.kind == "set":
            return (MLP((channels,), (width,), width=width, zero=False, key=key),)
        if self.kind == "series":
            sizes = [(channels, width // 2), *[(width // 2, width // 2)] * 10][: _halvings(self.grid[0], _COARSE[0])]
            return tuple(Dense(3 * a, b, key=keys[i]) for i, (a, b) in enumerate(sizes))
        if self.kind == "image":
            count = _halvings(max(self.grid[:2]), _COARSE[1])
            sizes = [(4 * channels if i == 0 else 4 * (width // 4), width // 4) for i in range(count)]
            return tuple(Conv(*size, key=keys[i]) for i, size in enumerate(sizes))
        return ()

    def _standard(self, y):
        """Standardised numbers, zero in the gaps, and the mask."""
        values, mask = jnp.split(y, 2, axis=-1)
        known = mask > 0.5
        inside = jnp.clip((values - self.mean.value) / self.scale.value, -_FARTHEST, _FARTHEST)
        return jnp.where(known, inside, 0.0), known.astype(y.dtype)

    def _fixed(self, values, mask):
        """Features that need no training."""
        if self.kind == "set":
            elements, known, _, count = self._elements(values, mask)
            moments = [jnp.sum(known * part, axis=-2) / count for part in (elements, elements**2)]
            return jnp.concatenate([*moments, jnp.log(count), 1 / count], axis=-1)
        plain = [values, mask] if self.axes is None else [values @ self.axes.value, jnp.mean(mask, -1, keepdims=True)]
        if self.kind == "series":
            steps, known = (part.reshape(*part.shape[:-1], *self.grid) for part in (values, mask))
            length = self.grid[0]
            for lag in range(min(_LAGS, length)):
                both = known[..., : length - lag, :] * known[..., lag:, :]
                product = both * steps[..., : length - lag, :] * steps[..., lag:, :]
                plain.append(jnp.sum(product, axis=-2) / jnp.maximum(jnp.sum(both, axis=-2), 1.0))
        return jnp.concatenate(plain, axis=-1)

    def _elements(self, values, mask):
        elements, known = (part.reshape(*part.shape[:-1], *self.grid) for part in (values, mask))
        there = jnp.max(known, axis=-1, keepdims=True)
        return elements, known, there, jnp.maximum(jnp.sum(there, axis=-2), 1.0)

    def _summary(self, y):
        """The input of the head: the fixed features and the output of the layers."""
        values, mask = self._standard(y)
        fixed = self._fixed(values, mask)
        if self.kind == "numbers":
            return fixed if self.axes is None else jnp.concatenate([fixed, values, mask], axis=-1)
        both = jnp.concatenate([part.reshape(*part.shape[:-1], *self.grid) for part in (values, mask)], axis=-1)
        if self.kind == "set":
            _, _, there, count = self._elements(values, mask)
            (element,) = self.local
            seen = jnp.sum(there * jax.nn.gelu(element(both)), axis=-2) / count
        else:
            seen = both
            for layer in self.local:
                halved = _windows(seen) if self.kind == "series" else _blocks(seen)
                seen = jax.nn.gelu(layer(halved))
            seen = seen.reshape(*y.shape[:-1], -1)
        return jnp.concatenate([fixed, seen], axis=-1)

    @precise
    def __call__(self, y: Float[Array, "... m"]) -> Float[Array, "... k"]:
        fixed = self._fixed(*self._standard(y))
        return jnp.concatenate([fixed, self.head(self._summary(y))], axis=-1)


def _halvings(length, coarse):
    """Number of halvings until a length is at most `coarse`; at least one."""
    return min(max(math.ceil(math.log2(max(length, 1) / coarse)), 1), 10)


def _windows(x):
    """Every second step with its two neighbours as channels: (..., t, c) -> (..., ceil(t / 2), 3 c)."""
    half = -(-x.shape[-2] // 2)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 2), (0, 0)])
    return jnp.concatenate([padded[..., i : i + 2 * half : 2, :] for i in range(3)], axis=-1)


def _blocks(x):
    """Every 2 x 2 block of pixels as channels, zeros beyond the edge: (..., h, w, c) -> (..., h / 2, w / 2, 4 c)."""
    height, width = (-(-side // 2) for side in x.shape[-3:-1])
    edges = [(0, 2 * height - x.shape[-3]), (0, 2 * width - x.shape[-2]), (0, 0)]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + edges)
    return jnp.concatenate([padded[..., i::2, j::2, :] for i in range(2) for j in range(2)], axis=-1)
