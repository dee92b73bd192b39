"""A multi-scale flow seen as its levels: one latent and one term of the log-likelihood each.

The flows of `architectures` (`glow`, `realnvp`, `wavelet`) nest `Split`s at the end of `Chain`s; the innermost may be
a `CoarseToFine`, whose blocks are levels too. With x_l the kept part that enters level l,

    log p(x) = sum over levels of log p(z_l given what is kept) + log_det_l

where `log_det_l` belongs to the layers before the level's split and to its factored part.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife._types import split_trainable
from flowknife.bijections import (
    Bijection,
    Chain,
    CoarseToFine,
    Coupling,
    Elementwise,
    HistogramToNormal,
    PixelsToNormal,
    Repeat,
    Split,
)
from flowknife.inn import INN, Block
from flowknife.laws import Pixels, normal_log_prob
from flowknife.objectives import Batch, nll

Term = tuple[Array, Array]
"""A level's latent, on its own grid, and its term of the log-likelihood, in nats, of shape `batch`."""


def image_model(shape: tuple[int, int, int], pixels: Pixels, bijection: Bijection) -> INN:
    """An image flow with one latent block per level, `z_0` the coarsest."""
    right = [Block(f"z_{i}", size) for i, size in enumerate(latent_sizes(bijection))]
    return INN([Block("image", shape, pixels)], right, bijection)


def _peel(bijection: Bijection) -> tuple[list[Bijection], Split | CoarseToFine | None]:
    """The layers before the end of this level, and that end; None at a coarsest level without one."""
    layers = list(bijection.bijections) if isinstance(bijection, Chain) else [bijection]
    while isinstance(layers[-1], Chain):
        layers = [*layers[:-1], *layers[-1].bijections]
    return (layers[:-1], layers[-1]) if isinstance(layers[-1], Split | CoarseToFine) else (layers, None)


def coarse_flow(bijection: Bijection) -> Bijection:
    """What is left of a flow below all its splits: the flow of the coarsest grid."""
    _, end = _peel(bijection)
    return coarse_flow(end.inner) if isinstance(end, Split) else bijection


def coarse_input(bijection: Bijection, x: Array) -> Array:
    """What enters `coarse_flow` of dequantised images `(*batch, *shape)`."""
    layers, end = _peel(bijection)
    if not isinstance(end, Split):
        return x
    for layer in layers:
        x, _ = layer.encode(x)
    return coarse_input(end.inner, end.split.split(x)[0])


def latent_sizes(bijection: Bijection) -> list[int]:
    """Number of latents per level, coarsest first."""
    _, end = _peel(bijection)
    if end is None:
        return [math.prod(bijection.out_shape)]
    if isinstance(end, CoarseToFine):
        return list(end.sizes)
    return [*latent_sizes(end.inner), math.prod(end.split.moved_shape)]


def level_terms(bijection: Bijection, x: Array) -> list[Term]:
    """Latent and log-likelihood term of each level, coarsest first, for dequantised images `(*batch, *shape)`."""
    batch = x.ndim - len(bijection.shape)
    levels = _encode_levels(bijection, x, lambda layer, x, cond: layer.encode(x, cond))
    return [(z, normal_log_prob(z, z.shape[batch:]) + sum(log_dets)) for z, log_dets in levels]


def _encode_levels(bijection, x, encode) -> list[tuple[Array, list[Any]]]:
    """Latent of each level, coarsest first, and what `encode(layer, x, cond)` returns beside y for each of its layers.

    A level with a `CoarseToFine` at its end has no layers of its own; those before belong to the coarsest block.
    """
    layers, end = _peel(bijection)
    log_dets = []
    for layer in layers:
        x, log_det = encode(layer, x, None)
        log_dets.append(log_det)
    if end is None:
        return [(x, log_dets)]
    if isinstance(end, CoarseToFine):
        y, log_det = encode(end.transform, x, None)
        blocks = end.split(y)
        (z, own), *finer = [encode(part, blocks[i], end.condition(blocks, i)) for i, part in enumerate(end.parts)]
        return [(z, [*log_dets, log_det, own]), *((z, [own]) for z, own in finer)]
    kept, moved = end.split.split(x)
    if end.factored is not None:
        moved, log_det = encode(end.factored, moved, end.condition(kept))
        log_dets.append(log_det)
    return [*_encode_levels(end.inner, kept, encode), (moved, log_dets)]


def local_log_probs(bijection: Bijection, x: Float[Array, "n h w c"]) -> list[Float[Array, "n _ _"]]:
    """Log-density at each place, in nats per latent, of every level whose latent has places, coarsest first.

        log p(z_l at a place) + log_det_l of that place

    Layers that apply a scalar map to each number have a part of the log-determinant at each place. What other layers
    contribute is the same everywhere (`ActNorm`, 1x1 convolutions), or shared out as if it were. Where the coarsest
    latent has no places but the layers above it do, what these contribute is a map before the others.
    """
    found = []
    for z, log_dets in _encode_levels(bijection, x, _encode_locally):
        terms = [each for layer in log_dets for each in layer]
        local = [each for each in terms if each.ndim == 3]
        grid = z.shape[1:3] if z.ndim == 4 else local[-1].shape[1:] if local else (1, 1)
        if math.prod(grid) == 1:
            continue
        if z[0].size < math.prod(grid):
            found.append(sum(_on_grid(each, grid) for each in local) / x.shape[3])
            continue
        places = z.reshape(len(z), *grid, -1)  # a coarsest latent is a grid as one vector, row by row
        log_det = sum(_on_grid(each, grid) for each in terms)
        found.append((normal_log_prob(places, places.shape[3:]) + log_det) / places.shape[3])
    return found


