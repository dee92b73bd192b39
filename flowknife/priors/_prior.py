"""The distribution that a bijection maps to N(0, I)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowknife._batches import ROWS_AT_ONCE, bucket, map_batches
from flowknife._frame import Frame
from flowknife._types import Constant, Key, Shape, as_key, as_numbers, as_shape
from flowknife.bijections import (
    Affine,
    Bijection,
    Chain,
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

    The functions of this package create common priors; other priors need a bijection of your own.

    Args:
        bijection: maps vectors `theta` of the support to standard normal vectors `u` of the same length.
        low: lower end of the support, one number or one for each component.
        high: upper end.
        mean: expectation of each component, if known.
        std: standard deviation of each component, if known.
        names: names of the components; default x1, x2, ...
        units: units of the components; default none.
        frame: the frame in which `bijection` takes theta; default the units of theta.

    Raises:
        InputError: for a bijection that is not of vectors, or another number of names or units than components.
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
        self.names = default_names(dim) if names is None else _texts("names", names)
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
            with np.errstate(over="ignore", under="ignore"):  # for units beyond single precision only `inner` is usable
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
        """The prior of the parameters in the form for a network: in the `frame`, without fixed ones."""
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

        Fixed parameters have no density: the result is the density of the others, or -inf for another fixed value.
        """
        theta = theta if isinstance(theta, jax.Array) else as_numbers(theta, "parameters")
        if theta.ndim == 0 or theta.shape[-1] != self.dim:
            raise InputError(
                f"got parameters of shape {np.shape(theta)}; expected (..., {self.dim}): {', '.join(self.names)}"
            )
        if self.frame is not None and self.within is not None:
            inside, possible = self.frame.inside(theta), self.frame.possible(theta)
            if not isinstance(inside, Tracer):
                # the ends of the support were rounded inwards: the true ones lie up to one rounding step outside
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


@eqx.filter_jit  # compiled as a whole: otherwise every operation would be compiled on its own
def _log_density(prior, theta):
    """Log density of parameters in the units of the bijection."""
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
    """Names or units as a tuple; refuses a single text, which would be read letter by letter."""
    texts = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"got {role}={given!r}; expected a text for each parameter; try {role}=['a', 'b']")
    return tuple(map(str, texts))


def default_names(dim: int) -> tuple[str, ...]:
    return tuple(f"x{i + 1}" for i in range(dim))
