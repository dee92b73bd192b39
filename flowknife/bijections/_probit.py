"""Building blocks of priors: exact maps of known distributions to N(0, 1), and concatenation."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float
from scipy import special

from flowknife._types import Constant, Shape, as_shape
from flowknife.bijections._base import Bijection, ScalarBijection, batch_of, merge_cond_shapes, sum_event
from flowknife.bijections._elementwise import Numbers
from flowknife.errors import InputError

Values = Float[Array, "..."]
Table = ArrayLike | Sequence[Any]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@jax.custom_jvp
def _probit(p):
    """Φ^-1(p), with the exact derivative 1/N(u), since that of the rational approximation is NaN in the tails."""
    return ndtri(p)


@_probit.defjvp
def _probit_jvp(primals, tangents):
    u = _probit(*primals)
    return u, tangents[0] * jnp.exp(0.5 * u**2 + _LOG_SQRT_2PI)


def _normal_score(below: Values, above: Values) -> Values:
    """Φ^-1 of the probability `below` a point, from the smaller of it and the probability `above`, for accuracy."""
    lower = below < above
    # limits within which all slopes are finite: |u| < 11.4 in single precision, 37 in double
    floor = 1e8 * jnp.finfo(below.dtype).tiny
    return jnp.where(lower, 1, -1) * _probit(jnp.maximum(jnp.where(lower, below, above), floor))


def _log_normal(u: Values) -> Values:
    return -0.5 * u**2 - _LOG_SQRT_2PI


def _inward(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval rounded inwards to the model's precision, so that it lies within [low, high]."""
    dtype = np.dtype(jnp.zeros(()).dtype)
    near = low.astype(dtype), high.astype(dtype)
    return (
        np.where(near[0] < low, np.nextafter(near[0], np.inf, dtype=dtype), near[0]),
        np.where(near[1] > high, np.nextafter(near[1], -np.inf, dtype=dtype), near[1]),
    )


class _ToNormal(ScalarBijection):
    """u = Φ^-1(F(x)), the normal score of each number under its distribution function F.

    log_det = log f(x) - log N(u; 0, 1). Both tails of F are computed, so that the upper one is as accurate as the
    lower.
    """

    interval: eqx.AbstractVar[tuple[Array, Array]]

    @abc.abstractmethod
    def _tails(self, x: Values) -> tuple[Values, Values, Values]:
        """Probability below x, probability above x, log density at x."""

    @abc.abstractmethod
    def _quantile(self, below: Values, above: Values) -> tuple[Values, Values]:
        """The x with these probabilities below and above it, and the log density there."""

    def encode(self, x, cond=None):
        u, log_slope = self.encode_each(x)
        return u, sum_event(log_slope, self.shape)

    def encode_each(self, x, cond=None):
        below, above, log_density = self._tails(jnp.clip(x, *self.interval))
        u = _normal_score(below, above)
        return u, log_density - _log_normal(u)

    def decode(self, y, cond=None):
        x, log_density = self._quantile(ndtr(y), ndtr(-y))
        return jnp.clip(x, *self.interval), sum_event(log_density - _log_normal(y), self.shape)