_SCALAR = Coupling, Elementwise, HistogramToNormal, PixelsToNormal


def _encode_locally(layer, x, cond) -> tuple[Array, list[Array]]:
    """`encode`, the log-determinant as terms: each of shape (n, h, w), on its layer's grid, or (n,)."""
    if isinstance(layer, Chain):
        terms = []
        for part in layer.bijections:
            x, more = _encode_locally(part, x, cond)
            terms += more
        return x, terms
    if isinstance(layer, Repeat):
        arrays, structure = eqx.partition(layer.layer, eqx.is_array)
        x, terms = jax.lax.scan(lambda x, own: _encode_locally(eqx.combine(own, structure), x, cond), x, arrays)
        return x, [jnp.sum(term, axis=0) for term in terms]
    if isinstance(layer, _SCALAR) and len(layer.shape) == 3:
        x, log_slopes = layer.encode_each(x, cond)
        return x, [jnp.sum(log_slopes, axis=-1)]
    x, log_det = layer.encode(x, cond)
    return x, [log_det]


def _on_grid(log_det, grid):
    """A term of the log-determinant at the places of another grid, which are blocks of its own; or shared out."""
    blocks = [own / other for own, other in zip(log_det.shape[1:], grid, strict=False)]
    if len(blocks) < 2 or not all(block.is_integer() for block in blocks):
        total = log_det.reshape(len(log_det), -1).sum(axis=1)
        return jnp.broadcast_to(total[:, None, None] / math.prod(grid), (len(log_det), *grid))
    height, width = (int(block) for block in blocks)
    return log_det.reshape(len(log_det), grid[0], height, grid[1], width).sum(axis=(2, 4))


def image_terms(model: INN, pixels: Array, key: Array) -> list[Term]:
    """`level_terms` of discrete pictures; the finest level bears the noise that makes them continuous."""
    image = model.partition.left[0]
    x = image.law.prepare(key, pixels, pixels.shape[: pixels.ndim - len(image.shape)], image.shape)
    *coarser, (z, term) = level_terms(model.bijection, x)
    return [*coarser, (z, term - image.law.log_noise(x, image.shape))]


def level_features(terms: list[Term]) -> Array:
    """What an anomaly detector should look at: numbers that are the same for all pictures of a kind, up to chance.

    Per level the log of the latents' root mean square, as a whole and channel by channel where it has places, and
    bits/dim. The channels tell a picture of too little detail of one kind (blurred, say) from one that has merely
    little of all kinds; the four grids that a `Squeeze` interleaves are one. More numbers than that hide what is
    strange among them.

    Args:
        terms: of one batch axis, as `level_terms` returns them.

    Returns:
        features `(batch, k)`; the last ones are bits/dim of the levels, coarsest first.
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


def largest_spot(z: Array) -> Array:
    """Log of the largest mean square of the latents at one place, of each latent of a batch; of all, without places."""
    channels = z.shape[-1] if z.ndim == 4 else z[0].size
    at_place = jnp.mean(z.reshape(len(z), -1, channels) ** 2, axis=-1)
    return jnp.log(jnp.max(at_place, axis=1) + 1e-6)


def independent_levels(bijection: Bijection) -> bool:
    """Whether no level's parameters appear in another's term, so that levels can be trained one by one."""
    layers, end = _peel(bijection)
    if end is None:
        return True
    shared = [*layers, end.transform] if isinstance(end, CoarseToFine) else layers
    if jax.tree.leaves(split_trainable(shared)[0]):
        return False
    return isinstance(end, CoarseToFine) or independent_levels(end.inner)


def level_part(level: int) -> Callable[[INN], Any]:
    """The part of a model that belongs to one level (0 is the coarsest), for `fit(where=...)`.

    The law of the noise within the bins belongs to the finest level, which that noise concerns most.
    """

    def where(model):
        splits, (layers, end) = [], _peel(model.bijection)
        while isinstance(end, Split):
            splits.append(end)
            layers, end = _peel(end.inner)
        coarse = 1 if end is None else len(end.parts)
        if level >= coarse:
            own = splits[len(splits) - 1 - (level - coarse)]
            parts = [own.factored, own.context]
        elif end is None:
            parts = [*layers]
        else:
            parts = [end.parts[level], *end.contexts[max(level - 1, 0) : level]]
        law = model.partition.left[0].law
        if isinstance(law, Pixels) and level == coarse + len(splits) - 1:
            parts.append(law.noise)
        return [part for part in parts if part is not None]

    return where


def level_nll(level: int) -> Callable[[INN, Batch, Array], Array]:
    """One level's negative log-likelihood in nats per latent; what it does not need is never computed."""

    def objective(model, batch, key):
        z, term = image_terms(model, batch[model.partition.left[0].name], key)[level]
        return -jnp.mean(term) / z[0].size

    return objective


def joint_nll(model: INN, batch: Batch, key: Array) -> Array:
    """The negative log-likelihood of all levels together, in nats per latent."""
    image = model.partition.left[0]
    return nll(model, batch, key) / image.size
