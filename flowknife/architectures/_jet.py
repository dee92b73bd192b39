"""Jet."""

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
    Coupling,
    Permute,
    Repeat,
    Reshape,
    SigmoidScale,
    Squeeze,
)
from flowknife.bijections._chain import Memory
from flowknife.errors import InputError


def jet(
    shape: Shape,
    *,
    patch: int = 4,
    couplings: int = 16,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    cond_dim: int = 0,
    memory: Memory = "standard",
    key: Key = None,
) -> Bijection:
    """Jet (Kolesnikov et al. 2024, arXiv 2412.15129): affine couplings of patches, parametrised by vision transformers.

    The image is divided into patches. Each of the `couplings` layers is a fixed random permutation of the patches'
    channels, and a coupling in which the first half of every patch conditions the second half. There are no levels and
    no factor-out; a single actnorm at the start standardises the pixels. Couplings have equal structure and are
    scanned.

    Args:
        shape: (height, width, channels), height and width multiples of `patch`.
        patch: side of a patch in pixels, a power of 2.
        couplings: number of couplings.
        width: length of a token.
        depth: blocks of each transformer.
        heads: attention heads.
        cond_dim: length of a condition (such as a class) of every coupling, 0 for none.
        memory: "reversible" recomputes activations in the backward pass, see `Repeat`.
        key: random key of the initial weights.

    Returns:
        a bijection from `shape` to one flat vector.

    Raises:
        InputError: for an image that cannot be divided into such patches.
    """
    shape = as_shape(shape)
    if patch < 1 or patch & (patch - 1) or len(shape) != 3 or shape[0] % patch or shape[1] % patch:
        raise InputError(
            f"got an image of shape {shape} and patch={patch}; expected (height, width, channels), height and width "
            "multiples of patch, a power of 2; try another image_size"
        )
    parts: list[Bijection] = [ActNorm(shape)]
    while parts[-1].out_shape[0] > shape[0] // patch:
        parts.append(Squeeze(parts[-1].out_shape))
    grid = parts[-1].out_shape
    net = partial(nets.ViT, width=width, depth=depth, heads=heads)
    cond_shape = condition_shape(cond_dim)

    def layer(key):
        mix, couple = jax.random.split(key)
        coupling = Coupling(Channels(grid), SigmoidScale(), net, cond_shape=cond_shape, key=couple)
        return Chain([Permute.random(grid, key=mix), coupling])

    flat = Reshape(grid, (grid[0] * grid[1] * grid[2],))
    return Chain([*parts, Repeat(layer, couplings, memory=memory, key=as_key(key)), flat])
