"""The levels of a multi-scale image flow: each has one latent block and one term of the log-likelihood.

    log p(x) = sum over levels of [log N(z_l; 0, I) + log_det_l]

The levels are the blocks of the flow's right end (`Bijection.encode_blocks`), coarsest first, so each term is
`INN.block_log_probs(x)["z_l"]`. This module adds which parameters belong to a level, and the log density of a level by
position in the image.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._types import Key, split_trainable
from flowknife.bijections import Bijection
from flowknife.inn import INN, Block
from flowknife.laws import Pixels, normal_log_prob
from flowknife.objectives import Batch, nll


def image_model(shape: tuple[int, int, int], pixels: Pixels, bijection: Bijection, cond: Sequence[Block] = ()) -> INN:
    """An image flow with one latent block per level, `z_0` the coarsest, each on its own grid."""
    right = [Block(f"z_{i}", grid) for i, grid in enumerate(bijection.block_shapes)]
    return INN([Block("image", shape, pixels)], right, bijection, cond)


def independent_levels(bijection: Bijection) -> bool:
    """Whether each term depends on the parameters of its own level only, so that levels can be trained one by one."""
    return not jax.tree.leaves(split_trainable(bijection.block_parts.shared)[0])


@functools.cache  # equal functions share one compiled program
def level_part(level: int) -> Callable[[INN], Any]:
    """The part of a model that belongs to one level (0 is the coarsest), for `fit(where=...)`.

    The dequantisation flow belongs to the finest level, which the dequantisation noise affects most.
    """

    def where(model):
        own = model.bijection.block_parts.own
        law = model.partition.left[0].law
        noise = [law.noise] if isinstance(law, Pixels) and law.noise is not None and level == len(own) - 1 else []
        return [*own[level], *noise]

    return where


def joint_nll(model: INN, batch: Batch, key: Array) -> Array:
    """The negative log-likelihood of all levels together, in nats per element of the image."""
    return nll(model, batch, key) / model.partition.left[0].size


@eqx.filter_jit
def encode_batch(model: INN, pixels: Any, given: Mapping[str, Any]) -> Array:
    """Latents (n, H W C) of images, coarsest level first, without dequantisation noise."""
    image = model.partition.left[0]
    return model.bijection.encode(image.law.prepare(None, pixels, (), image.shape), given.get("y"))[0]


@eqx.filter_jit
def decode_batch(model: INN, z: Any, given: Mapping[str, Any]) -> Array:
    """Images, uint8 (n, H, W, C), of latents (n, H W C)."""
    ends = np.cumsum([block.size for block in model.partition.right])[:-1]
    blocks = zip(model.partition.right, jnp.split(z, ends, axis=-1), strict=True)
    return model.decode({block.name: part.reshape(len(z), *block.shape) for block, part in blocks}, **given)["image"]


def local_log_probs(model: INN, pixels: Array, key: Key = None, **given: Any) -> list[Float[Array, "n _ _"]]:
    """Log density by position, in nats per latent, of every level whose latent has positions, coarsest first.

        log N(z_l at a position; 0, I) + log_det_l of that position

    Elementwise layers have a log-determinant for each position. That of other layers (`ActNorm`, 1x1 convolutions) is
    the same at every position, or is divided evenly among them. If the coarsest latent has no positions, but the layers
    above it do, the term of these layers comes first as a map of its own.

    Args:
        model: an image model.
        pixels: images, shape (n, H, W, C).
        key: source of the dequantisation noise.
        **given: conditions by name.
    """
    left = model.left_end(pixels, key=key, **given)
    found = []
    for z, terms in model.bijection.encode_blocks(left.array, left.cond, local=True):
        local = [term for term in terms if term.ndim == 3]
        grid = z.shape[1:3] if z.ndim == 4 else local[-1].shape[1:] if local else (1, 1)
        if math.prod(grid) == 1:
            continue
        if z[0].size < math.prod(grid):
            found.append(sum(_on_grid(term, grid) for term in local) / left.array.shape[3])
            continue
        positions = z.reshape(len(z), *grid, -1)  # a coarsest latent is a flattened grid, row by row
        log_det = sum(_on_grid(term, grid) for term in terms)
        found.append((normal_log_prob(positions, positions.shape[3:]) + log_det) / positions.shape[3])
    return found


def _on_grid(log_det, grid):
    """A term of the log-determinant on another grid: summed over blocks of positions, or divided evenly."""
    blocks = [own / other for own, other in zip(log_det.shape[1:], grid, strict=False)]
    if len(blocks) < 2 or not all(block.is_integer() for block in blocks):
        total = log_det.reshape(len(log_det), -1).sum(axis=1)
        return jnp.broadcast_to(total[:, None, None] / math.prod(grid), (len(log_det), *grid))
    height, width = (int(block) for block in blocks)
    return log_det.reshape(len(log_det), grid[0], height, grid[1], width).sum(axis=(2, 4))
