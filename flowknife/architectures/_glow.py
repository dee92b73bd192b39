"""Glow."""

from functools import partial

import jax

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.architectures._levels import check_image, levels_for
from flowknife.architectures._vectors import condition_shape, scalar_named
from flowknife.bijections import (
    ActNorm,
    Bijection,
    Chain,
    Channels,
    Coupling,
    InvertibleConv1x1,
    Repeat,
    Reshape,
    Scalar,
    ShiftScale,
    Split,
    Squeeze,
)
from flowknife.bijections._chain import Memory


def glow(
    shape: Shape,
    *,
    levels: int | None = None,
    steps: int = 8,
    width: int = 128,
    scalar: str | Scalar = "affine",
    cond_dim: int = 0,
    memory: Memory = "standard",
    key: Key = None,
) -> Bijection:
    """Glow (Kingma & Dhariwal 2018, arXiv 1807.03039): per level squeeze, steps, factor out half of the channels.

    A step is actnorm, invertible 1x1 convolution (PLU), channel coupling; the steps of a level are scanned. Each
    factor-out has a learned prior: an affine coupling given the kept half, and the condition.

    Args:
        shape: (height, width, channels).
        levels: number of levels; default as many as the size allows, see `levels_for`.
        steps: steps per level.
        width: hidden channels of each network.
        scalar: "affine", "additive", "spline" or any `Scalar`.
        cond_dim: length of a condition (such as a class) of every coupling and every learned prior, 0 for none.
        memory: "reversible" recomputes activations in the backward pass, see `Repeat`.
        key: random key of the initial weights.

    Returns:
        a bijection from `shape` to one flat vector; the last-level latent comes first.
    """
    shape = as_shape(shape)
    levels = levels_for(shape) if levels is None else levels
    check_image(shape, levels)
    cond_shape = condition_shape(cond_dim)
    net = partial(nets.ConvNet, width=width)
    squeeze = Squeeze(shape)
    small = squeeze.out_shape
    here, prior, below = jax.random.split(as_key(key), 3)

    def step(key):
        mix, couple = jax.random.split(key)
        return Chain(
            [
                ActNorm(small),
                InvertibleConv1x1(small, key=mix),
                Coupling(Channels(small), scalar_named(scalar), net, cond_shape=cond_shape, key=couple),
            ]
        )

    parts = [squeeze, Repeat(step, steps, memory=memory, key=here)]
    if levels == 1:
        return Chain([*parts, Reshape(small, (small[0] * small[1] * small[2],))])
    split = Channels(small)
    rest = {"steps": steps, "width": width, "scalar": scalar, "cond_dim": cond_dim, "memory": memory}
    inner = glow(split.kept_shape, levels=levels - 1, **rest, key=below)
    return Chain([*parts, Split(split, inner, *_learned_prior(split, cond_dim, width, prior))])


def _learned_prior(split, cond_dim, width, key):
    """Affine map of the moved part, (z - t(kept, cond)) exp(-s(kept, cond)), and its context of kept and cond.

    The map is a coupling with an empty identity part. Without a condition there is no context network, only the kept
    part.
    """
    *grid, channels = split.kept_shape
    everything = Channels(split.moved_shape, kept=0)
    net = partial(nets.ConvNet, width=width)
    coupling = Coupling(everything, ShiftScale(), net, cond_shape=(*grid, channels + cond_dim), key=key)
    return coupling, nets.Joined(split.kept_shape, (cond_dim,)) if cond_dim else None
