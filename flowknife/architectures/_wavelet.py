"""The wavelet flow and the polyphase (lattice) flow, from coarse to fine."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.architectures._levels import check_image
from flowknife.architectures._vectors import condition_shape, coupling_flow
from flowknife.bijections import (
    Bijection,
    Chain,
    Channels,
    CoarseToFine,
    Composed,
    Coupling,
    Haar,
    LeadingRotation,
    Permute,
    PixelsToNormal,
    PrincipalRotation,
    Regression,
    Repeat,
    Reshape,
    Scalar,
    ShiftScale,
    Spline,
    Split,
    Squeeze,
)

_WHOLE = 32  # largest side in pixels of the image whose principal directions are computed
_LEADING = 192  # principal directions; with half as many, samples of 64x64 faces lose global structure, such as eyes
_LEADING_LAYERS = 2
_DENSE = 1024  # largest number of details that are whitened jointly
_TAIL = 4.0  # standard deviations beyond which a spline is the identity


def wavelet(
    shape: Shape,
    *,
    levels: int | None = None,
    width: int = 128,
    features: int = 128,
    depth: int = 2,
    bins: int = 8,
    groups: int = 6,
    cond_dim: int = 0,
    leading: Callable[[int], Bijection] | None = None,
    key: Key = None,
) -> Bijection:
    """Wavelet flow, from coarse to fine.

    An orthonormal Haar pyramid (Yu et al. 2020, arXiv 2010.13821) of the image in its principal colours is rotated so
    that its coarsest numbers are the coefficients of the leading principal directions of the whole image, which capture
    global correlations. These are transformed by a small dense flow. The details of each level are transformed by local
    couplings, conditioned on the image of the coarser levels. It is a single bijection with one latent per level.
    Levels can be trained one by one, since each term depends on the parameters of its own level only.

    Args:
        shape: (height, width, channels).
        levels: number of Haar levels; default until the coarsest grid has at most 8 pixels a side.
        width: hidden channels of the couplings.
        features: channels of the context network of each level.
        depth: residual blocks of the context network.
        bins: bins of the splines.
        groups: groups of coefficients per level, each one coupling.
        cond_dim: length of a condition (such as a class) of every level, 0 for none.
        leading: builds the bijection of the coarsest numbers from their count (with a condition, if there is one);
            default a small dense flow.
        key: random key of the initial weights.

    Returns:
        a bijection from `shape` to one flat vector; the coarsest latent comes first.
    """
    shape, levels, leading, key = _with_defaults(shape, levels, leading, bins, cond_dim, key)
    # couplings of whitened details need no large factors, which let samples diverge at low temperatures
    scalar = Composed([ShiftScale(bound=3.0, least=1.5), Spline(bins=bins, tail=_TAIL)])
    sizes = _Sizes(width, features, depth, groups, scalar, condition_shape(cond_dim))
    return Chain([PrincipalRotation(shape, whiten=False), _above(shape, levels, 1.0, sizes, leading, key)])


def lattice(
    shape: Shape,
    values: int,
    *,
    levels: int | None = None,
    width: int = 128,
    features: int = 128,
    depth: int = 2,
    bins: int = 12,
    groups: int = 6,
    cond_dim: int = 0,
    leading: Callable[[int], Bijection] | None = None,
    key: Key = None,
) -> Bijection:
    """Polyphase flow: every second pixel first, then the pixels between given these; for images mostly of one value.

    Like `wavelet`, but with pixels in place of averages and differences (Reed et al. 2017, arXiv 1703.03664), each as
    the normal score of its value. If most pixels are black or white, the dequantisation noise then stays within a known
    interval of each number; a rotation (Haar, principal directions) would spread it over all of them.

    Args:
        shape: (height, width, channels).
        values: number of values that a pixel can have.
        levels: number of times that the grid is halved; default until it has at most 8 pixels a side.
        width: hidden channels of the couplings.
        features: channels of the context network of each level.
        depth: residual blocks of the context network.
        bins: bins of the splines.
        groups: groups of pixels per level, each one coupling.
        cond_dim: length of a condition (such as a class) of every level, 0 for none.
        leading: builds the bijection of the coarsest pixels from their count (with a condition, if there is one);
            default a small dense flow.
        key: random key of the initial weights.

    Returns:
        a bijection from `shape` to one flat vector; the coarsest latent comes first.
    """
    shape, levels, leading, key = _with_defaults(shape, levels, leading, bins, cond_dim, key)
    # normal scores need no scaling, which would move extreme values even further out
    sizes = _Sizes(width, features, depth, groups, Spline(bins=bins, tail=_TAIL), condition_shape(cond_dim))
    transform, grids = _pyramid(shape, levels, Squeeze)
    return Chain([PixelsToNormal(shape, values), _coarse_to_fine(transform, grids, 1.0, sizes, leading, _local, key)])


class _Sizes(NamedTuple):
    width: int
    features: int
    depth: int
    groups: int
    scalar: Scalar
    cond_shape: Shape | None


def _with_defaults(shape, levels, leading, bins, cond_dim, key):
    """The arguments of both flows, with their defaults."""
    shape = as_shape(shape)
    levels = _levels(shape) if levels is None else levels
    check_image(shape, levels)
    leading_key, key = jax.random.split(as_key(key))
    return shape, levels, leading or partial(_leading, bins=bins, cond_dim=cond_dim, key=leading_key), key


def _levels(shape):
    """Number of levels until the coarsest grid has a side of at most 8 pixels."""
    levels = 1
    while min(shape[:2]) // 2**levels > 8 and shape[0] % 2 ** (levels + 1) == 0 == shape[1] % 2 ** (levels + 1):
        levels += 1
    return levels


def _above(shape, levels, scale, sizes, leading, key):
    """Levels above the grid of the principal directions: details given the exact coarser image."""
    if levels == 1 or min(shape[:2]) <= _WHOLE:
        transform, grids = _pyramid(shape, levels, Haar)
        dim = math.prod(shape)
        first = dim - sum(math.prod(grid) for grid in grids)
        transform = Chain([transform, LeadingRotation(dim, first, min(first, _LEADING))])
        return _coarse_to_fine(transform, grids, scale, sizes, leading, _details, key)
    here, context, below = jax.random.split(key, 3)
    haar = Haar(shape)
    split = Channels(haar.out_shape, kept=shape[2])
    inner = _above(split.kept_shape, levels - 1, 0.5 * scale, sizes, leading, below)
    squeeze = 2 if _halves(split.kept_shape) else 1
    net = _context(split.kept_shape, squeeze, 0.5 * scale, sizes, context)
    return Chain([haar, Split(split, inner, Chain(_details(split.moved_shape, sizes, here)), net)])


def _pyramid(shape, levels, halve):
    """The pyramid as a bijection to one vector, and the grids of the details, coarsest first."""
    step = halve(shape)
    split = Channels(step.out_shape, kept=shape[2])
    if levels == 1:
        inner, grids = Reshape(split.kept_shape, (math.prod(split.kept_shape),)), []
    else:
        inner, grids = _pyramid(split.kept_shape, levels - 1, halve)
    return Chain([step, Split(split, inner)]), [*grids, split.moved_shape]


def _coarse_to_fine(transform, grids, scale, sizes, leading, details, key):
    """The leading numbers, then the details of each grid given the image of the coarser ones."""
    keys = jax.random.split(key, 2 * len(grids))
    parts, contexts = [leading(transform.out_shape[0] - sum(math.prod(grid) for grid in grids))], []
    for i, grid in enumerate(grids):
        squeeze = transform.shape[0] // grid[0] * (2 if _halves(grid) else 1)
        size = math.prod(grid)
        parts.append(Chain([Reshape((size,), grid), *details(grid, sizes, keys[2 * i])]))
        contexts.append(_context(transform.shape, squeeze, scale, sizes, keys[2 * i + 1]))
    return CoarseToFine(transform, parts, contexts)


def _halves(shape):
    return shape[0] % 2 == 0 == shape[1] % 2


def _context(shape, squeeze, scale, sizes, key):
    seen = sizes.cond_shape
    form: dict[str, Any] = {"depth": sizes.depth, "squeeze": squeeze, "scale": scale, "cond_shape": seen}
    return nets.ConvResNet(shape, sizes.features, **form, key=key)


def _leading(dim, bins, cond_dim, key):
    """A small dense flow of the whitened principal coefficients, which are already nearly normal.

    Their linear regression on the condition (such as the mean of each class) is fitted in closed form too.
    """
    scalar = Composed([ShiftScale(bound=1.0), Spline(bins=bins, tail=_TAIL)])
    dense = coupling_flow(
        dim,
        cond_dim=cond_dim,
        layers=_LEADING_LAYERS,
        width=64,
        depth=1,
        scalar=scalar,
        mixing="permute",
        key=key,
    )
    return Chain([*([Regression(dim, cond_dim)] if cond_dim else []), PrincipalRotation((dim,)), dense])


def _details(shape, sizes, key):
    """Whitened details, then the autoregression over groups, given features of the coarser image."""
    size = math.prod(shape)
    if size > _DENSE:
        return [PrincipalRotation(shape), *_local(shape, sizes, key)]
    whiten = [Reshape(shape, (size,)), PrincipalRotation((size,), back=True), Reshape((size,), shape)]
    return [*whiten, *_local(shape, sizes, key)]


def _local(shape, sizes, key):
    """Sequential couplings over groups of coefficients of four interleaved grids, as a scan.

    Each coupling transforms the last group, conditioned on all others, and then the channels are rolled. The groups
    after it are already latents, so this is an autoregression: each group is conditioned on the previous ones in data
    space.
    """
    parts, grid, groups = [], shape, 3
    if _halves(shape):
        squeeze = Squeeze(shape)
        grid, groups = squeeze.out_shape, sizes.groups
        # grids in the order (0,0), (1,1), (0,1), (1,0): the later ones lie between the earlier ones
        order = [place * shape[2] + i for place in (0, 3, 1, 2) for i in range(shape[2])]
        parts = [squeeze, Permute(order, grid)]
    groups = max(g for g in range(1, groups + 1) if grid[2] % g == 0)
    size = grid[2] // groups
    net = partial(nets.PatchMLP, width=sizes.width)
    cond_shape = (*grid[:2], sizes.features)
    roll = [(i - size) % grid[2] for i in range(grid[2])]

    def step(key):
        split = Channels(grid, kept=grid[2] - size)
        return Chain([Coupling(split, sizes.scalar, net, cond_shape=cond_shape, key=key), Permute(roll, grid)])

    return [*parts, Repeat(step, groups, key=key)]