class HistogramToNormal(_ToNormal):
    """u = Φ^-1(F(x)) with the piecewise linear F of a histogram, which is mapped to N(0, 1).

    A single bin is the uniform distribution. Decoded values always lie within the edges.

    Args:
        edges: edges of the bins, increasing, shape `(*shape, k + 1)`.
        weights: weight of each bin, shape `(*shape, k)`; they need not sum to one.

    Raises:
        InputError: for edges that do not increase, a bin without weight, or shapes that do not fit.
    """

    left: Constant
    right: Constant
    below: Constant  # probability left of the bin
    above: Constant  # probability right of the bin
    weight: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, edges: Table, weights: Table):
        edges, weights = np.array(edges, np.float64), np.array(weights, np.float64)
        self.shape = weights.shape[:-1]
        if weights.ndim == 0 or edges.shape != (*self.shape, weights.shape[-1] + 1):
            raise InputError(
                f"got {edges.shape} edges and {weights.shape} weights; expected one edge more than weights"
            )
        if not (np.all(np.diff(edges) > 0) and np.all(np.isfinite(edges))):
            raise InputError("got edges that do not increase or are not finite; try numpy.linspace(low, high, k + 1)")
        if not (np.all(weights > 0) and np.all(np.isfinite(weights))):
            raise InputError("got bins without a positive weight; expected one for each; try merging bins")
        weights = weights / weights.sum(axis=-1, keepdims=True)
        edges[..., 0], edges[..., -1] = _inward(edges[..., 0], edges[..., -1])
        below = np.cumsum(weights, axis=-1) - weights
        above = np.cumsum(weights[..., ::-1], axis=-1)[..., ::-1] - weights
        self.left, self.right = (Constant(jnp.asarray(part, float)) for part in (edges[..., :-1], edges[..., 1:]))
        self.below, self.above = Constant(jnp.asarray(below, float)), Constant(jnp.asarray(above, float))
        self.weight = Constant(jnp.asarray(weights, float))

    @property
    def interval(self) -> tuple[Array, Array]:
        """Lowest and highest edge."""
        return self.left.value[..., 0], self.right.value[..., -1]

    def _bin(self, lower_ends, value):
        """Index of the bin: the last one whose lower end does not exceed the value."""
        bins = lower_ends.shape[-1]
        if bins == 1:
            return jnp.zeros(value.shape, int)
        ends, flat = lower_ends.reshape(-1, bins), value.reshape(-1, max(math.prod(self.shape), 1))
        found = jax.vmap(lambda e, v: jnp.searchsorted(e, v, side="right"), (0, 1), 1)(ends, flat)
        return jnp.clip(found.reshape(value.shape) - 1, 0, bins - 1)

    def _at(self, k):
        """Left and right end, probability left and right, weight of bin `k`, one row for each element."""
        tables = (self.left, self.right, self.below, self.above, self.weight)
        if self.weight.value.shape[-1] == 1:
            return tuple(jnp.broadcast_to(table.value[..., 0], k.shape) for table in tables)
        lead = (1,) * (k.ndim - len(self.shape))
        return tuple(
            jnp.take_along_axis(table.value.reshape(*lead, *table.value.shape), k[..., None], axis=-1)[..., 0]
            for table in tables
        )

    def _tails(self, x):
        left, right, below, above, weight = self._at(self._bin(self.left.value, x))
        slope = weight / (right - left)
        return below + (x - left) * slope, above + (right - x) * slope, jnp.log(slope)

    def _quantile(self, below, above):
        lower = below < above
        last = self.weight.value.shape[-1] - 1
        from_above = last - self._bin(self.above.value[..., ::-1], above)
        k = jnp.where(lower, self._bin(self.below.value, below), from_above)
        left, right, below_bin, above_bin, weight = self._at(k)
        slope = weight / (right - left)
        x = jnp.where(lower, left + (below - below_bin) / slope, right - (above - above_bin) / slope)
        return x, jnp.log(slope)


