"""Ready stacks of bijections: vectors (`coupling_flow`, `realnvp`) and images (`glow`, `wavelet`).

All start finite at any depth: couplings start as the identity, scales are bounded, linear layers start as rotations.
"""

from functools import partial

import jax

from flowknife import nets
from flowknife._types import Key, Shape, as_key, as_shape
from flowknife.bijections import (
    LU,
    ActNorm,
    Bijection,
    Chain,
    Channels,
    Checkerboard,
    Composed,
    Coupling,
    Haar,
    InvertibleConv1x1,
    Orthogonal,
    Permute,
    PrincipalRotation,
    Repeat,
    Reshape,
    Scalar,
    Shift,
    ShiftScale,
    Spline,
    Split,
    Squeeze,
)
from flowknife.bijections._coupling import MakeNet
from flowknife.errors import InputError

SCALARS = {"additive": Shift(), "affine": ShiftScale(), "spline": Composed([ShiftScale(), Spline()])}
MIXINGS = ("lu", "orthogonal", "permute")


def _scalar(scalar: str | Scalar) -> Scalar:
    if isinstance(scalar, Scalar):
        return scalar
    if scalar not in SCALARS:
        raise InputError(f"got scalar={scalar!r}; expected one of {', '.join(SCALARS)}, or a Scalar")
    return SCALARS[scalar]


def _mixing(mixing: str, shape: Shape, key: jax.Array) -> Bijection:
    if mixing == "lu":
        return LU(shape, key=key)
    if mixing == "orthogonal":
        return Orthogonal(shape, key=key)
    if mixing == "permute":
        return Permute.random(shape, key=key)
    raise InputError(f"got mixing={mixing!r}; expected one of {', '.join(MIXINGS)}")


def coupling_flow(
    dim: int,
    *,
    cond_dim: int = 0,
    layers: int = 8,
    width: int = 64,
    depth: int = 2,
    scalar: str | Scalar = "spline",
    mixing: str = "lu",
    net: MakeNet | None = None,
    key: Key = None,
) -> Bijection:
    """Couplings of a vector with a linear mixing before each: the default for tables.

    With "spline", each element goes through an affine map and a rational-quadratic spline (arXiv 1906.04032).

    Args:
        dim: length of x; 1 is allowed, its couplings see the condition only.
        cond_dim: length of the condition, 0 for none.
        layers: number of couplings, scanned.
        width: hidden units of each network.
        depth: hidden layers of each network.
        scalar: "spline", "affine", "additive" or any `Scalar`.
        mixing: "lu" (trained), "orthogonal" or "permute" (fixed).
        net: constructor of the couplings' networks; default `MLP` of that width and depth.
        key: source of initial weights.

    Returns:
        a bijection of shape `(dim,)`.
    """
    make_net = partial(nets.MLP, width=width, depth=depth) if net is None else net
    cond_shape = (cond_dim,) if cond_dim else None

    def layer(key):
        mix, couple = jax.random.split(key)
        return Chain(
            [
                _mixing(mixing, (dim,), mix),
                Coupling(Channels(dim), _scalar(scalar), make_net, cond_shape=cond_shape, key=couple),
            ]
        )

    return Repeat(layer, layers, key=key)


