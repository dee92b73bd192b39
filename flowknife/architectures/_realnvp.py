"""RealNVP, of vectors and of images."""

from functools import partial

import jax

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.architectures._vectors import condition_shape
from flowknife.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Channels,
    Checkerboard,
    Coupling,
    Repeat,
    Reshape,
    ShiftScale,
    Split,
    Squeeze,
)
from flowknife.bijections._chain import Memory
from flowknife.errors import InputError


def realnvp(
    shape: int | Shape,
    *,
    layers: int = 8,
    width: int = 128,
    cond_dim: int = 0,
    memory: Memory = "standard",
    key: Key = None,
) -> Bijection:
    """Affine couplings with fixed alternating halves (Dinh et al. 2017, arXiv 1605.08803).

    For a vector: `layers` couplings with alternating identity halves, each after an actnorm. For an image: three
    checkerboard couplings, squeeze, three channel couplings, factor out half of the channels, repeated while the grid
    is even and at least 4 pixels; the right end is then one flat vector.

    Args:
        shape: event shape, (dim,) or (height, width, channels).
        layers: couplings of a vector flow, in pairs: an odd number is rounded up.
        width: hidden units or channels of each network.
        cond_dim: length of a condition of every coupling, 0 for none.
        memory: for vector flows, "reversible" recomputes activations in the backward pass, see `Repeat`.
        key: random key of the initial weights.
    """
    shape, key = as_shape(shape), as_key(key)
    cond_shape = condition_shape(cond_dim)
    if len(shape) == 3:
        return _realnvp_image(shape, width, cond_shape, key)
    if len(shape) != 1 or layers < 1:
        raise InputError(
            f"got shape {shape} and {layers} layers; expected (dim,) or (height, width, channels), and at least 1 layer"
        )

    def pair(key):
        keys = jax.random.split(key)
        net = partial(nets.MLP, width=width)
        parts = []
        for swap, coupling_key in zip((False, True), keys, strict=True):
            # for odd lengths, the two halves are rounded down and up, so that all elements are transformed
            kept = shape[0] // 2 if not swap else shape[0] - shape[0] // 2
            split = Channels(shape, min(kept, shape[0] - 1), swap=swap)
            parts += [ActNorm(shape), Coupling(split, ShiftScale(), net, cond_shape=cond_shape, key=coupling_key)]
        return Chain(parts)

    return Repeat(pair, -(-layers // 2), memory=memory, key=key)


def _realnvp_image(shape, width, cond_shape, key):
    height, columns, channels = shape
    if height % 2 or columns % 2:
        raise InputError(f"got an image of shape {shape}; expected height and width even; try image_size=32")
    here, below = jax.random.split(key)
    keys = iter(jax.random.split(here, 6))

    def couple(split):
        net = partial(nets.ConvNet, width=width)
        return Coupling(split, ShiftScale(), net, cond_shape=cond_shape, key=next(keys))

    if min(height, columns) < 4:
        boards = [couple(Checkerboard(shape, bool(i % 2))) for i in range(4)]
        return Chain([*boards, Reshape(shape, height * columns * channels)])
    boards = [couple(Checkerboard(shape, bool(i % 2))) for i in range(3)]
    squeeze = Squeeze(shape)
    small = squeeze.out_shape
    halves = [couple(Channels(small, swap=bool(i % 2))) for i in range(3)]
    split = Channels(small)
    inner = _deeper(split.kept_shape, width, cond_shape, below)
    return Chain([ActNorm(shape), *boards, squeeze, ActNorm(small), *halves, Split(split, inner)])


def _deeper(shape, width, cond_shape, key):
    height, columns, channels = shape
    if height % 2 or columns % 2 or min(height, columns) < 4:
        return Reshape(shape, height * columns * channels)
    return _realnvp_image(shape, width, cond_shape, key)
