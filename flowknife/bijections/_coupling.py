"""Couplings: one part of the event parametrises an elementwise map of the other.

`Coupling(split, scalar, net)` composes three independent choices: which elements pass unchanged (a split), which scalar
map transforms the others (a `Scalar`), and which network computes the parameters of that map.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.bijections._base import ScalarBijection, net_cond_shape, sum_event
from flowknife.bijections._elementwise import Scalar
from flowknife.errors import InputError

MakeNet = Callable[..., Any]
"""`make(in_shape, out_shape, cond_shape, key=key)` returns a module called as `net(x, cond)`, with the attribute
`cond_shape`; see `flowknife.nets`."""


class Channels(eqx.Module):
    """Split of the last axis: the first `kept` channels pass unchanged, the others are transformed.

    Args:
        shape: event shape.
        kept: number of channels that pass; default half, rounded down.
        swap: the *last* `kept` channels pass instead of the first.
    """

    shape: Shape = eqx.field(static=True)
    kept: int = eqx.field(static=True)
    swap: bool = eqx.field(static=True)

    def __init__(self, shape: int | Shape, kept: int | None = None, *, swap: bool = False):
        self.shape = as_shape(shape)
        self.kept = self.shape[-1] // 2 if kept is None else kept
        self.swap = swap
        if not 0 <= self.kept < self.shape[-1]:
            raise InputError(f"got kept={self.kept} of {self.shape[-1]} channels; expected 0 to {self.shape[-1] - 1}")

    @property
    def kept_shape(self) -> Shape:
        return (*self.shape[:-1], self.kept)

    @property
    def moved_shape(self) -> Shape:
        return (*self.shape[:-1], self.shape[-1] - self.kept)

    def split(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The identity part (kept) and the transformed part (moved) of `x`."""
        if self.swap:
            moved, kept = jnp.split(x, [self.shape[-1] - self.kept], axis=-1)
        else:
            kept, moved = jnp.split(x, [self.kept], axis=-1)
        return kept, moved

    def merge(self, kept: Float[Array, "..."], moved: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of `split`."""
        return jnp.concatenate([moved, kept] if self.swap else [kept, moved], axis=-1)


class Checkerboard(eqx.Module):
    """Checkerboard split of an image: the pixels of one colour pass unchanged, the others are transformed.

    Dinh et al. 2017, arXiv 1605.08803, fig. 3. Each part is a half-size image with twice the channels, so that the
    spatial structure is preserved for networks.

    Args:
        shape: event shape (height, width, channels), height and width even.
        swap: exchange the colours.
    """

    shape: Shape = eqx.field(static=True)
    swap: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if len(self.shape) != 3 or self.shape[0] % 2 or self.shape[1] % 2:
            raise InputError(f"got shape {self.shape}; expected (height, width, channels), height and width even")

    @property
    def kept_shape(self) -> Shape:
        return (self.shape[0] // 2, self.shape[1] // 2, 2 * self.shape[2])

    @property
    def moved_shape(self) -> Shape:
        return self.kept_shape

    def split(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The identity part (kept) and the transformed part (moved) of `x`."""
        black = jnp.concatenate([x[..., ::2, ::2, :], x[..., 1::2, 1::2, :]], axis=-1)
        white = jnp.concatenate([x[..., ::2, 1::2, :], x[..., 1::2, ::2, :]], axis=-1)
        return (white, black) if self.swap else (black, white)

    def merge(self, kept: Float[Array, "..."], moved: Float[Array, "..."]) -> Float[Array, "..."]:
        """The inverse of `split`."""
        black, white = (moved, kept) if self.swap else (kept, moved)
        even_even, odd_odd = jnp.split(black, 2, axis=-1)
        even_odd, odd_even = jnp.split(white, 2, axis=-1)
        rows = jnp.stack(
            [jnp.stack([even_even, even_odd], axis=-2), jnp.stack([odd_even, odd_odd], axis=-2)], axis=-4
        )  # (..., H/2, 2, W/2, 2, C)
        return rows.reshape(*rows.shape[:-5], *self.shape)


class Coupling(ScalarBijection):
    """y_kept = x_kept, y_moved = f(x_moved; net(x_kept, cond)), with a scalar map f for every transformed element.

    Dinh et al. 2014, arXiv 1410.8516, sec. 3.2. log_det is the sum of the log slopes of f.

    Args:
        split: which elements pass and which are transformed (`Channels`, `Checkerboard`).
        scalar: the elementwise map f (`Shift`, `ShiftScale`, `Spline`, or any `Scalar`).
        net: `net(in_shape, out_shape, cond_shape, key=key)` builds the network of f's raw parameters; see
            `flowknife.nets`. Its output starts at zero, so the coupling starts as the identity.
        cond_shape: event shape of the condition; None for no condition.
        key: random key of the network's initial weights.

    Raises:
        InputError: for a network whose `cond_shape` is not the one that it was built with.
    """

    split: Channels | Checkerboard
    scalar: Scalar
    net: Callable[..., Array]

    def __init__(
        self,
        split: Channels | Checkerboard,
        scalar: Scalar,
        net: MakeNet,
        *,
        cond_shape: int | Shape | None = None,
        key: Key = None,
    ):
        cond_shape = None if cond_shape is None else as_shape(cond_shape)
        self.split, self.scalar = split, scalar
        *space, channels = split.moved_shape
        out_shape = (*space, channels * scalar.num_params)
        self.net = net(split.kept_shape, out_shape, cond_shape, key=as_key(key))
        if self.cond_shape != cond_shape:
            raise InputError(
                f"got a network with cond_shape {self.cond_shape} for a condition of shape {cond_shape}; expected "
                "equal shapes; try a network that keeps the cond_shape it is built with, as those of flowknife.nets"
            )

    @property
    def shape(self) -> Shape:
        return self.split.shape

    @property
    def cond_shape(self) -> Shape | None:
        return net_cond_shape(self.net)

    def _raw(self, kept, moved, cond):
        # parameter-major order: each parameter is one contiguous block of channels
        raw = self.net(kept, cond).reshape(*moved.shape[:-1], self.scalar.num_params, moved.shape[-1])
        return jnp.moveaxis(raw, -2, -1)

    def encode(self, x, cond=None):
        kept, moved = self.split.split(x)
        y, log_det = self.scalar.encode(moved, self._raw(kept, moved, cond))
        return self.split.merge(kept, y), sum_event(log_det, self.shape)

    def encode_each(self, x, cond=None):
        kept, moved = self.split.split(x)
        y, log_slope = self.scalar.encode(moved, self._raw(kept, moved, cond))
        return self.split.merge(kept, y), self.split.merge(jnp.zeros_like(kept), log_slope)

    def decode(self, y, cond=None):
        kept, moved = self.split.split(y)
        x, log_det = self.scalar.decode(moved, self._raw(kept, moved, cond))
        return self.split.merge(kept, x), sum_event(log_det, self.shape)
