"""Scalar maps, for couplings, autoregressive flows and elementwise layers.

A `Scalar` is a bijection of one number (event shape `()`), so every array axis is a batch axis for it. Its `cond`, of
shape `(*x.shape, num_params)`, holds its *raw* parameters: any real number is allowed, and zero is always the identity.
So the same `ShiftScale` or `Spline` is the transformer of a coupling, of an autoregressive flow, and (through
`Elementwise`, which owns trainable raw parameters) a layer on its own.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowknife._types import Constant, Shape, as_shape
from flowknife.bijections._base import Bijection, ScalarBijection, sum_event
from flowknife.errors import InputError

_LOG_2 = math.log(2.0)  # a Python float, so that results keep the precision of arrays

Numbers = ArrayLike | Sequence[float]


class Scalar(Bijection):
    """A scalar bijection whose raw parameters are passed as `cond`; see the module's docstring."""

    shape: ClassVar[Shape] = ()

    @property
    @abc.abstractmethod
    def num_params(self) -> int:
        """Number of raw parameters per number."""

    @property
    def cond_shape(self) -> Shape | None:
        return (self.num_params,) if self.num_params else None


class Shift(Scalar):
    """y = x + t, the additive transformer of NICE (Dinh et al. 2014, arXiv 1410.8516, eq. 10)."""

    num_params: ClassVar[int] = 1

    def encode(self, x, cond: Any = None):
        return x + cond[..., 0], jnp.zeros_like(x)

    def decode(self, y, cond: Any = None):
        return y - cond[..., 0], jnp.zeros_like(y)


class ShiftScale(Scalar):
    """y = x exp(s) + t with s = bound tanh(raw / bound), the affine transformer of RealNVP with a soft clamp.

    Dinh et al. 2017, arXiv 1605.08803, eq. 7; clamp as in Ardizzone et al. 2019, arXiv 1907.02392, sec. 3.2. The
    clamp keeps a deep stack finite for any output of the network.

    Args:
        bound: largest |s|, the log of the scale.
        least: largest -s; default `bound`. `decode` multiplies by at most exp(least). If x has unit spread, large
            factors are hardly needed, and the limit bounds the error of a network far from its training data.
    """

    num_params: ClassVar[int] = 2
    bound: float = eqx.field(static=True, default=2.0)
    least: float | None = eqx.field(static=True, default=None)

    def _log_scale(self, cond):
        raw = cond[..., 1]
        bound = self.bound if self.least is None else jnp.where(raw > 0, self.bound, self.least)
        return bound * jnp.tanh(raw / bound)

    def encode(self, x, cond: Any = None):
        s = self._log_scale(cond)
        return x * jnp.exp(s) + cond[..., 0], s

    def decode(self, y, cond: Any = None):
        s = self._log_scale(cond)
        return (y - cond[..., 0]) * jnp.exp(-s), s


class SigmoidScale(Scalar):
    """y = 2 sigmoid(s) (x + t), a scale between 0 and 2.

    The transformer of Jet (Kolesnikov et al. 2024, arXiv 2412.15129, sec. 3).
    """

    num_params: ClassVar[int] = 2

    def encode(self, x, cond: Any = None):
        log_scale = _LOG_2 + jax.nn.log_sigmoid(cond[..., 1])
        return (x + cond[..., 0]) * jnp.exp(log_scale), log_scale

    def decode(self, y, cond: Any = None):
        log_scale = _LOG_2 + jax.nn.log_sigmoid(cond[..., 1])
        return y * jnp.exp(-log_scale) - cond[..., 0], log_scale


