"""Priors: a prior is a bijection of its parameters to N(0, I), and nothing else.

    u, log_det = prior.bijection.encode(theta)          u is exactly standard normal under the prior
    log_prob(theta) = log N(u; 0, I) + log_det          -inf outside of the support
    sample(key, n)  = decode(standard normal draws)

A network that works on u and ends in `prior.bijection.decode` therefore cannot leave the support, whatever it says.

    >>> import flowknife as fk
    >>> prior = fk.priors.Product({
    ...     "angle": fk.Uniform(low=0.0, high=90.0, units=["deg"]),
    ...     "speed": fk.LogNormal(mean=2.7, scale=0.3, units=["m/s"]),
    ... })
    >>> prior.names, prior.sample(0, 5).shape
    (('angle', 'speed'), (5, 2))
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowknife._types import Constant, Key, Shape, as_key, as_shape
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

    Raises:
        InputError: for a bijection that is not of vectors, or names and units of another number than its components.
    """

    bijection: Bijection
    limits: Constant  # (2, dim)
    moments: Constant | None  # (2, dim)
    names: tuple[str, ...] = eqx.field(static=True)
    units: tuple[str, ...] = eqx.field(static=True)

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
    ):
        if len(bijection.shape) != 1 or bijection.shape != bijection.out_shape:
            raise InputError(f"got a bijection from {bijection.shape} to {bijection.out_shape}; expected (d,) to (d,)")
        dim = bijection.shape[0]
        self.bijection = bijection
        self.limits = Constant(_rows(low, high, dim))
        self.moments = None if mean is None or std is None else Constant(_rows(mean, std, dim))
        self.names = _default_names(dim) if names is None else tuple(names)
        self.units = ("",) * dim if units is None else tuple(units)
        if len(self.names) != dim or len(set(self.names)) != dim or len(self.units) != dim:
            raise InputError(
                f"got the names {', '.join(self.names)} and {len(self.units)} units of {dim} parameters; expected a "
                "name of its own and a unit for each"
            )

    @property
    def dim(self) -> int:
        """Number of parameters d."""
        return self.bijection.shape[0]

    @property
    def low(self) -> Float[Array, " d"]:
        """Lower end of the support of each component."""
        return self.limits.value[0]

    @property
    def high(self) -> Float[Array, " d"]:
        """Upper end of the support of each component."""
        return self.limits.value[1]

    @property
    def mean(self) -> Float[Array, " d"] | None:
        """Expectation of each component, None if unknown."""
        return None if self.moments is None else self.moments.value[0]

    @property
    def std(self) -> Float[Array, " d"] | None:
        """Standard deviation of each component, None if unknown."""
        return None if self.moments is None else self.moments.value[1]

    def log_prob(self, theta: Numbers) -> Float[Array, "..."]:
        """Log density in nats, of shape `batch`, for `theta` of shape `(*batch, d)`; -inf outside of the support."""
        theta = jnp.asarray(theta, float)
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            raise InputError(
                f"got parameters of shape {theta.shape}; expected (..., {self.dim}): {', '.join(self.names)}"
            )
        outside = jnp.any((theta < self.low) | (theta > self.high), axis=-1)
        # outside, the formula is evaluated at the median, so that gradients stay finite
        inner = jnp.where(outside[..., None], self.bijection.decode(jnp.zeros(self.dim))[0], theta)
        u, log_det = self.bijection.encode(inner)
        return jnp.where(outside, -jnp.inf, normal_log_prob(u, (self.dim,)) + log_det)

    def sample(self, key: Key = None, n: int | Shape = ()) -> Float[Array, "..."]:
        """Draw `n` parameters (a number or a shape; () for one), of shape `(*n, d)`."""
        return self.bijection.decode(jax.random.normal(as_key(key), (*as_shape(n), self.dim)))[0]


def _rows(first: Numbers, second: Numbers, dim: int) -> Array:
    parts = [np.broadcast_to(np.asarray(part, np.float64), (dim,)) for part in (first, second)]
    return jnp.asarray(np.stack(parts), float)


def _default_names(dim: int) -> tuple[str, ...]:
    return tuple(f"x{i + 1}" for i in range(dim))


def _vectors(**arguments: Numbers) -> list[np.ndarray]:
    """The arguments as vectors of one length."""
    try:
        arrays = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in arguments.values()))
    except ValueError:
        arrays = []
    if not arrays or arrays[0].ndim > 1 or arrays[0].size == 0:
        got = ", ".join(f"{name} of shape {np.shape(value)}" for name, value in arguments.items())
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

    Example:
        >>> import flowknife as fk
        >>> fk.Uniform(low=[-2, -2], high=[2, 2]).log_prob([[0.0, 0.0], [3.0, 0.0]]).round(2)
        Array([-2.77,  -inf], dtype=float32)
    """
    low, high = _vectors(low=low, high=high)
    if not (np.all(low < high) and np.all(np.isfinite([low, high]))):
        raise InputError(f"got low={low}, high={high}; expected finite numbers with low < high")
    return Prior(
        HistogramToNormal(np.stack([low, high], axis=-1), np.ones((len(low), 1))),
        low=low,
        high=high,
        mean=(low + high) / 2,
        std=(high - low) / np.sqrt(12),
        names=names,
        units=units,
    )


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
    return Prior(Affine(mean, scale), mean=mean, std=scale, names=names, units=units)


def LogNormal(mean: Numbers, scale: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent positive parameters with normal logarithms: u = (log theta - mean) / scale.

    Args:
        mean: expectations of the logarithms, one number or one for each parameter.
        scale: standard deviations of the logarithms.
        names: of the parameters; default x1, x2, ...
        units: of the parameters.

    Raises:
        InputError: for a scale that is not positive.
    """
    mean, scale = _vectors(mean=mean, scale=scale)
    _check_scale(mean, scale)
    return _of_logarithm(Affine(mean, scale), mean, scale, names, units)