def realnvp(shape: int | Shape, *, layers: int = 8, width: int = 128, cond_dim: int = 0, key: Key = None) -> Bijection:
    """Affine couplings with fixed alternating halves (Dinh et al. 2017, arXiv 1605.08803).

    A vector: `layers` couplings whose kept half alternates, each after an actnorm. An image: three checkerboard
    couplings, squeeze, three channel couplings, factor out half of the channels, and again while the grid is even and
    at least 4 pixels; the right end is then one flat vector.

    Args:
        shape: event shape, (dim,) or (height, width, channels).
        layers: couplings of a vector flow; they come in pairs, an odd number is rounded up.
        width: hidden units or channels of each network.
        cond_dim: length of the condition (vectors only).
        key: source of initial weights.
    """
    shape, key = as_shape(shape), as_key(key)
    if len(shape) == 3:
        return _realnvp_image(shape, width, key)
    if len(shape) != 1 or layers < 1:
        raise InputError(
            f"got shape {shape} and {layers} layers; expected (dim,) or (height, width, channels), and at least 1 layer"
        )
    cond_shape = (cond_dim,) if cond_dim else None

    def pair(key):
        keys = jax.random.split(key)
        net = partial(nets.MLP, width=width)
        parts = []
        for swap, coupling_key in zip((False, True), keys, strict=True):
            # for odd lengths both roles cover everything: half rounded down, then half rounded up
            kept = shape[0] // 2 if not swap else shape[0] - shape[0] // 2
            split = Channels(shape, min(kept, shape[0] - 1), swap=swap)
            parts += [ActNorm(shape), Coupling(split, ShiftScale(), net, cond_shape=cond_shape, key=coupling_key)]
        return Chain(parts)

    return Repeat(pair, -(-layers // 2), key=key)


def _realnvp_image(shape, width, key):
    height, columns, _ = shape
    net = partial(nets.ConvNet, width=width)
    here, below = jax.random.split(key)
    keys = jax.random.split(here, 6)
    even = height % 2 == 0 and columns % 2 == 0
    if not even or min(height, columns) < 4:
        if not even:
            raise InputError(f"got an image of shape {shape}; expected height and width even; try image_size=32")
        return Chain(
            [Coupling(Checkerboard(shape, bool(i % 2)), ShiftScale(), net, key=keys[i]) for i in range(4)]
            + [Reshape(shape, height * columns * shape[2])]
        )
    board = [Coupling(Checkerboard(shape, bool(i % 2)), ShiftScale(), net, key=keys[i]) for i in range(3)]
    squeeze = Squeeze(shape)
    small = squeeze.out_shape
    channels = [Coupling(Channels(small, swap=bool(i % 2)), ShiftScale(), net, key=keys[3 + i]) for i in range(3)]
    split = Channels(small)
    return Chain(
        [ActNorm(shape), *board, squeeze, ActNorm(small), *channels, Split(split, _deeper(split, width, below))]
    )


def _deeper(split, width, key):
    height, columns, channels = split.kept_shape
    if height % 2 or columns % 2 or min(height, columns) < 4:
        return Reshape(split.kept_shape, height * columns * channels)
    return _realnvp_image(split.kept_shape, width, key)


def levels_for(shape: Shape) -> int:
    """Levels of a multi-scale flow for an image size: halve while the grid is even and its half at least 4 pixels."""
    _check_image(shape, 0, least=0)
    height, width, _ = shape
    levels = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, levels = height // 2, width // 2, levels + 1
    return max(levels, 1)


def _check_image(shape, levels, least=1):
    if levels < least:
        raise InputError(f"got levels={levels}; expected at least {least}")
    if len(shape) != 3 or shape[0] % 2**levels or shape[1] % 2**levels:
        raise InputError(
            f"got an image of shape {shape} for {levels} levels; expected (height, width, channels), height and width "
            f"divisible by {2**levels}; try fewer levels or another image_size"
        )


def glow(
    shape: Shape,
    *,
    levels: int | None = None,
    steps: int = 8,
    width: int = 128,
    scalar: str | Scalar = "affine",
    cond_dim: int = 0,
    key: Key = None,
) -> Bijection:
    """Glow (Kingma & Dhariwal 2018, arXiv 1807.03039): per level squeeze, steps, factor out half of the channels.

    A step is actnorm, invertible 1x1 convolution (PLU), channel coupling; the steps of a level are scanned. Each
    factor-out has a learned prior: an affine coupling given the kept half.

    Args:
        shape: (height, width, channels).
        levels: default as many as the size allows, see `levels_for`.
        steps: steps per level.
        width: hidden channels of each network.
        scalar: "affine", "additive", "spline" or any `Scalar`.
        cond_dim: length of a condition (a class, say) that every coupling sees, 0 for none.
        key: source of initial weights.

    Returns:
        a bijection from `shape` to one flat vector; the last-level latent comes first.
    """
    shape = as_shape(shape)
    levels = levels_for(shape) if levels is None else levels
    _check_image(shape, levels)
    cond_shape = (cond_dim,) if cond_dim else None
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
                Coupling(Channels(small), _scalar(scalar), net, cond_shape=cond_shape, key=couple),
            ]
        )

    parts = [squeeze, Repeat(step, steps, key=here)]
    if levels == 1:
        return Chain([*parts, Reshape(small, (small[0] * small[1] * small[2],))])
    split = Channels(small)
    rest = {"levels": levels - 1, "steps": steps, "width": width, "scalar": scalar, "cond_dim": cond_dim}
    inner = glow(split.kept_shape, **rest, key=below)
    return Chain([*parts, Split(split, inner, _learned_prior(split, width, prior))])


def _learned_prior(split, width, key):
    """Affine map of all channels of the moved part, (z - t(kept)) exp(-s(kept)), as a coupling that keeps nothing."""
    everything = Channels(split.moved_shape, kept=0)
    net = partial(nets.ConvNet, width=width)
    return Coupling(everything, ShiftScale(), net, cond_shape=split.kept_shape, key=key)


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
    _check_image(shape, levels)
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
