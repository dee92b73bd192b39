"""A vision transformer on the grid of an image."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import Key, Shape, as_key
from flowknife._xla import precise
from flowknife.errors import InputError
from flowknife.nets._images import check_grid, join_images
from flowknife.nets._vectors import Cond, Dense


class AttentionBlock(eqx.Module):
    """The weights of one block: h + proj(attention(qkv(norm h))), then h + fc2(gelu(fc1(norm h))).

    Args:
        width: length of a token.
        keys: random keys of the two halves.
    """

    qkv: Dense
    proj: Dense
    fc1: Dense
    fc2: Dense

    def __init__(self, width: int, *, keys: Sequence[jax.Array]):
        self.qkv = Dense(width, 3 * width, key=keys[0])
        self.proj = Dense(width, width, zero=True, key=keys[0])
        self.fc1 = Dense(width, 4 * width, key=keys[1])
        self.fc2 = Dense(4 * width, width, zero=True, key=keys[1])


class ViT(eqx.Module):
    """Every pixel is a token: h + attention(norm(h)), h + mlp(norm(h)), ..., and a head that starts at zero.

    Dosovitskiy et al. 2021, arXiv 2010.11929, eqs. 1 to 4. Every output depends on the whole image; each position has a
    trained vector. Blocks start as the identity. The norms have no parameters, since the following layers could absorb
    them. Images are passed as patches, see `architectures.jet`.

    Args:
        in_shape: (height, width, channels).
        out_shape: the same grid with other channels.
        cond_shape: event shape of cond, or None; of length 1, it is the same at every pixel.
        width: length of a token.
        depth: blocks.
        heads: attention heads; `width` is a multiple of them.
        key: random key of the initial weights.

    Raises:
        InputError: for shapes that are not images on one grid, or a width that the heads do not divide.
    """

    proj_in: Dense
    position: Float[Array, "h w width"]
    blocks: tuple[AttentionBlock, ...]
    proj_out: Dense
    cond_shape: Shape | None = eqx.field(static=True)
    heads: int = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        cond_shape: Shape | None = None,
        *,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        key: Key = None,
    ):
        check_grid(in_shape, out_shape, cond_shape)
        if heads < 1 or width % heads:
            raise InputError(f"got width={width} and heads={heads}; expected a width that is a multiple of the heads")
        self.cond_shape, self.heads = cond_shape, heads
        first, last, *inner = jax.random.split(as_key(key), 2 + 2 * depth)
        self.proj_in = Dense(in_shape[-1] + (0 if cond_shape is None else cond_shape[-1]), width, key=first)
        self.position = jnp.zeros((*in_shape[:2], width))
        self.blocks = tuple(AttentionBlock(width, keys=inner[2 * i : 2 * i + 2]) for i in range(depth))
        self.proj_out = Dense(width, out_shape[-1], zero=True, key=last)

    @precise
    def __call__(self, x: Float[Array, "..."], cond: Cond = None) -> Float[Array, "..."]:
        x = join_images(x, cond, self.cond_shape)
        grid = x.shape[:-1]
        hidden = self.proj_in(x) + self.position
        hidden = hidden.reshape(math.prod(grid[:-2]), grid[-2] * grid[-1], -1)  # (batch, tokens, width)
        for block in self.blocks:
            hidden = hidden + block.proj(self._attend(block.qkv(_normalised(hidden))))
            hidden = hidden + block.fc2(jax.nn.gelu(block.fc1(_normalised(hidden))))
        return self.proj_out(_normalised(hidden)).reshape(*grid, -1)

    def _attend(self, x):
        heads = x.reshape(*x.shape[:-1], 3, self.heads, -1)  # query, key and value of every head
        mixed = jax.nn.dot_product_attention(heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :])
        return mixed.reshape(*x.shape[:-1], -1)


def _normalised(x):
    """Mean 0 and variance 1 over the last axis (Ba et al. 2016, arXiv 1607.06450)."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-6)
