"""The wavelet flow: global first, local after."""

from functools import partial

import jax

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.architectures._levels import check_image
from flowknife.bijections import (
    Bijection,
    Chain,
    Channels,
    Composed,
    Coupling,
    Haar,
    Permute,
    PrincipalRotation,
    Repeat,
    Reshape,
    ShiftScale,
    Spline,
    Split,
    Squeeze,
)


def wavelet(
    shape: Shape,
    *,
    levels: int | None = None,
    width: int = 128,
    features: int = 128,
    depth: int = 2,
    bins: int = 8,
    groups: int = 6,
    coarse_width: int = 128,
    key: Key = None,
) -> Bijection:
    """Wavelet flow: a global map of the coarsest image, local conditional flows for the details.

    An orthonormal Haar pyramid (Yu et al. 2020, arXiv 2010.13821) of the image in its principal colours. The coarsest
    image is whitened as a whole in closed form, which knows what eyes and ears have to do with each other, and goes
    through local couplings, which know their non-Gaussian detail. The Haar details of each level go through the same
    kind of couplings, given features of the coarser image. One bijection, one latent per level; levels can be trained
    one by one, since no level's parameters appear in another's term.

    Args:
        shape: (height, width, channels).
        levels: number of Haar levels; default until the coarsest grid has at most 16 pixels a side.
        width: hidden channels of the couplings of the details.
        features: channels of the context network of each level.
        depth: residual blocks of the context network.
        bins: bins of the splines.
        groups: groups of coefficients per level, each one coupling.
        coarse_width: hidden channels of the couplings of the coarsest image.
        key: source of initial weights.

    Returns:
        a bijection from `shape` to one flat vector; the coarsest latent comes first.
    """
    shape = as_shape(shape)
    if levels is None:
        levels = 1
        while min(shape[:2]) // 2**levels > 16 and shape[0] % 2 ** (levels + 1) == 0 == shape[1] % 2 ** (levels + 1):
            levels += 1
    check_image(shape, levels)
    sizes = {
        "width": width,
        "features": features,
        "depth": depth,
        "bins": bins,
        "groups": groups,
        "coarse_width": coarse_width,
    }
    rest = _pyramid(shape, levels, 1.0, sizes, as_key(key))
    return Chain([PrincipalRotation(shape, whiten=False), rest])


def _pyramid(shape, levels, scale, sizes, key):
    if levels == 0:
        return _coarsest(shape, sizes, key)
    here, context, below = jax.random.split(key, 3)
    haar = Haar(shape)
    split = Channels(haar.out_shape, kept=shape[2])
    inner = _pyramid(split.kept_shape, levels - 1, 0.5 * scale, sizes, below)
    height, columns, _ = split.kept_shape
    halve = height % 2 == 0 and columns % 2 == 0
    details = _details(split.moved_shape, halve, sizes, here)
    net = nets.ConvResNet(
        split.kept_shape, sizes["features"], depth=sizes["depth"], halve=halve, scale=0.5 * scale, key=context
    )
    return Chain([haar, Split(split, inner, details, net)])


def _details(shape, halve, sizes, key):
    """Whitened channels, then the autoregression over groups, given features of the coarse image."""
    return Chain([PrincipalRotation(shape), *_local(shape, halve, sizes, sizes["features"], key)])


def _local(shape, halve, sizes, cond_channels, key):
    """Couplings over groups of coefficients of four interleaved grids, one after another, scanned.

    Each coupling moves the last group, steered by all others, and the channels roll on. What lies behind a group in the
    row is latent by then, so this is an autoregression: each group given the ones before it as they are in the data.
    """
    parts, grid, groups = [], shape, 3
    if halve:
        squeeze = Squeeze(shape)
        grid, groups = squeeze.out_shape, sizes["groups"]
        # grids in the order (0,0), (1,1), (0,1), (1,0): the later ones lie between the earlier ones
        order = [place * shape[2] + i for place in (0, 3, 1, 2) for i in range(shape[2])]
        parts = [squeeze, Permute(order, grid)]
    groups = max(g for g in range(1, groups + 1) if grid[2] % g == 0)
    size = grid[2] // groups
    net = partial(nets.PatchMLP, width=sizes["width"])
    scalar = Composed([ShiftScale(bound=3.0), Spline(bins=sizes["bins"], tail=4.0)])
    cond_shape = (*grid[:2], cond_channels) if cond_channels else None
    roll = [(i - size) % grid[2] for i in range(grid[2])]

    def step(key):
        split = Channels(grid, kept=grid[2] - size)
        return Chain([Coupling(split, scalar, net, cond_shape=cond_shape, key=key), Permute(roll, grid)])

    return [*parts, Repeat(step, groups, key=key)]


def _coarsest(shape, sizes, key):
    """Whitening of the whole image in closed form, then local couplings of what it leaves."""
    dim = shape[0] * shape[1] * shape[2]
    halve = shape[0] % 2 == 0 and shape[1] % 2 == 0
    local = _local(shape, halve, {**sizes, "width": sizes["coarse_width"]}, 0, key)
    whiten = [Reshape(shape, (dim,)), PrincipalRotation((dim,), back=True), Reshape((dim,), shape)]
    return Chain([*whiten, *local])