def _of_logarithm(bijection: Bijection, mean, scale, names, units) -> Prior:
    """The prior of theta when `bijection` maps log theta, of these moments, to N(0, I)."""
    expected = np.exp(mean + scale**2 / 2)
    return Prior(
        Chain([Elementwise(Log(), len(mean)), bijection]),
        low=0.0,
        mean=expected,
        std=expected * np.sqrt(np.expm1(scale**2)),
        names=names,
        units=units,
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
    bijection = TruncatedToNormal(mean, scale, low, high)
    law = stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale)
    return Prior(bijection, low=low, high=high, mean=law.mean(), std=law.std(), names=names, units=units)


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
    edges, weights = np.asarray(edges, np.float64), np.asarray(weights, np.float64)
    if edges.ndim != 1 or weights.ndim != 1:
        raise InputError(f"got {edges.shape} edges and {weights.shape} weights; expected vectors, (k + 1,) and (k,)")
    bijection = HistogramToNormal(edges[None], weights[None])
    share = weights / weights.sum()
    centre, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    mean = float(np.sum(share * centre))
    std = float(np.sqrt(np.sum(share * ((centre - mean) ** 2 + width**2 / 12))))
    return Prior(bijection, low=edges[0], high=edges[-1], mean=mean, std=std, names=names, units=units)


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
    points = np.asarray(points, np.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or np.shape(mean) not in ((), points.shape[:1]):
        raise InputError(f"got points of shape {points.shape}, mean of shape {np.shape(mean)}; expected (d,), (d,)")
    if kernel not in KERNELS or not (scale > 0 and length > 0 and jitter > 0):
        raise InputError(
            f"got kernel={kernel!r}, scale={scale}, length={length}, jitter={jitter}; expected positive numbers and "
            f"one of {', '.join(map(repr, KERNELS))}"
        )
    mean = np.broadcast_to(np.asarray(mean, np.float64), points.shape[:1])
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
    return Prior(whiten, mean=mean, std=std, names=names, units=units)


def Product(parts: Mapping[str, Prior]) -> Prior:
    """Independent parts side by side, in their order.

    A part of one parameter gives it its name; of several parameters it keeps the names they have, or numbers them.

    Args:
        parts: priors by name.

    Raises:
        InputError: without a part, or with a name twice.
    """
    if not parts:
        raise InputError('got no parts; expected at least one prior; try Product({"x": Normal(0, 1)})')
    priors = list(parts.values())
    names = [name for key, prior in parts.items() for name in _names_of_part(key, prior)]
    known = all(prior.moments is not None for prior in priors)
    return Prior(
        Concatenate([prior.bijection for prior in priors]),
        low=np.concatenate([prior.low for prior in priors]),
        high=np.concatenate([prior.high for prior in priors]),
        mean=np.concatenate([np.asarray(prior.mean) for prior in priors]) if known else None,
        std=np.concatenate([np.asarray(prior.std) for prior in priors]) if known else None,
        names=names,
        units=[unit for prior in priors for unit in prior.units],
    )


def _names_of_part(name: str, prior: Prior) -> Sequence[str]:
    if prior.dim == 1:
        return [name]
    numbered = prior.names == _default_names(prior.dim)
    return [f"{name}{i + 1}" for i in range(prior.dim)] if numbered else prior.names


def likeliest(theta: Float[np.ndarray, "n d"], names: Words = None) -> Prior:
    """A prior of independent parameters from draws: uniform, normal or log-normal each, whichever is likeliest.

    The bounds of a uniform component lie beyond its extreme draws by the mean distance between neighbours.

    Args:
        theta: draws, shape (n, d).
        names: of the parameters; default x1, x2, ...
    """
    columns = np.asarray(theta, np.float64).T
    names = _default_names(len(columns)) if names is None else names
    return Product({name: _likeliest(column) for name, column in zip(names, columns, strict=True)})


def _likeliest(draws) -> Prior:
    mean, scale = draws.mean(), max(draws.std(), 1e-6 * np.abs(draws).max(), 1e-12)
    margin = max(np.ptp(draws), scale) / len(draws)
    low, high = draws.min() - margin, draws.max() + margin
    # mean log densities at the draws
    found = {"uniform": -np.log(high - low), "normal": -np.log(scale) - 0.5 * np.log(2 * np.pi * np.e)}
    if draws.min() > 0:
        logs = np.log(draws)
        spread = max(logs.std(), 1e-6)
        found["log-normal"] = -np.log(spread) - 0.5 * np.log(2 * np.pi * np.e) - logs.mean()
    best = max(found, key=found.__getitem__)
    if best == "uniform":
        return Uniform(low, high)
    return Normal(mean, scale) if best == "normal" else LogNormal(logs.mean(), spread)
