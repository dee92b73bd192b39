"""Every bijection, one row each: what `test_bijections.py` and `test_storage.py` hold to the laws.

A new bijection needs a row here; a test fails for an exported class without one. Sizes are tiny, since the laws are
those of small things too. Networks start at zero, so rows are tested with `perturbed` parameters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife import nets
from flowknife._types import Shape, split_trainable
from flowknife.architectures import coupling_flow, dequantiser, glow, jet, lattice, realnvp, wavelet
from flowknife.bijections import (
    LU,
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Channels,
    Checkerboard,
    CoarseToFine,
    Composed,
    Concatenate,
    Conditioned,
    Coupling,
    Elementwise,
    Exp,
    Haar,
    HistogramToNormal,
    Householder,
    Inverse,
    InvertibleConv1x1,
    LeadingRotation,
    Log,
    Logit,
    MaskedAutoregressive,
    Matrix,
    Orthogonal,
    Permute,
    PixelsToNormal,
    PrincipalRotation,
    Regression,
    Repeat,
    Reshape,
    Shift,
    ShiftScale,
    Sigmoid,
    SigmoidScale,
    Softplus,
    Spline,
    Split,
    Squeeze,
    Tanh,
    TruncatedToNormal,
)

DRAW = {
    "real": lambda rng, shape: 1.5 * rng.normal(size=shape),
    "positive": lambda rng, shape: np.exp(rng.normal(size=shape)),
    "unit": lambda rng, shape: rng.uniform(0.02, 0.98, shape),
    "symmetric": lambda rng, shape: rng.uniform(-0.95, 0.95, shape),
}


@dataclass(frozen=True)
class Row:
    """A bijection and what it accepts: `left` and `right` name the numbers at its ends, see `DRAW`."""

    name: str
    make: Callable[[jax.Array], Bijection]
    cond_shape: Shape | None = None
    left: str = "real"
    right: str = "real"
    idle: tuple[str, ...] = ()  # parameters that have no effect at this size
    batch: Shape = (2, 3)
    slow: bool = False  # takes long to compile, and consists of layers that have rows of their own

    def draw(self, seed: int) -> tuple[Bijection, jax.Array, jax.Array, jax.Array | None]:
        """The bijection away from its initial values, with points at its left and right end and conditions."""
        # this kind of key compiles fastest
        batch, rng = self.batch, np.random.default_rng(seed)
        bijection = quick_jit(self.make)(jax.random.key(seed, impl="unsafe_rbg"))
        x = jnp.asarray(DRAW[self.left](rng, (*batch, *bijection.shape)))
        y = jnp.asarray(DRAW[self.right](rng, (*batch, *bijection.out_shape)))
        cond = None if self.cond_shape is None else jnp.asarray(rng.normal(size=(*batch, *self.cond_shape)))
        return perturbed(bijection, rng), x, y, cond


def classes_in(value: Any) -> Iterator[type]:
    """The class of every module in a module."""
    if isinstance(value, eqx.Module):
        yield type(value)
        for item in fields(value):
            yield from classes_in(getattr(value, item.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from classes_in(item)


def perturbed(module: eqx.Module, rng: np.random.Generator, size: float = 0.25) -> eqx.Module:
    """The module with noise added to all that is trained; matrices get less of it the more inputs they sum."""

    def moved(leaf):
        inputs = leaf.shape[-2] if leaf.ndim > 1 else 1
        noise = size / max(inputs, 1) ** 0.5 * rng.normal(size=leaf.shape)
        return jnp.asarray(np.asarray(leaf) + noise.astype(leaf.dtype))  # by numpy, which compiles nothing

    trained, rest = split_trainable(module)
    return eqx.combine(jax.tree.map(moved, trained), rest)


# For programs that run for milliseconds: compiled fast, not well.
quick_jit = partial(eqx.filter_jit, compiler_options={"xla_backend_optimization_level": 0})

MLP = partial(nets.MLP, width=8, depth=1)
RESIDUAL = partial(nets.ResidualMLP, width=8, depth=1)
CONV = partial(nets.ConvNet, width=6)
PATCH = partial(nets.PatchMLP, width=6)
VIT = partial(nets.ViT, width=8, depth=1, heads=2)
SPLINE = Spline(bins=4, tail=2.0)
AFFINE_SPLINE = Composed([ShiftScale(), SPLINE])
IMAGE = (4, 4, 2)


def _couple(split, scalar, net, cond_shape=None):
    return lambda key: Coupling(split, scalar, net, cond_shape=cond_shape, key=key)


def _fitted_rotation(key, shape, **options):
    mix, draw = jax.random.split(key)
    rows = jax.random.normal(draw, (40, *shape)) @ jax.random.normal(mix, (shape[-1], shape[-1]))
    return PrincipalRotation(shape, **options).fit(rows + 2.0)


def _fitted_actnorm(key, shape):
    return ActNorm(shape).initialise(3.0 * jax.random.normal(key, (40, *shape)) + 2.0)[0]


def _fitted_leading(key, rows=40):
    """The rotation of strongly correlated rows: the leading directions lie far from the first coordinates."""
    mix, draw = jax.random.split(key)
    x = jax.random.normal(draw, (rows, 2)) @ jax.random.normal(mix, (2, 6)) + 0.1 * jax.random.normal(key, (rows, 6))
    return LeadingRotation(6, 3, 2).fit(x + 2.0)


def _counted_pixels(key):
    values = jnp.minimum(jax.random.randint(key, (50, 2, 2, 1), 0, 12) // 3 * 3, 4)
    return PixelsToNormal((2, 2, 1), 5).initialise(values + 0.5)[0]


def _coarse_to_fine(key):
    first, second, third = jax.random.split(key, 3)
    transform = Chain([Haar((4, 4, 1)), Reshape((2, 2, 4), 16)])
    parts = [
        Coupling(Channels(4), ShiftScale(), MLP, key=first),
        Chain(
            [Reshape(12, (2, 2, 3)), Coupling(Channels((2, 2, 3)), Shift(), PATCH, cond_shape=(2, 2, 3), key=second)]
        ),
    ]
    return CoarseToFine(transform, parts, [nets.ConvResNet((4, 4, 1), 3, depth=1, squeeze=2, key=third)])


def _layer(key):
    mix, couple = jax.random.split(key)
    return Chain([ActNorm(3), LU(3, key=mix), Coupling(Channels(3), ShiftScale(), MLP, cond_shape=(2,), key=couple)])


def _factor_out(key, split, *, prior=False, context=False):
    factored, look = jax.random.split(key)
    features = (*split.kept_shape[:-1], 3)
    seen = features if context else split.kept_shape
    everything = Channels(split.moved_shape, kept=0)
    return Split(
        split,
        Chain([Elementwise(ShiftScale(), split.kept_shape), Reshape(split.kept_shape, math.prod(split.kept_shape))]),
        Coupling(everything, ShiftScale(), PATCH, cond_shape=seen, key=factored) if prior else None,
        nets.ConvResNet(split.kept_shape, 3, depth=1, key=look) if context else None,
    )


_SCALARS = [
    Row("Shift", lambda key: Shift(), (1,)),
    Row("ShiftScale", lambda key: ShiftScale(), (2,)),
    Row("ShiftScale, bound 0.5", lambda key: ShiftScale(bound=0.5), (2,)),
    Row("ShiftScale, bounds 3 and 0.5", lambda key: ShiftScale(bound=3.0, least=0.5), (2,)),
    Row("SigmoidScale", lambda key: SigmoidScale(), (2,)),
    Row("Spline", lambda key: SPLINE, (11,)),
    Row("Spline, default", lambda key: Spline(), (23,)),
    Row("Spline, two bins", lambda key: Spline(bins=2, tail=1.0), (5,)),
    Row("Composed", lambda key: AFFINE_SPLINE, (13,)),
    Row("Composed, nested", lambda key: Composed([AFFINE_SPLINE, Shift()]), (14,)),
    Row("Sigmoid", lambda key: Sigmoid(), right="unit"),
    Row("Logit", lambda key: Logit(), left="unit"),
    Row("Softplus", lambda key: Softplus(), right="positive"),
    Row("Exp", lambda key: Exp(), right="positive"),
    Row("Log", lambda key: Log(), left="positive"),
    Row("Tanh", lambda key: Tanh(), right="symmetric"),
]

_ELEMENTWISE = [
    Row("Elementwise(Spline)", lambda key: Elementwise(SPLINE, 3)),
    Row("Elementwise(ShiftScale), image", lambda key: Elementwise(ShiftScale(), (2, 2, 2))),
    Row("Elementwise(Softplus)", lambda key: Elementwise(Softplus(), 3), right="positive"),
    Row("Affine", lambda key: Affine(np.array([1.0, -2.0, 0.0]), np.array([0.5, -3.0, 1.0]))),
    Row("Affine, image", lambda key: Affine(127.5, 127.5, (2, 2, 3))),
    Row("ActNorm", lambda key: ActNorm(3)),
    Row("ActNorm, fitted", lambda key: _fitted_actnorm(key, (3,))),
    Row("ActNorm, fitted, image", lambda key: _fitted_actnorm(key, (2, 2, 3))),
]

_PROBITS = [
    Row("HistogramToNormal, uniform", lambda key: HistogramToNormal([[0.0, 1.0]] * 3, np.ones((3, 1))), left="unit"),
    Row(
        "HistogramToNormal",
        lambda key: HistogramToNormal([[0.0, 0.3, 0.7, 1.0]] * 2, [[1, 5, 2], [3, 2, 4]]),
        left="unit",
    ),
    Row("PixelsToNormal", lambda key: PixelsToNormal((2, 2, 1), 5), left="unit"),
    Row("PixelsToNormal, counted", _counted_pixels, left="unit"),
    Row("TruncatedToNormal", lambda key: TruncatedToNormal([-1.0, 0.3, 4.0], 1.0, 0.0, 1.0), left="unit"),
    Row(
        "TruncatedToNormal, one bound",
        lambda key: TruncatedToNormal([0.5, -3.0], 5.0, 0.0, np.inf),
        left="positive",
        slow=True,
    ),
    Row("TruncatedToNormal, no bound", lambda key: TruncatedToNormal([0.5, -3.0], 2.0, -np.inf, np.inf)),
    Row("Concatenate", lambda key: Concatenate([LU(2, key=key), Elementwise(ShiftScale(), 1), ActNorm(2)])),
]


def _conditioned(key):
    flow, embed = jax.random.split(key)
    embedding = nets.MLP((3,), (2,), width=4, depth=1, zero=False, key=embed)
    return Conditioned(coupling_flow(2, cond_dim=2, layers=1, width=4, depth=1, scalar="affine", key=flow), embedding)


def _fitted_regression(key):
    """Three numbers, of which two conditions say something linear."""
    rows = jax.random.normal(key, (50, 5))
    return Regression(3, 2).initialise(rows[:, 2:] + rows[:, :2] @ jnp.ones((2, 3)), rows[:, :2])[0]


_LINEAR = [
    Row("LeadingRotation", lambda key: LeadingRotation(5, 2, 1)),
    Row("LeadingRotation, fitted", _fitted_leading),
    Row("LeadingRotation, fitted to fewer rows", lambda key: _fitted_leading(key, rows=3)),
    Row("Regression", _fitted_regression, (2,)),
    Row("Conditioned", _conditioned, (3,)),
    Row("Permute", lambda key: Permute([2, 0, 1])),
    Row("Permute, image", lambda key: Permute.random(IMAGE, key=key)),
    Row("Orthogonal", lambda key: Orthogonal(3, key=key)),
    Row("Householder", lambda key: Householder(3, key=key)),
    Row("Householder, two", lambda key: Householder((2, 2, 3), 2, key=key)),
    Row("LU", lambda key: LU(3, key=key)),
    Row("LU, identity", lambda key: LU(3, identity=True)),
    Row("Matrix", lambda key: Matrix(3, key=key)),
    Row("PrincipalRotation", lambda key: PrincipalRotation(3)),
    Row("PrincipalRotation, fitted", lambda key: _fitted_rotation(key, (3,))),
    Row("PrincipalRotation, fitted, image", lambda key: _fitted_rotation(key, (2, 2, 3))),
    Row("PrincipalRotation, fitted, pure", lambda key: _fitted_rotation(key, (3,), whiten=False)),
    Row("PrincipalRotation, fitted, back", lambda key: _fitted_rotation(key, (3,), back=True)),
    Row("InvertibleConv1x1", lambda key: InvertibleConv1x1((2, 2, 3), key=key)),
    Row("InvertibleConv1x1, plain", lambda key: InvertibleConv1x1((2, 2, 3), "plain", key=key)),
]

_COUPLINGS = [
    Row("Coupling(Shift)", _couple(Channels(3), Shift(), MLP)),
    Row("Coupling(ShiftScale), swapped", _couple(Channels(5, swap=True), ShiftScale(), RESIDUAL), slow=True),
    Row("Coupling(Spline), conditional", _couple(Channels(3), SPLINE, MLP, (2,)), (2,), slow=True),
    Row("Coupling(Composed)", _couple(Channels(4, kept=3), AFFINE_SPLINE, MLP)),
    Row(
        "Coupling, all moved by the condition", _couple(Channels(2, kept=0), AFFINE_SPLINE, MLP, (2,)), (2,), slow=True
    ),
    Row("Coupling, image, channels", _couple(Channels(IMAGE), ShiftScale(), CONV)),
    Row("Coupling, image, checkerboard", _couple(Checkerboard(IMAGE), ShiftScale(), CONV), slow=True),
    Row("Coupling, image, swapped", _couple(Checkerboard(IMAGE, swap=True), ShiftScale(), PATCH), slow=True),
    Row("Coupling, image, MLP", _couple(Checkerboard((2, 2, 2)), Shift(), MLP)),
    Row("Coupling, image given a vector", _couple(Channels(IMAGE), ShiftScale(), CONV, (3,)), (3,), slow=True),
    Row(
        "Coupling, image given an image", _couple(Channels(IMAGE), ShiftScale(), CONV, (4, 4, 2)), (4, 4, 2), slow=True
    ),
    Row("Coupling, transformer given a vector", _couple(Channels(IMAGE), SigmoidScale(), VIT, (3,)), (3,)),
    Row(
        "Coupling, transformer given an image", _couple(Channels(IMAGE), Shift(), VIT, (4, 4, 2)), (4, 4, 2), slow=True
    ),
    Row("Coupling, patches given a vector", _couple(Channels(IMAGE), ShiftScale(), PATCH, (3,)), (3,), slow=True),
    Row(
        "Coupling, patches given an image", _couple(Channels((2, 2, 2)), SPLINE, PATCH, (2, 2, 2)), (2, 2, 2), slow=True
    ),
]

_AUTOREGRESSIVE = [
    Row("MaskedAutoregressive", lambda key: MaskedAutoregressive(3, AFFINE_SPLINE, width=9, key=key)),
    Row(
        "MaskedAutoregressive, one",
        lambda key: MaskedAutoregressive(1, ShiftScale(), width=4, key=key),
        idle=("weight",),
        slow=True,
    ),
    Row(
        "MaskedAutoregressive, conditional",
        lambda key: MaskedAutoregressive(4, ShiftScale(), width=9, depth=1, cond_dim=2, key=key),
        (2,),
    ),
    Row("Inverse autoregressive", lambda key: Inverse(MaskedAutoregressive(3, SPLINE, width=9, key=key)), slow=True),
]

_COMPOSED = [
    Row("Chain", lambda key: Chain([Elementwise(ShiftScale(), 4), Reshape(4, (2, 2)), Householder((2, 2), key=key)])),
    Row("Repeat(Chain)", lambda key: Repeat(_layer, 3, key=key), (2,)),
    Row("Repeat, reversible", lambda key: Repeat(_layer, 3, memory="reversible", key=key), (2,)),
    Row("Repeat, once", lambda key: Repeat(_layer, 1, key=key), (2,), slow=True),
    Row("Inverse", lambda key: Inverse(_layer(key)), (2,)),
    Row("Inverse(Exp)", lambda key: Inverse(Elementwise(Exp(), 2)), left="positive"),
    Row("Inverse(Squeeze)", lambda key: Inverse(Squeeze((2, 2, 2)))),
    Row("Reshape", lambda key: Reshape((2, 3), (3, 2, 1))),
    Row("Squeeze", lambda key: Squeeze((4, 2, 2))),
    Row("Haar", lambda key: Haar((2, 4, 2))),
    Row("CoarseToFine", _coarse_to_fine),
    Row("Split, vector", lambda key: Split(Channels(5), LU(2, key=key))),
    Row("Split, checkerboard", lambda key: _factor_out(key, Checkerboard(IMAGE)), slow=True),
    Row("Split, learned prior", lambda key: _factor_out(key, Channels(IMAGE), prior=True), slow=True),
    Row("Split, context", lambda key: _factor_out(key, Channels((4, 4, 3)), prior=True, context=True)),
    Row(
        "Split, conditional",
        lambda key: Split(Channels(5, swap=True), Coupling(Channels(2), ShiftScale(), MLP, cond_shape=(2,), key=key)),
        (2,),
    ),
]

_SMALL = {"layers": 2, "width": 8, "depth": 1}
_TINY = {"width": 6, "features": 6, "depth": 1}
_ARCHITECTURES = [
    Row("coupling_flow, 1", lambda key: coupling_flow(1, **_SMALL, key=key), idle=("lower", "upper"), slow=True),
    Row(
        "coupling_flow, 1, conditional",
        lambda key: coupling_flow(1, cond_dim=2, **_SMALL, key=key),
        (2,),
        idle=("lower", "upper"),
        slow=True,
    ),
    Row("coupling_flow, 2, spline", lambda key: coupling_flow(2, **_SMALL, key=key), slow=True),
    Row("coupling_flow, 2, affine", lambda key: coupling_flow(2, **_SMALL, scalar="affine", mixing="permute", key=key)),
    Row(
        "coupling_flow, 5, additive, conditional",
        lambda key: coupling_flow(5, cond_dim=3, **_SMALL, scalar="additive", mixing="orthogonal", key=key),
        (3,),
        slow=True,
    ),
    Row("realnvp, 1", lambda key: realnvp(1, layers=2, width=8, key=key), slow=True),
    Row("realnvp, 5, conditional", lambda key: realnvp(5, layers=4, width=8, cond_dim=2, key=key), (2,), slow=True),
    Row("realnvp, 2x2 pixels", lambda key: realnvp((2, 2, 1), width=4, key=key), slow=True),
    Row("realnvp, 4x8 pixels", lambda key: realnvp((4, 8, 1), width=4, key=key), slow=True),
    Row(
        "glow, one level",
        lambda key: glow((4, 4, 1), levels=1, steps=2, width=4, scalar="spline", key=key),
        slow=True,
    ),
    Row(
        "glow, two levels",
        lambda key: glow((8, 8, 1), levels=2, steps=2, width=4, cond_dim=2, key=key),
        (2,),
        slow=True,
    ),
    Row(
        "jet, 4x4 pixels",
        lambda key: jet((4, 4, 1), patch=2, couplings=2, width=4, depth=1, heads=2, key=key),
        slow=True,
    ),
    Row(
        "dequantiser, 4x4 pixels",
        lambda key: dequantiser((4, 4, 1), width=4, depth=1, key=key),
        (4, 4, 1),
        left="unit",
        right="symmetric",  # numbers in (0, 1) close to 1 have few digits left
        slow=True,
    ),
    Row(
        "dequantiser, 3x3 pixels",
        lambda key: dequantiser((3, 3, 1), width=4, depth=1, layers=1, key=key),
        (3, 3, 1),
        slow=True,
        left="unit",
        right="symmetric",
    ),
    Row("wavelet, 8x8x1", lambda key: wavelet((8, 8, 1), **_TINY, key=key), slow=True),
    Row(
        "lattice, 4x8x1",
        lambda key: lattice((4, 8, 1), 8, cond_dim=2, **_TINY, key=key),
        (2,),
        left="unit",
        slow=True,
    ),
]

ROWS = (
    *_SCALARS,
    *_ELEMENTWISE,
    *_PROBITS,
    *_LINEAR,
    *_COUPLINGS,
    *_AUTOREGRESSIVE,
    *_COMPOSED,
    *_ARCHITECTURES,
)
