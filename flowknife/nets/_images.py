"""Networks of images on a fixed grid.

A 3x3 convolution is written as patches times a matrix: in a compiled training loop on a CPU, XLA's own convolution and
its gradients run 20 to 50 times slower (measured for 32 images of 16x16 to 64x64 with 12 to 128 channels); outside of
loops, and on accelerators, both are equally fast.

The networks of couplings recompute their hidden layers for the gradient. Storing them for every layer of a scan takes
longer: with recomputation, training steps of Glow and of wavelet flows are 20 to 30 % faster on a CPU, with half the
memory.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Key, Shape, as_key
from flowknife._xla import precise
from flowknife.errors import InputError
from flowknife.nets._vectors import Cond, Dense, _activation, _join_vectors


def patches(x: Float[Array, "... h w c"], size: int = 3) -> Float[Array, "... h w k"]:
    """The size x size neighbourhood of every pixel as channels, zeros beyond the edge."""
    height, width = x.shape[-3:-1]
    edge = size // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(edge, edge), (edge, edge), (0, 0)])
    return jnp.concatenate(
        [padded[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)], axis=-1
    )


def gathered(x: Float[Array, "... h w k"], size: int = 3) -> Float[Array, "... h w c"]:
    """The sum over every pixel's size x size neighbourhood, of one c-channel share of each neighbour's k channels."""
    height, width = x.shape[-3:-1]
    edge = size // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(edge, edge), (edge, edge), (0, 0)])
    shares = iter(jnp.split(padded, size * size, axis=-1))
    shifted = (next(shares)[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size))
    return functools.reduce(jnp.add, shifted)


class Conv(eqx.Module):
    """A size x size convolution with zero padding: patches times a matrix. Arguments as in `Dense`."""

    dense: Dense
    size: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, *, size: int = 3, zero: bool = False, key: Key = None):
        self.dense = Dense(size * size * inputs, outputs, zero=zero, key=key)
        self.size = size

    def __check_init__(self):
        _require_side(self.size, self.dense)

    @precise
    def __call__(self, x: Float[Array, "... h w inputs"]) -> Float[Array, "... h w outputs"]:
        weight, size = self.dense.weight, self.size
        if size == 1:
            return self.dense(x)
        inputs, outputs = x.shape[-1], weight.shape[-1]
        if outputs >= inputs:
            return self.dense(patches(x, size))
        # neighbourhoods are gathered on the side with fewer channels: size^2 times as many are kept for the gradient
        turned = jnp.moveaxis(weight.reshape(size * size, inputs, outputs), 0, 1).reshape(inputs, -1)
        rows = x.reshape(-1, inputs) @ turned
        return gathered(rows.reshape(*x.shape[:-1], -1), size) + self.dense.bias


def _require_side(side, dense):
    """Refuse a side whose square does not divide the inputs; tracing such a layer of a damaged file would not end."""
    inputs = dense.weight.shape[-2]
    if side < 1 or inputs % side**2:
        raise InputError(f"got {side} x {side} pixels for a layer of {inputs} inputs; expected a part of them")


def join_images(x, cond, cond_shape):
    """X and cond as one image; a condition without space is the same at every pixel."""
    if cond_shape is None:
        return x
    if len(cond_shape) == 1:
        cond = cond[..., None, None, :]
    return jnp.concatenate([x, jnp.broadcast_to(cond, (*x.shape[:-1], cond.shape[-1]))], axis=-1)


class Joined(eqx.Module):
    """x and cond as one: an image with the condition as further channels, or one flat vector.

    Args:
        in_shape: event shape of x.
        cond_shape: event shape of cond; next to an image, of length 1 it is the same at every pixel.
    """

    in_shape: Shape = eqx.field(static=True)
    cond_shape: Shape = eqx.field(static=True)

    def __check_init__(self):
        if len(self.in_shape) == 3:
            check_grid(self.in_shape, self.in_shape, self.cond_shape)

    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        if len(self.in_shape) == 3:
            return join_images(x, cond, self.cond_shape)
        return _join_vectors(x, self.in_shape, cond, self.cond_shape)


class ConvNet(eqx.Module):
    """Glow's network: 3x3 - a - 1x1 - a - 3x3, the last from zero (Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 4).

    Args as for `MLP`, with in_shape (height, width, channels) and out_shape on the same grid; a cond_shape of length 1
    is the same at every pixel.
    """

    layers: tuple[Conv, ...]
    cond_shape: Shape | None = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        cond_shape: Shape | None = None,
        *,
        width: int = 128,
        activation: str = "relu",
        key: Key = None,
    ):
        self.cond_shape, self.activation = cond_shape, activation
        _activation(activation)
        check_grid(in_shape, out_shape, cond_shape)
        inputs = in_shape[-1] + (0 if cond_shape is None else cond_shape[-1])
        keys = jax.random.split(as_key(key), 3)
        self.layers = (
            Conv(inputs, width, key=keys[0]),
            Conv(width, width, size=1, key=keys[1]),
            Conv(width, out_shape[-1], zero=True, key=keys[2]),
        )

    @precise
    @eqx.filter_checkpoint
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        x = join_images(x, cond, self.cond_shape)
        for layer in self.layers[:-1]:
            x = _activation(self.activation)(layer(x))
        return self.layers[-1](x)


class PatchMLP(eqx.Module):
    """An MLP of every pixel's 3x3 neighbourhood, its position and the condition there: 3x3 - a - 1x1 - a - 1x1.

    It costs a fraction of `ConvNet` if there are many outputs, or if a wide condition already covers the surroundings.
    Args as for `ConvNet`.
    """

    conv_in: Conv
    position: Float[Array, "h w width"]
    cond_proj: Dense | None
    fc1: Dense
    fc2: Dense
    cond_shape: Shape | None = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        cond_shape: Shape | None = None,
        *,
        width: int = 128,
        activation: str = "gelu",
        key: Key = None,
    ):
        self.cond_shape, self.activation = cond_shape, activation
        _activation(activation)
        check_grid(in_shape, out_shape, cond_shape)
        conv_in, cond_proj, fc1, fc2 = jax.random.split(as_key(key), 4)
        self.conv_in = Conv(in_shape[-1], width, key=conv_in)
        self.position = jnp.zeros((*in_shape[:2], width))
        self.cond_proj = None if cond_shape is None else Dense(cond_shape[-1], width, key=cond_proj)
        self.fc1 = Dense(width, width, key=fc1)
        self.fc2 = Dense(width, out_shape[-1], zero=True, key=fc2)

    @precise
    @eqx.filter_checkpoint
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        act = _activation(self.activation)
        hidden = self.conv_in(x) + self.position
        if self.cond_proj is not None:
            projected = self.cond_proj(cond)
            # a condition without space is the same at every pixel
            hidden = hidden + (projected[..., None, None, :] if len(self.cond_shape or ()) == 1 else projected)
        return self.fc2(act(self.fc1(act(hidden))))


def check_grid(in_shape, out_shape, cond_shape=None):
    """Refuse shapes other than images on one grid, and conditions other than vectors or images on this grid."""
    if len(in_shape) != 3 or in_shape[:2] != out_shape[:2]:
        raise InputError(f"got shapes {in_shape} -> {out_shape}; expected (height, width, channels) on one grid")
    if cond_shape is not None and len(cond_shape) != 1 and (len(cond_shape) != 3 or cond_shape[:2] != in_shape[:2]):
        raise InputError(
            f"got a condition of shape {cond_shape} for images of shape {in_shape}; expected a vector, or an image on "
            "the same grid"
        )


class ConvResNet(eqx.Module):
    """Features of an image, on its own grid or on a coarser one: 3x3 + position, then blocks h + 1x1(a(3x3(a(h)))).

    The context network of a wavelet flow: it runs once on the coarse image, for all couplings of a level. A trained
    feature vector for every position of the grid encodes the position, since convolutions are translation invariant.

    Args:
        shape: (height, width, channels) of the image.
        features: channels of the features.
        depth: residual blocks.
        squeeze: first turn squeeze x squeeze blocks of pixels into channels.
        scale: multiplies the image, so that its numbers are of order one.
        cond_shape: (k,) of a condition, the same at every position, which is added to the first features; or None.
        activation: a name in `ACTIVATIONS`.
        key: random key of the initial weights.
    """

    conv_in: Conv
    position: Float[Array, "k l f"]
    blocks: tuple[tuple[Conv, Dense], ...]
    squeeze: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    cond_proj: Dense | None

    def __init__(
        self,
        shape: Shape,
        features: int,
        *,
        depth: int = 2,
        squeeze: int = 1,
        scale: float = 1.0,
        cond_shape: Shape | None = None,
        activation: str = "gelu",
        key: Key = None,
    ):
        self.squeeze, self.scale, self.activation = squeeze, scale, activation
        _activation(activation)
        first, *inner = jax.random.split(as_key(key), 1 + 2 * depth)
        self.conv_in = Conv(shape[-1] * squeeze**2, features, key=first)
        self.position = jnp.zeros((shape[0] // squeeze, shape[1] // squeeze, features))
        self.blocks = tuple(
            (Conv(features, features, key=inner[2 * i]), Dense(features, features, zero=True, key=inner[2 * i + 1]))
            for i in range(depth)
        )
        cond_key = jax.random.fold_in(first, 1)
        self.cond_proj = None if cond_shape is None else Dense(cond_shape[0], features, key=cond_key)

    def __check_init__(self):
        _require_side(self.squeeze, self.conv_in.dense)

    @property
    def cond_shape(self) -> Shape | None:
        """Event shape of the condition; None without one."""
        return None if self.cond_proj is None else self.cond_proj.weight.shape[-2:-1]

    @property
    def in_shape(self) -> Shape:
        """(height, width, channels) of the image."""
        height, width, _ = self.position.shape[-3:]
        channels = self.conv_in.dense.weight.shape[-2] // self.conv_in.size**2 // self.squeeze**2
        return (height * self.squeeze, width * self.squeeze, channels)

    @precise
    def __call__(self, x: Float[Array, "... h w c"], cond: Cond = None) -> Float[Array, "... k l f"]:
        act = _activation(self.activation)
        n = self.squeeze
        x = jnp.concatenate([x[..., i::n, j::n, :] for i in range(n) for j in range(n)], axis=-1)
        x = self.conv_in(self.scale * x) + self.position
        if self.cond_proj is not None:
            x = x + self.cond_proj(cond)[..., None, None, :]
        for conv, dense in self.blocks:
            x = x + dense(act(conv(act(x))))
        return act(x)