class PixelsToNormal(_ToNormal):
    """u = Φ^-1(F(v)) of dequantised pixels v in [0, bins), with F from the frequency of each value in the data.

    F is the same at every position. If one value (such as black) fills most pixels, its bin becomes as wide as all
    others together; without this, a flow must resolve steps of 1 next to steps of 200. The layer has no trainable
    parameters; `initialise` counts the values once.

    Args:
        shape: event shape.
        bins: number of values, 2^bits.
    """

    below: Constant  # probability left of the bin
    above: Constant  # probability right of the bin
    weight: Constant
    initialised: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: int | Shape, bins: int):
        self.shape = as_shape(shape)
        self.below, self.above, self.weight = map(Constant, _tables(jnp.ones(bins)))
        self.initialised = Constant(jnp.asarray(False))

    @property
    def interval(self) -> tuple[Array, Array]:
        """Lowest and highest value."""
        bins = len(self.weight.value)
        return jnp.asarray(0.0), jnp.asarray(bins * (1 - float(jnp.finfo(self.weight.value.dtype).epsneg)))

    def _at(self, k):
        return tuple(table.value[k] for table in (self.below, self.above, self.weight))

    def _tails(self, x):
        k = jnp.floor(x).astype(int)
        below, above, weight = self._at(k)
        return below + (x - k) * weight, above + (k + 1 - x) * weight, jnp.log(weight)

    def _quantile(self, below, above):
        last = len(self.weight.value) - 1
        lower = below < above
        from_below = jnp.searchsorted(self.below.value, below, side="right") - 1
        from_above = last + 1 - jnp.searchsorted(self.above.value[::-1], above, side="right")
        k = jnp.clip(jnp.where(lower, from_below, from_above), 0, last)
        left, right, weight = self._at(k)
        within = jnp.where(lower, (below - left) / weight, 1 - (above - right) / weight)
        return k + jnp.clip(within, 0.0, 1 - jnp.finfo(within.dtype).epsneg), jnp.log(weight)

    def initialise(self, x, cond=None):
        values = jnp.clip(jnp.floor(x), 0, len(self.weight.value) - 1).astype(int)
        # one added to each count, so that no value is impossible
        counts = jnp.bincount(values.ravel(), length=len(self.weight.value)).astype(x.dtype) + 1
        new = map(Constant, _tables(counts))
        tables = [
            jax.tree.map(lambda old, new: jnp.where(self.initialised.value, old, new.astype(old.dtype)), old, new)
            for old, new in zip((self.below, self.above, self.weight), new, strict=True)
        ]
        fitted = eqx.tree_at(
            lambda layer: (layer.below, layer.above, layer.weight, layer.initialised),
            self,
            (*tables, Constant(jnp.asarray(True))),
        )
        return fitted, fitted.encode(x)[0]


def _tables(counts):
    """Probability below, above and of each bin."""
    weight = counts / jnp.sum(counts)
    above = jnp.cumsum(weight[::-1])[::-1] - weight
    return jnp.cumsum(weight) - weight, above, weight


class TruncatedToNormal(_ToNormal):
    """u = Φ^-1(F(x)) with F of N(mean, scale^2) truncated to [low, high], which is mapped to N(0, 1).

    Decoded values always lie within the bounds.

    Args:
        mean: mean before truncation; the shapes of all four arguments broadcast to `shape`.
        scale: standard deviation before truncation.
        low: lower bound, may be -inf.
        high: upper bound, may be inf.

    Raises:
        InputError: for a scale that is not positive, or bounds that contain (almost) no mass of the normal.
    """

    mean: Constant
    scale: Constant
    low: Constant
    high: Constant
    shape: Shape = eqx.field(static=True)

    def __init__(self, mean: Numbers, scale: Numbers, low: Numbers, high: Numbers):
        mean, scale, low, high = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (mean, scale, low, high)))
        self.shape = mean.shape
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(scale)) and np.all(scale > 0)):
            raise InputError(f"got mean={mean}, scale={scale}; expected finite numbers and positive scales")
        if not np.all(low < high):
            raise InputError(f"got low={low}, high={high}; expected low < high")
        if not np.all(_mass_within(mean, scale, low, high) > 1e-25):
            raise InputError(
                f"got bounds {low} to {high} with less than 1e-25 of N({mean}, {scale}^2) between them; expected more; "
                "try a mean nearer to the bounds"
            )
        low, high = _inward(low, high)
        self.mean, self.scale = Constant(jnp.asarray(mean, float)), Constant(jnp.asarray(scale, float))
        self.low, self.high = Constant(jnp.asarray(low, float)), Constant(jnp.asarray(high, float))

    @property
    def interval(self) -> tuple[Array, Array]:
        """The bounds."""
        return self.low.value, self.high.value

    @property
    def log_mass(self) -> float:
        """Log of the probability of N(mean, scale^2) within the bounds of all components, in double precision."""
        parts = (np.asarray(part.value, np.float64) for part in (self.mean, self.scale, self.low, self.high))
        return float(np.sum(np.log(_mass_within(*parts))))

    def _standard(self, x):
        return (x - self.mean.value) / self.scale.value

    def _mass(self):
        return _between(self._standard(self.low.value), self._standard(self.high.value))

    def _log_density(self, z):
        return _log_normal(z) - jnp.log(self.scale.value) - jnp.log(self._mass())

    def _tails(self, x):
        low, z, high = self._standard(self.low.value), self._standard(x), self._standard(self.high.value)
        mass = self._mass()
        return _between(low, z) / mass, _between(z, high) / mass, self._log_density(z)

    def _quantile(self, below, above):
        mass = self._mass()
        z = _normal_score(
            ndtr(self._standard(self.low.value)) + below * mass, ndtr(-self._standard(self.high.value)) + above * mass
        )
        return self.mean.value + self.scale.value * z, self._log_density(z)


