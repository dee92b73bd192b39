"""Common priors: independent parameters of one family."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame
from flowknife._types import as_numbers
from flowknife.bijections import (
    Affine,
    Bijection,
    Chain,
    Elementwise,
    HistogramToNormal,
    Log,
    TruncatedToNormal,
)
from flowknife.errors import InputError
from flowknife.priors._prior import Numbers, Prior, Words


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
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

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
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

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
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

    Raises:
        InputError: for a scale that is not positive, or parameters beyond the range of floating point numbers.
    """
    mean, scale = _vectors(mean=mean, scale=scale)
    _check_scale(mean, scale)
    if np.abs(mean).max() > 600:
        raise InputError(f"got mean={mean} of the logarithm; expected at most 600: exp(mean) has to be a number")
    # in units of exp(mean) the logarithms are centred at zero
    unit = np.where((np.abs(mean) > 60) | (np.abs(mean) > 1000 * scale), np.exp(mean), 1.0)
    frame = None if np.all(unit == 1) else Frame(np.zeros(len(mean)), unit)
    mean = mean - np.log(unit)
    return of_logarithm(Affine(mean, scale), mean, scale, names, units, frame)


def LogUniform(low: Numbers, high: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """Independent positive parameters with uniform logarithms: u = Φ^-1(log(theta / low) / log(high / low)).

    Every decade between the bounds has the same probability.

    Args:
        low: lower bounds, one number or one for each parameter.
        high: upper bounds.
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

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


def of_logarithm(bijection: Bijection, mean, scale, names, units, frame=None) -> Prior:
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
    """Independent truncated normal parameters: u = Φ^-1(F(theta)), F that of N(mean, scale^2) on [low, high].

    Args:
        mean: means before truncation, one number or one for each parameter.
        scale: standard deviations before truncation.
        low: lower bounds; may be -inf.
        high: upper bounds; may be inf.
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

    Raises:
        InputError: for a scale that is not positive, or bounds that contain (almost) no mass of the normal.
    """
    from scipy import stats

    mean, scale, low, high = _vectors(mean=mean, scale=scale, low=low, high=high)
    standard = stats.truncnorm((low - mean) / scale, (high - mean) / scale)
    expected, std = mean + scale * standard.mean(), scale * standard.std()
    frame = None
    if np.all(np.isfinite(expected) & (std > 0)):  # otherwise the bijection raises the error
        frame = Frame.where_needed(expected, std)
    mean, low, high, expected, scale, std = _inside(frame, mean, low, high, expected, std=(scale, std))
    bijection = TruncatedToNormal(mean, scale, low, high)
    return Prior(bijection, low=low, high=high, mean=expected, std=std, names=names, units=units, frame=frame)


def Histogram(edges: Numbers, weights: Numbers, *, names: Words = None, units: Words = None) -> Prior:
    """One parameter, uniform within each bin of a histogram.

    An integer parameter is dequantised by a bin of width one around each value.

    Args:
        edges: edges of the bins, increasing, shape (k + 1,).
        weights: weights of the bins, positive, shape (k,); they need not sum to one.
        names: name of the parameter, a sequence of one; default x1.
        units: unit of the parameter, a sequence of one.

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
    """Known parameters: each has exactly its value, also in every posterior.

    They are used as parts, as in `Product({"a": Uniform(0, 1), "b": Fixed(3.0)})`; the density is that of the other
    parameters.

    Args:
        value: one number, or one for each parameter.
        names: names of the parameters; default x1, x2, ...
        units: units of the parameters.

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
    """Points, followed by widths, in the units of a frame."""
    widths = std if isinstance(std, tuple) else (std,)
    if frame is None:
        return [*points, *widths]
    origin, scale = np.asarray(frame.origin), np.asarray(frame.scale)
    return [*((point - origin) / scale for point in points), *(width / scale for width in widths)]
