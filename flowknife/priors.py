"""Priors: a prior is a bijection of its parameters to N(0, I), and nothing else.

    u, log_det = prior.bijection.encode(theta)          u is exactly standard normal under the prior
    log_prob(theta) = log N(u; 0, I) + log_det          -inf outside of the support
    sample(key, n)  = decode(standard normal draws)

A network that works on u and ends in `prior.bijection.decode` therefore cannot leave the support.

Parameters far from zero, such as Uniform(1.7e9, 1.7e9 + 1), cannot be resolved in single precision. Their prior
has a `frame`, which keeps origin and scale in double precision, and `inner` is the prior of (theta - origin) / scale.

Examples:
    >>> import flowknife as fk
    >>> prior = fk.priors.Product({
    ...     "angle": fk.Uniform(low=0.0, high=90.0, units=["deg"]),
    ...     "speed": fk.LogNormal(mean=2.7, scale=0.3, units=["m/s"]),
    ... })
    >>> prior.names, prior.sample(5, key=0).shape
    (('angle', 'speed'), (5, 2))
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowknife._batches import ROWS_AT_ONCE, bucket, map_batches
from flowknife._frame import Frame, plain_frame
from flowknife._types import Constant, Key, Shape, as_key, as_numbers, as_shape
from flowknife.bijections import (
    Affine,
    Bijection,
    Chain,
    Concatenate,
    Elementwise,
    HistogramToNormal,
    Log,
    PrincipalRotation,
    TruncatedToNormal,
)
from flowknife.errors import InputError
from flowknife.laws import normal_log_prob

Numbers = ArrayLike | Sequence[Any]
Words = Sequence[str] | None


def _within(name, low, high):
    """A parameter and its bounds, in words."""
    bounds = [f"from {low:.6g}"] * bool(np.isfinite(low)) + [f"to {high:.6g}"] * bool(np.isfinite(high))
    return " ".join([name, *bounds])


class Prior(eqx.Module):
    """The distribution of `theta` that `bijection` maps to N(0, I).

    The functions of this module make the common ones; any other comes from a bijection of one's own.

    Args:
        bijection: maps vectors `theta` of the support to standard normal vectors `u` of the same length.
        low: lower end of the support, one number or one for each component.
        high: upper end.
        mean: expectation of each component, if known.
        std: standard deviation of each component, if known.
        names: of the components; default x1, x2, ...
        units: of the components; default none.
        frame: `bijection` takes theta in this frame, and not in its own units.

    Raises:
        InputError: for a bijection that is not of vectors, or names and units of another number than its components.
    """

    bijection: Bijection
    limits: Constant  # (2, dim)
    moments: Constant | None  # (2, dim)
    names: tuple[str, ...] = eqx.field(static=True)
    units: tuple[str, ...] = eqx.field(static=True)
    frame: Frame | None = None
    within: "Prior | None" = None

    def __init__(
        self,
        bijection: Bijection,
        *,
        low: Numbers = -np.inf,
        high: Numbers = np.inf,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        names: Words = None,
        units: Words = None,
        frame: Frame | None = None,
    ):
        if not isinstance(bijection, Bijection):
            raise InputError(
                f"got {type(bijection).__name__} as the bijection of a prior; expected one of flowknife.bijections; "
                "try fk.Uniform(low, high)"
            )
        if len(bijection.shape) != 1 or bijection.shape != bijection.out_shape:
            raise InputError(f"got a bijection from {bijection.shape} to {bijection.out_shape}; expected (d,) to (d,)")
        dim = bijection.shape[0] if frame is None else len(frame.origin)
        self.names = _default_names(dim) if names is None else _texts("names", names)
        self.units = ("",) * dim if units is None else _texts("units", units)
        if len(self.names) != dim or len(set(self.names)) != dim or len(self.units) != dim:
            raise InputError(
                f"got the names {', '.join(self.names)} and {len(self.units)} units of {dim} parameters; expected a "
                "name of its own and a unit for each"
            )
        size = bijection.shape[0]
        self.limits = Constant(_rows(low, high, size))
        self.moments = None if mean is None or std is None else Constant(_rows(mean, std, size))
        self.bijection, self.frame, self.within = bijection, frame, None
        if frame is not None:
            kept = frame.kept
            with np.errstate(over="ignore", under="ignore"):  # of units beyond single precision only `inner` is of use
                enter = Affine(np.asarray(frame.origin)[kept], np.asarray(frame.scale)[kept])
            self.bijection = Chain([enter, bijection])
            names, units = ([words[i] for i in kept] for words in (self.names, self.units))
            self.within = Prior(bijection, low=low, high=high, mean=mean, std=std, names=names, units=units)

    @property
    def dim(self) -> int:
        """Number of parameters d."""
        return len(self.names)

    def __repr__(self) -> str:
        components = zip(self.names, np.asarray(self.low), np.asarray(self.high), strict=True)
        return f"Prior({', '.join(_within(*component) for component in components)})"

    @property
    def inner(self) -> "Prior":
        """The prior of the parameters as a network takes them: in the `frame`, without those that are fixed."""
        return self if self.within is None else self.within

    @property
    def low(self) -> Float[Array | np.ndarray, " d"]:
        """Lower end of the support of each component."""
        return self._in_units(self.limits.value[0])

    @property
    def high(self) -> Float[Array | np.ndarray, " d"]:
        """Upper end of the support of each component."""
        return self._in_units(self.limits.value[1])

    @property
    def mean(self) -> Float[Array | np.ndarray, " d"] | None:
        """Expectation of each component, None if unknown."""
        return None if self.moments is None else self._in_units(self.moments.value[0])

    @property
    def std(self) -> Float[Array | np.ndarray, " d"] | None:
        """Standard deviation of each component, None if unknown."""
        if self.moments is None or self.frame is None:
            return None if self.moments is None else self.moments.value[1]
        return self.frame.widths_from_model(self.moments.value[1])

    def _in_units(self, values):
        return values if self.frame is None else self.frame.from_model(values)

    def log_prob(self, theta: Numbers) -> Float[Array, "..."]:
        """Log density in nats, of shape `batch`, for `theta` of shape `(*batch, d)`; -inf outside of the support.

        Parameters that are fixed have no density: what is returned is that of the others, -inf for another value.
        """
        theta = theta if isinstance(theta, jax.Array) else as_numbers(theta, "parameters")
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            raise InputError(
                f"got parameters of shape {np.shape(theta)}; expected (..., {self.dim}): {', '.join(self.names)}"
            )
        if self.frame is not None and self.within is not None:
            inside, possible = self.frame.inside(theta), self.frame.possible(theta)
            if not isinstance(inside, Tracer):
                # the ends of the support were rounded inwards: the true ones lie up to one step outside of them
                ends = zip((self.within.low, self.within.high), (-np.inf, np.inf), strict=True)
                low, high = (np.nextafter(np.asarray(end), np.asarray(away, end.dtype)) for end, away in ends)
                possible &= np.all((inside >= low) & (inside <= high), axis=-1)
            return jnp.where(possible, self.within.log_prob(inside) + self.frame.log_det, -jnp.inf)
        with np.errstate(over="ignore"):  # beyond single precision is infinite, and outside or of no density
            if isinstance(theta, Tracer):
                return _log_density(self, jnp.asarray(theta, float))
            rows = np.asarray(theta, jnp.result_type(float)).reshape(-1, self.dim)
        (found,) = map_batches(lambda part: [_log_density(self, part)], rows, ROWS_AT_ONCE)
        return jnp.asarray(found.reshape(theta.shape[:-1]))

    def sample(self, n: int | Shape = (), *, key: Key = None) -> Float[Array | np.ndarray, "..."]:
        """Draw `n` parameters (a number or a shape; () for one), of shape `(*n, d)`; in a frame in double precision."""
        shape, key = as_shape(n), as_key(key)
        if isinstance(key, Tracer):
            return self._in_units(_draws(self.inner.bijection, key, shape))
        count = math.prod(shape)
        drawn = _draws(self.inner.bijection, key, (bucket(count),))[:count]
        return self._in_units(drawn.reshape(*shape, -1))


@eqx.filter_jit  # operations one by one would be compiled one by one
def _log_density(prior, theta):
    """Of parameters as the bijection takes them."""
    outside = jnp.any((theta < prior.low) | (theta > prior.high), axis=-1)
    # outside, the formula is evaluated at the median, so that gradients stay finite
    inner = jnp.where(outside[..., None], prior.bijection.decode(jnp.zeros(prior.dim))[0], theta)
    u, log_det = prior.bijection.encode(inner)
    return jnp.where(outside, -jnp.inf, normal_log_prob(u, (prior.dim,)) + log_det)


@eqx.filter_jit
def _draws(bijection, key, shape):
    return bijection.decode(jax.random.normal(key, (*shape, *bijection.shape)))[0]


def _rows(first: Numbers, second: Numbers, dim: int) -> Array:
    parts = [as_numbers(part, "bounds or moments") for part in (first, second)]
    if any(part.shape not in ((), (1,), (dim,)) for part in parts):
        got = " and ".join(str(part.shape) for part in parts)
        raise InputError(
            f"got bounds or moments of shape {got}; expected one number, or one for each of {dim} parameters"
        )
    with np.errstate(over="ignore"):  # moments may be infinite
        return jnp.asarray(np.stack([np.broadcast_to(part, (dim,)) for part in parts]), float)


def _texts(role: str, given: Words) -> tuple[str, ...]:
    """Names or units, of which one text alone would be taken letter by letter."""
    texts = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"got {role}={given!r}; expected a text for each parameter; try {role}=['a', 'b']")
    return tuple(map(str, texts))


def _default_names(dim: int) -> tuple[str, ...]:
    return tuple(f"x{i + 1}" for i in range(dim))


def _vectors(**arguments: Numbers) -> list[np.ndarray]:
    """The arguments as vectors of one length."""
    numbers = [as_numbers(value, name) for name, value in arguments.items()]
    try:
        arrays = np.broadcast_arrays(*numbers)
    except ValueError:
        arrays = []
    if not arrays or arrays[0].ndim > 1 or arrays[0].size == 0:
        got = ", ".join(f"{name} of shape {array.shape}" for name, array in zip(arguments, numbers, strict=True))
        raise InputError(f"got {got}; expected numbers, or one number for each parameter")
    return [np.atleast_1d(array) for array in arrays]


def _check_scale(mean, scale):
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(scale)) and np.all(scale > 0)):
        raise InputError(f"got mean={mean}, scale={scale}; expected finite numbers and positive scales")


def Uniform(low: Numbers, high: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent uniform parameters: u = Φ^-1((theta - low) / (high - low)).

    Args:
        low: lower bounds, one number or one for each parameter.
        high: upper bounds.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: unless low < high are finite.

    Examples:
        >>> import flowknife as fk
        >>> fk.Uniform(low=[-2, -2], high=[2, 2]).log_prob([[0.0, 0.0], [3.0, 0.0]]).round(2)
        Array([-2.77,  -inf], dtype=float32)
    """
    low, high = _vectors(low=low, high=high)
    if not (np.all(low < high) and np.all(np.isfinite([low, high]))):
        raise InputError(f"got low={low}, high={high}; expected finite numbers with low < high")
    mean, std = low / 2 + high / 2, high / np.sqrt(12) - low / np.sqrt(12)
    frame = Frame.where_needed(mean, std)
    low, high, mean, std = _inside(frame, low, high, mean, std=std)
    bijection = HistogramToNormal(np.stack([low, high], axis=-1), np.ones((len(low), 1)))
    return Prior(bijection, low=low, high=high, mean=mean, std=std, names=names, units=units, frame=frame)