def _mass_within(mean, scale, low, high):
    """P(low <= x <= high) of N(mean, scale^2), for NumPy arrays."""
    # mirrored if the interval lies above the mean, so that small tails do not round to zero
    ends = np.where(low > mean, [mean - high, mean - low], [low - mean, high - mean]) / scale
    return np.diff(special.ndtr(ends), axis=0)[0]


def _between(a: Values, b: Values) -> Values:
    """Φ(b) - Φ(a) for a <= b, from the tail in which both are small."""
    return jnp.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))


class Concatenate(Bijection):
    """Independent parts: each bijection maps its own part of a vector; log-determinants add up.

    Args:
        bijections: bijections of vectors, in order.

    Raises:
        InputError: without a bijection, with one that is not of vectors, or for conditions of different shapes.
    """

    bijections: tuple[Bijection, ...]

    def __init__(self, bijections: Sequence[Bijection]):
        self.bijections = tuple(bijections)
        ends = [(bijection.shape, bijection.out_shape) for bijection in self.bijections]
        if not ends or any(len(shape) != 1 for pair in ends for shape in pair):
            raise InputError(f"got bijections of shapes {ends}; expected at least one, all of vectors; try Reshape")
        merge_cond_shapes(self.bijections)

    @property
    def shape(self) -> Shape:
        return as_shape(sum(bijection.shape[0] for bijection in self.bijections))

    @property
    def out_shape(self) -> Shape:
        return as_shape(sum(bijection.out_shape[0] for bijection in self.bijections))

    @property
    def cond_shape(self) -> Shape | None:
        return merge_cond_shapes(self.bijections)

    def _map(self, method, x, sizes, shape, cond):
        shares = jnp.split(x, np.cumsum(sizes)[:-1], axis=-1)
        log_det = jnp.zeros(batch_of(x, shape), x.dtype)
        parts = []
        for bijection, share in zip(self.bijections, shares, strict=True):
            part, term = getattr(bijection, method)(share, cond)
            parts.append(part)
            log_det = log_det + term
        return jnp.concatenate(parts, axis=-1), log_det

    def encode(self, x, cond=None):
        return self._map("encode", x, [bijection.shape[0] for bijection in self.bijections], self.shape, cond)

    def decode(self, y, cond=None):
        return self._map("decode", y, [bijection.out_shape[0] for bijection in self.bijections], self.out_shape, cond)

    def initialise(self, x, cond=None):
        shares = jnp.split(x, np.cumsum([bijection.shape[0] for bijection in self.bijections])[:-1], axis=-1)
        fitted, parts = zip(*(b.initialise(s, cond) for b, s in zip(self.bijections, shares, strict=True)), strict=True)
        return Concatenate(fitted), jnp.concatenate(parts, axis=-1)
