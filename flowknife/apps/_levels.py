"""A multi-scale flow seen as its levels: one latent and one term of the log-likelihood each.

The flows of `architectures` (`glow`, `realnvp`, `wavelet`) nest `Split`s at the end of `Chain`s. With x_l the kept part
that enters level l,

    log p(x) = sum over levels of log p(z_l given what is kept) + log_det_l

where `log_det_l` belongs to the layers before the level's split and to its factored part.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowknife._types import split_trainable
from flowknife.bijections import Bijection, Chain, Split
from flowknife.inn import INN, Block
from flowknife.laws import Pixels, normal_log_prob
from flowknife.objectives import Batch, nll

Term = tuple[Array, Array]
"""A level's latent, on its own grid, and its term of the log-likelihood, in nats, of shape `batch`."""


def image_model(shape: tuple[int, int, int], bits: int, bijection: Bijection) -> INN:
    """An image flow with one latent block per level, `z_0` the coarsest."""
    right = [Block(f"z_{i}", size) for i, size in enumerate(latent_sizes(bijection))]
    return INN([Block("image", shape, Pixels(bits))], right, bijection)


def _peel(bijection: Bijection) -> tuple[list[Bijection], Split | None]:
    """The layers before the split of this level and the split, or (the layers, None) at the coarsest."""
    layers = list(bijection.bijections) if isinstance(bijection, Chain) else [bijection]
    while isinstance(layers[-1], Chain):
        layers = [*layers[:-1], *layers[-1].bijections]
    return (layers[:-1], layers[-1]) if isinstance(layers[-1], Split) else (layers, None)


def latent_sizes(bijection: Bijection) -> list[int]:
    """Number of latents per level, coarsest first."""
    _, split = _peel(bijection)
    if split is None:
        return [math.prod(bijection.out_shape)]
    return [*latent_sizes(split.inner), math.prod(split.split.moved_shape)]


def level_terms(bijection: Bijection, x: Array) -> list[Term]:
    """Latent and log-likelihood term of each level, coarsest first, for dequantised images `(*batch, *shape)`."""
    layers, split = _peel(bijection)
    batch = x.shape[: x.ndim - len(bijection.shape)]
    log_det = jnp.zeros(batch, x.dtype)
    for layer in layers:
        x, term = layer.encode(x)
        log_det = log_det + term
    if split is None:
        return [(x, normal_log_prob(x, x.shape[len(batch) :]) + log_det)]
    kept, moved = split.split.split(x)
    if split.factored is not None:
        moved, term = split.factored.encode(moved, split.condition(kept))
        log_det = log_det + term
    return [*level_terms(split.inner, kept), (moved, normal_log_prob(moved, moved.shape[len(batch) :]) + log_det)]


def level_features(terms: list[Term]) -> Array:
    """What an anomaly detector should look at: numbers that are the same for all pictures of a kind, up to chance.

    Per level the log of the latents' root mean square, as a whole and channel by channel, and bits/dim. The channels
    tell a picture of too little detail of one kind (blurred, say) from one that has merely little of all kinds.

    Args:
        terms: of one batch axis, as `level_terms` returns them.

    Returns:
        features `(batch, k)`; the last ones are bits/dim of the levels, coarsest first.
    """
    spread, bits = [], []
    for z, term in terms:
        batch, channels = z.shape[0], z.shape[-1]
        square = jnp.mean(z.reshape(batch, -1, channels) ** 2, axis=1)
        spread += [0.5 * jnp.log(jnp.mean(square, axis=1, keepdims=True) + 1e-6), 0.5 * jnp.log(square + 1e-3)]
        bits.append(-term / (z[0].size * math.log(2)))
    return jnp.concatenate([*spread, jnp.stack(bits, axis=1)], axis=1)


def independent_levels(bijection: Bijection) -> bool:
    """Whether no level's parameters appear in another's term, so that levels can be trained one by one."""
    layers, split = _peel(bijection)
    if split is None:
        return True
    trained = [leaf for layer in layers for leaf in jax.tree.leaves(split_trainable(layer)[0])]
    return not trained and independent_levels(split.inner)


def level_part(level: int) -> Callable[[INN], Any]:
    """The part of a model that belongs to one level (0 is the coarsest), for `fit(where=...)`."""

    def where(model):
        splits, bijection = [], model.bijection
        while True:
            layers, split = _peel(bijection)
            if split is None:
                break
            splits.append(split)
            bijection = split.inner
        if level == 0:
            return layers
        own = splits[len(splits) - level]
        return own.factored, own.context

    return where


def level_nll(level: int) -> Callable[[INN, Batch, Array], Array]:
    """One level's negative log-likelihood in nats per latent; what it does not need is never computed."""

    def objective(model, batch, key):
        image = model.partition.left[0]
        x = image.law.prepare(key, batch[image.name], (), image.shape)
        z, term = level_terms(model.bijection, x)[level]
        return -jnp.mean(term) / z[0].size

    return objective


def joint_nll(model: INN, batch: Batch, key: Array) -> Array:
    """The negative log-likelihood of all levels together, in nats per latent."""
    image = model.partition.left[0]
    return nll(model, batch, key) / image.size