def Normal(mean: Numbers, scale: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent normal parameters: u = (theta - mean) / scale.

    Args:
        mean: expectations, one number or one for each parameter.
        scale: standard deviations.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: for a scale that is not positive.
    """
    mean, scale = _vectors(mean=mean, scale=scale)
    _check_scale(mean, scale)
    frame = Frame.where_needed(mean, scale)
    mean, scale = _inside(frame, mean, std=scale)
    return Prior(Affine(mean, scale), mean=mean, std=scale, names=names, units=units, frame=frame)


def LogNormal(mean: Numbers, scale: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent positive parameters with normal logarithms: u = (log theta - mean) / scale.

    Args:
        mean: expectations of the logarithms, one number or one for each parameter.
        scale: standard deviations of the logarithms.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: for a scale that is not positive, or parameters that no floating point number holds.
    """
    mean, scale = _vectors(mean=mean, scale=scale)
    _check_scale(mean, scale)
    if np.abs(mean).max() > 600:
        raise InputError(f"got mean={mean} of the logarithm; expected at most 600: exp(mean) has to be a number")
    # in a unit of exp(mean) the logarithms lie around zero
    unit = np.where((np.abs(mean) > 60) | (np.abs(mean) > 1000 * scale), np.exp(mean), 1.0)
    frame = None if np.all(unit == 1) else Frame(np.zeros(len(mean)), unit)
    mean = mean - np.log(unit)
    return _of_logarithm(Affine(mean, scale), mean, scale, names, units, frame)


def LogUniform(low: Numbers, high: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent positive parameters with uniform logarithms: u = Φ^-1(log(theta / low) / log(high / low)).

    Every decade between the bounds has the same probability.

    Args:
        low: lower bounds, one number or one for each parameter.
        high: upper bounds.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: unless 0 < low < high, both within the range of floating point numbers.

    Examples:
        >>> import flowknife as fk
        >>> [round(float(p), 2) for p in fk.LogUniform(0.001, 1000.0).log_prob([[0.01], [10.0], [2000.0]])]
        [1.98, -4.93, -inf]
    """
    low, high = _vectors(low=low, high=high)
    if not (np.all(low > 0) and np.all(low < high) and np.all(low > 1e-35) and np.all(high < 1e35)):
        raise InputError(
            f"got low={low}, high={high}; expected 0 < low < high, from 1e-35 to 1e35; try other units, or "
            "fk.Uniform(low, high) for bounds that are not positive"
        )
    span = np.log(high / low)
    mean = (high - low) / span
    std = np.sqrt((high - low) * (high + low) / (2 * span) - mean**2)
    margin = 4 * float(jnp.finfo(jnp.zeros(()).dtype).eps)  # since exp rounds too
    edges = np.log(low) + margin, np.log(high) - margin
    uniform = HistogramToNormal(np.stack(edges, axis=-1), np.ones((len(low), 1)))
    bijection = Chain([Elementwise(Log(), len(low)), uniform])
    return Prior(bijection, low=low, high=high, mean=mean, std=std, names=names, units=units)


def _of_logarithm(bijection: Bijection, mean, scale, names, units, frame=None) -> Prior:
    """The prior of theta when `bijection` maps log theta, of these moments, to N(0, I)."""
    largest = float(np.log(jnp.finfo(jnp.zeros(()).dtype).max))
    if np.any(np.abs(mean) + scale > largest):
        raise InputError(
            f"got parameters of typical size exp({mean} +- {scale}); expected exponents between -{largest:.0f} and "
            f"{largest:.0f}, the range of floating point numbers; mean and scale are those of the logarithm"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # the moments of a wide prior are infinite
        expected = np.exp(mean + scale**2 / 2)
        std = expected * np.sqrt(np.expm1(scale**2))
    return Prior(
        Chain([Elementwise(Log(), len(mean)), bijection]),
        low=0.0,
        mean=expected,
        std=std,
        names=names,
        units=units,
        frame=frame,
    )


def Truncated(
    mean: Numbers, scale: Numbers, low: Numbers, high: Numbers, *, names: Words = None, units: Words = None
) -> Prior:
    """Independent normal parameters cut to bounds: u = Φ^-1(F(theta)), F that of N(mean, scale^2) on [low, high].

    Args:
        mean: of the normals before they are cut, one number or one for each parameter.
        scale: their standard deviations.
        low: lower bounds; may be -inf.
        high: upper bounds; may be inf.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: for a scale that is not positive, or bounds that hold (almost) nothing of the normal.
    """
    from scipy import stats

    mean, scale, low, high = _vectors(mean=mean, scale=scale, low=low, high=high)
    standard = stats.truncnorm((low - mean) / scale, (high - mean) / scale)
    expected, std = mean + scale * standard.mean(), scale * standard.std()
    frame = None
    if np.all(np.isfinite(expected) & (std > 0)):  # otherwise the bijection says what is wrong
        frame = Frame.where_needed(expected, std)
    mean, low, high, expected, scale, std = _inside(frame, mean, low, high, expected, std=(scale, std))
    bijection = TruncatedToNormal(mean, scale, low, high)
    return Prior(bijection, low=low, high=high, mean=expected, std=std, names=names, units=units, frame=frame)


def Histogram(edges: Numbers, weights: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """One parameter, uniform within each bin of a histogram.

    A whole number becomes continuous ("dequantised") with a bin of width one around each value.

    Args:
        edges: of the bins, increasing, shape (k + 1,).
        weights: of the bins, positive, shape (k,); they need not add up to one.
        names: of the parameter, a sequence of one; default x1.
        units: of the parameter, a sequence of one.

    Raises:
        InputError: for edges that do not increase, or a bin without weight.
    """
    edges, weights = as_numbers(edges, "edges"), as_numbers(weights, "weights")
    if edges.ndim != 1 or weights.ndim != 1:
        raise InputError(f"got {edges.shape} edges and {weights.shape} weights; expected vectors, (k + 1,) and (k,)")
    frame = None
    if edges.size == weights.size + 1 > 1 and np.all(np.diff(edges) > 0) and np.all(np.isfinite(edges)):
        frame = Frame.where_needed([edges[0] / 2 + edges[-1] / 2], [edges[-1] - edges[0]])
    (edges,) = _inside(frame, edges)
    bijection = HistogramToNormal(edges[None], weights[None])
    share = weights / weights.sum()
    centre, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    mean = float(np.sum(share * centre))
    std = float(np.sqrt(np.sum(share * ((centre - mean) ** 2 + width**2 / 12))))
    return Prior(bijection, low=edges[0], high=edges[-1], mean=mean, std=std, names=names, units=units, frame=frame)


def Fixed(value: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Known parameters: each has its value, also in every posterior, exactly.

    They are part of `Product({"a": Uniform(0, 1), "b": Fixed(3.0)})`; the density is that of the other parameters.

    Args:
        value: one number, or one for each parameter.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: for a value that is not finite.
    """
    (value,) = _vectors(value=value)
    if not np.all(np.isfinite(value)):
        raise InputError(f"got value={value}; expected finite numbers")
    none = np.zeros(0)
    frame = Frame(value, np.ones(len(value)), range(len(value)))
    bijection = Affine(none, none + 1)
    return Prior(bijection, low=none, high=none, mean=none, std=none, names=names, units=units, frame=frame)


def _inside(frame: Frame | None, *points: np.ndarray, std: Any = ()) -> list[np.ndarray]:
    """Points, and after them widths, in a frame."""
    widths = std if isinstance(std, tuple) else (std,)
    if frame is None:
        return [*points, *widths]
    origin, scale = np.asarray(frame.origin), np.asarray(frame.scale)
    return [*((point - origin) / scale for point in points), *(width / scale for width in widths)]


KERNELS = {
    "squared exponential": lambda r: np.exp(-(r**2) / 2),
    "matern": lambda r: (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r),
}
"""Correlation as a function of distance / length; `matern` has smoothness 5/2."""


def GaussianProcess(
    points: Numbers,
    mean: Numbers,
    scale: float | int,
    length: float | int,
    *,
    log: bool = False,
    kernel: Literal["squared exponential", "matern"] = "squared exponential",
    jitter: float = 1e-4,
    names: Words = None,
    units: Words = None,
) -> Prior:
    """A smooth function, known by its values at `points`: u = V^(-1/2) R (theta - mean), K = R^T V R.

    K = scale^2 (k(|p_i - p_j| / length) + jitter I), with k from `KERNELS` (Rasmussen & Williams 2006, eqs. 4.9 and
    4.17). The components of u are the principal ones of K, the largest (smoothest) first; they are mixed, so
    an infinite u, unlike any finite one, has no function.

    Args:
        points: where the function is known, shape (d,) or (d, k).
        mean: of the function, one number or one for each point.
        scale: standard deviation of the function.
        length: correlation length, in units of the points.
        log: all this is said of the logarithm of theta, which is positive then.
        kernel: "squared exponential" (very smooth) or "matern" (twice differentiable).
        jitter: share of the variance that is independent from point to point; it keeps K well conditioned.
        names: of the values; default x1, x2, ...
        units: of the values.

    Raises:
        InputError: for a scale, length or jitter that is not positive, an unknown kernel, or a mean of another length.
    """
    points, mean = as_numbers(points, "points"), as_numbers(mean, "mean")
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or not points.size or mean.shape not in ((), points.shape[:1]):
        raise InputError(f"got points of shape {points.shape}, mean of shape {mean.shape}; expected (d,), (d,)")
    if not (np.all(np.isfinite(points)) and np.all(np.isfinite(mean))):
        raise InputError("got points or a mean that are not finite; expected finite numbers")
    sizes = [as_numbers(value, "scale, length and jitter") for value in (scale, length, jitter)]
    positive = all(size.ndim == 0 and 0 < size < np.inf for size in sizes)
    if not isinstance(kernel, str) or kernel not in KERNELS or not positive:
        raise InputError(
            f"got kernel={kernel!r}, scale={scale}, length={length}, jitter={jitter}; expected positive numbers and "
            f"one of {', '.join(map(repr, KERNELS))}"
        )
    mean = np.broadcast_to(mean, points.shape[:1])
    frame = None if log else Frame.where_needed(mean, np.full(len(points), scale))
    if frame is not None:  # the components are mixed: one unit for all
        frame = Frame(frame.origin, np.full(len(points), max(frame.scale)))
        mean, scale = (mean - np.asarray(frame.origin)) / frame.scale[0], scale / frame.scale[0]
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) / length
    correlation = KERNELS[kernel](distance) + jitter * np.eye(len(points))
    variances, axes = np.linalg.eigh(scale**2 * correlation)
    parts = mean, axes.T[::-1], 0.5 * np.log(np.maximum(variances[::-1], 0.5 * jitter * scale**2)), True
    whiten = eqx.tree_at(
        lambda r: (r.mean.value, r.rotation.value, r.log_scale.value, r.initialised.value),
        PrincipalRotation(len(points)),
        tuple(jnp.asarray(part, bool if part is True else float) for part in parts),
    )
    std = np.full(len(points), scale * np.sqrt(1 + jitter))
    if log:
        return _of_logarithm(whiten, mean, std, names, units)
    return Prior(whiten, mean=mean, std=std, names=names, units=units, frame=frame)


def Product(parts: Mapping[str, Prior]) -> Prior:
    """Independent parts side by side, in their order.

    A part of one parameter gives it its name; of several parameters it keeps the names they have, or numbers them.

    Args:
        parts: priors by name.

    Raises:
        InputError: for anything but priors by name, without a part, or with a name twice.
    """
    if not isinstance(parts, Mapping) or not parts:
        got = "no parts" if parts is None or isinstance(parts, Mapping) else f"{type(parts).__name__} as the parts"
        raise InputError(f'got {got}; expected priors by name; try Product({{"x": Normal(0, 1)}})')
    for name, prior in parts.items():
        if not isinstance(name, str) or not isinstance(prior, Prior):
            raise InputError(
                f"got the part {name!r} of type {type(prior).__name__}; expected a name and a prior; try "
                'Product({"x": Normal(0, 1)})'
            )
    priors = list(parts.values())
    names = [name for key, prior in parts.items() for name in _names_of_part(key, prior)]
    frames = [plain_frame(prior.dim) if prior.frame is None else prior.frame for prior in priors]
    frame = None if all(prior.frame is None for prior in priors) else frames[0].join(*frames[1:])
    varying = [prior.inner for prior in priors if prior.inner.dim]
    if not varying:
        return Fixed(np.concatenate([frame.origin for frame in frames]), names=names, units=_units(priors))
    known = all(prior.moments is not None for prior in varying)
    return Prior(
        Concatenate([prior.bijection for prior in varying]),
        low=np.concatenate([prior.low for prior in varying]),
        high=np.concatenate([prior.high for prior in varying]),
        mean=np.concatenate([np.asarray(prior.mean) for prior in varying]) if known else None,
        std=np.concatenate([np.asarray(prior.std) for prior in varying]) if known else None,
        names=names,
        units=_units(priors),
        frame=frame,
    )


def _units(priors: Sequence[Prior]) -> list[str]:
    return [unit for prior in priors for unit in prior.units]


def _names_of_part(name: str, prior: Prior) -> Sequence[str]:
    if prior.dim == 1:
        return [name]
    numbered = prior.names == _default_names(prior.dim)
    return [f"{name}{i + 1}" for i in range(prior.dim)] if numbered else prior.names


def likeliest(theta: Float[np.ndarray, "n d"], names: Words = None) -> Prior:
    """A prior of independent parameters from draws: for each, the most likely of uniform, normal and log-normal.

    The bounds of a uniform component lie beyond its extreme draws by the mean distance between neighbours; a component
    that never varies is `Fixed`.

    Args:
        theta: draws, shape (n, d).
        names: of the parameters; default x1, x2, ...

    Raises:
        InputError: for draws that are not finite numbers of that shape.
    """
    theta = as_numbers(theta, "draws")
    if theta.ndim != 2 or not theta.size or not np.all(np.isfinite(theta)):
        raise InputError(f"got draws of shape {theta.shape}; expected finite numbers of shape (n, d)")
    names = _default_names(theta.shape[1]) if names is None else names
    return Product({name: _likeliest(column) for name, column in zip(names, theta.T, strict=True)})


def _likeliest(draws) -> Prior:
    if np.ptp(draws) <= 4 * np.finfo(float).eps * np.abs(draws).max():
        return Fixed(np.median(draws))
    mean, scale = draws.mean(), draws.std()
    margin = np.ptp(draws) / len(draws)
    low, high = draws.min() - margin, draws.max() + margin
    # mean log densities at the draws
    found = {"uniform": -np.log(high - low), "normal": -np.log(scale) - 0.5 * np.log(2 * np.pi * np.e)}
    logs = np.log(draws) if draws.min() > 0 else np.zeros(1)
    if logs.std() > 1e-3:  # of a narrower one the normal is the same
        found["log-normal"] = -np.log(logs.std()) - 0.5 * np.log(2 * np.pi * np.e) - logs.mean()
    best = max(found, key=found.__getitem__)
    if best == "uniform":
        return Uniform(low, high)
    return Normal(mean, scale) if best == "normal" else LogNormal(logs.mean(), logs.std())
