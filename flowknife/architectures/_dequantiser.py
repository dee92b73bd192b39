"""Variational dequantisation."""

from functools import partial

import jax
import numpy as np

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.architectures._vectors import scalar_named
from flowknife.bijections import Bijection, Chain, Channels, Conditioned, Coupling, HistogramToNormal, Squeeze
from flowknife.errors import InputError


def dequantiser(shape: Shape, *, layers: int = 2, width: int = 32, depth: int = 2, key: Key = None) -> Bijection:
    """The dequantisation noise of a discrete image: u in (0, 1)^shape <-> N(0, I), given the image.

    Ho et al. 2019, arXiv 1902.00275, sec. 3.1; for `laws.Pixels(noise=...)`. A residual network computes features of
    the image once. A first spline transforms all elements given the features; the following couplings alternately
    transform one half of the channels of every 2x2 block, given the other half and the features. It starts exactly as
    the uniform distribution.

    Args:
        shape: (height, width, channels).
        layers: couplings after the first.
        width: channels of the features and of each network.
        depth: residual blocks of the network of the image.
        key: random key of the initial weights.

    Returns:
        a bijection of that shape with the image, scaled to (-1, 1), as its condition.

    Raises:
        InputError: for a shape that is not that of an image.
    """
    shape = as_shape(shape)
    if len(shape) != 3:
        raise InputError(f"got shape {shape}; expected (height, width, channels)")
    look, *keys = jax.random.split(as_key(key), 2 + layers)
    even = shape[0] % 2 == 0 and shape[1] % 2 == 0
    grid = Squeeze(shape).out_shape if even else shape
    parts: list[Bijection] = [Squeeze(shape)] if even else []
    parts.append(HistogramToNormal(np.broadcast_to([0.0, 1.0], (*grid, 2)), np.ones((*grid, 1))))
    for i, couple in enumerate(keys):
        # the first one transforms all elements given the image: a single channel has no identity part
        split = Channels(grid, 0 if i == 0 else None, swap=bool(i % 2))
        net = partial(nets.PatchMLP, width=width)
        parts.append(Coupling(split, scalar_named("spline"), net, cond_shape=(*grid[:2], width), key=couple))
    return Conditioned(Chain(parts), nets.ConvResNet(shape, width, depth=depth, squeeze=1 + even, key=look))