class Composed(Scalar):
    """Composition of scalar maps, each with its own share of the raw parameters: y = f_n(... f_1(x)).

    For example, an affine map followed by a spline aligns the spline's fixed interval with the data.
    """

    scalars: tuple[Scalar, ...]

    def __init__(self, scalars: Sequence[Scalar]):
        self.scalars = tuple(scalars)

    @property
    def num_params(self) -> int:
        return sum(scalar.num_params for scalar in self.scalars)

    def _shares(self, cond):
        ends = np.cumsum([scalar.num_params for scalar in self.scalars])[:-1]
        return list(zip(self.scalars, jnp.split(cond, ends, axis=-1), strict=True))

    def encode(self, x, cond: Any = None):
        log_det = jnp.zeros_like(x)
        for scalar, raw in self._shares(cond):
            x, term = scalar.encode(x, raw)
            log_det = log_det + term
        return x, log_det

    def decode(self, y, cond: Any = None):
        log_det = jnp.zeros_like(y)
        for scalar, raw in reversed(self._shares(cond)):
            y, term = scalar.decode(y, raw)
            log_det = log_det + term
        return y, log_det


class Sigmoid(Scalar):
    """y = 1 / (1 + exp(-x)), the real line onto (0, 1)."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        return jax.nn.sigmoid(x), jax.nn.log_sigmoid(x) + jax.nn.log_sigmoid(-x)

    def decode(self, y, cond=None):
        x = jnp.log(y) - jnp.log1p(-y)
        return x, jnp.log(y) + jnp.log1p(-y)


class Logit(Scalar):
    """y = log(x / (1 - x)), the interval (0, 1) onto the real line; the inverse of `Sigmoid`."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        y, log_det = Sigmoid().decode(x)
        return y, -log_det

    def decode(self, y, cond=None):
        x, log_det = Sigmoid().encode(y)
        return x, -log_det


class Softplus(Scalar):
    """y = log(1 + exp(x)), the real line onto the positive numbers."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        return jax.nn.softplus(x), jax.nn.log_sigmoid(x)

    def decode(self, y, cond=None):
        # x = y + log(1 - exp(-y)) stays accurate for small and for large y
        log_slope = jnp.log(-jnp.expm1(-y))
        return y + log_slope, log_slope


class Exp(Scalar):
    """y = exp(x), the real line onto the positive numbers."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        return jnp.exp(x), x

    def decode(self, y, cond=None):
        x = jnp.log(y)
        return x, x


class Log(Scalar):
    """y = log(x), the positive numbers onto the real line; the inverse of `Exp`. Zero becomes the smallest of them."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        tiny = jnp.finfo(x.dtype).tiny
        y = jnp.log(jnp.where(x < tiny, tiny, x))
        return y, -y

    def decode(self, y, cond=None):
        return jnp.exp(y), -y


class Tanh(Scalar):
    """y = tanh(x), the real line onto (-1, 1)."""

    num_params: ClassVar[int] = 0

    def encode(self, x, cond=None):
        # log(1 - tanh^2 x) = 2 (log 2 - x - softplus(-2x)), which does not cancel for large |x|
        return jnp.tanh(x), 2.0 * (_LOG_2 - x - jax.nn.softplus(-2.0 * x))

    def decode(self, y, cond=None):
        return jnp.arctanh(y), jnp.log1p(-y) + jnp.log1p(y)


class Elementwise(ScalarBijection):
    """A scalar map applied to every element, with trainable parameters per element if the map has parameters.

    Args:
        scalar: the scalar map.
        shape: event shape.
    """

    scalar: Scalar
    shape: Shape = eqx.field(static=True)
    raw: Float[Array, "..."] | None

    def __init__(self, scalar: Scalar, shape: int | Shape):
        self.scalar, self.shape = scalar, as_shape(shape)
        self.raw = jnp.zeros((*self.shape, scalar.num_params)) if scalar.num_params else None

    def _raw_like(self, x):
        return None if self.raw is None else jnp.broadcast_to(self.raw, (*x.shape, self.scalar.num_params))

    def encode(self, x, cond=None):
        y, log_slope = self.encode_each(x)
        return y, sum_event(log_slope, self.shape)

    def encode_each(self, x, cond=None):
        return self.scalar.encode(x, self._raw_like(x))

    def decode(self, y, cond=None):
        x, log_det = self.scalar.decode(y, self._raw_like(y))
        return x, sum_event(log_det, self.shape)


class Affine(Bijection):
    """y = (x - loc) / scale with fixed numbers, for units, intervals and standardisation.

    Args:
        loc: shift, in units of x; its shape, broadcast with `scale` to `shape`.
        scale: positive or negative, never zero.
        shape: event shape; default: the broadcast shape of `loc` and `scale`.
    """

    loc: Constant
    scale: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, loc: Numbers, scale: Numbers, shape: int | Shape | None = None):
        self.shape = np.broadcast_shapes(np.shape(loc), np.shape(scale)) if shape is None else as_shape(shape)
        if not isinstance(scale, Tracer) and not np.all(np.isfinite(scale) & (np.asarray(scale) != 0)):
            raise InputError(f"got scale={scale}; expected finite numbers other than zero")
        self.loc = Constant(jnp.broadcast_to(jnp.asarray(loc, float), self.shape))
        self.scale = Constant(jnp.broadcast_to(jnp.asarray(scale, float), self.shape))

    @classmethod
    def standardise(cls, x: ArrayLike) -> "Affine":
        """Mean and standard deviation over the first axis of `x`; a constant column keeps scale 1.

        "Constant" means a deviation below the rounding error of the column's own magnitude.
        """
        x = np.asarray(x)
        wide = x.astype(np.float64)
        loc, scale = wide.mean(axis=0), wide.std(axis=0)
        rounding = 4 * np.finfo(x.dtype if x.dtype.kind == "f" else np.float64).eps * np.abs(wide).max(axis=0)
        return cls(loc, np.where(scale > rounding, scale, 1.0))

    def _log_det(self, x):
        batch = x.shape[: x.ndim - len(self.shape)]
        return jnp.broadcast_to(-jnp.sum(jnp.log(jnp.abs(self.scale.value))), batch)

    def encode(self, x, cond=None):
        return (x - self.loc.value) / self.scale.value, self._log_det(x)

    def decode(self, y, cond=None):
        return y * self.scale.value + self.loc.value, self._log_det(y)


class ActNorm(Bijection):
    """y = (x + shift) exp(log_scale) per channel (last axis), initialised so that one batch has mean 0 and variance 1.

    Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 3.1. `initialise` fits shift and scale to a batch, once; the
    `initialised` flag is saved with the model, so that a loaded model is not fitted again.

    Args:
        shape: event shape; the last axis is the channel.
        eps: added to the standard deviation, so that a constant channel stays finite.
    """

    shape: Shape = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    shift: Float[Array, " c"]
    log_scale: Float[Array, " c"]
    initialised: Constant

    def __init__(self, shape: int | Shape, eps: float = 1e-3):
        self.shape, self.eps = as_shape(shape), eps
        self.shift = jnp.zeros(self.shape[-1])
        self.log_scale = jnp.zeros(self.shape[-1])
        self.initialised = Constant(jnp.asarray(False))

    def _log_det(self, x):
        batch = x.shape[: x.ndim - len(self.shape)]
        return jnp.broadcast_to(jnp.sum(self.log_scale) * float(np.prod(self.shape[:-1])), batch)

    def encode(self, x, cond=None):
        return (x + self.shift) * jnp.exp(self.log_scale), self._log_det(x)

    def decode(self, y, cond=None):
        return y * jnp.exp(-self.log_scale) - self.shift, self._log_det(y)

    def initialise(self, x, cond=None):
        flat = x.reshape(-1, self.shape[-1])
        done = self.initialised.value
        shift = jnp.where(done, self.shift, -jnp.mean(flat, axis=0))
        log_scale = jnp.where(done, self.log_scale, -jnp.log(jnp.std(flat, axis=0) + self.eps))
        fitted = eqx.tree_at(
            lambda layer: (layer.shift, layer.log_scale, layer.initialised.value),
            self,
            (shift.astype(self.shift.dtype), log_scale.astype(self.log_scale.dtype), jnp.asarray(True)),
        )
        return fitted, fitted.encode(x)[0]
