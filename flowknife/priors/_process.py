"""Priors of functions, represented by their values at points."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame
from flowknife._types import as_numbers
from flowknife.bijections import (
    PrincipalRotation,
)
from flowknife.errors import InputError
from flowknife.priors._families import of_logarithm
from flowknife.priors._prior import Numbers, Prior, Words

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
    """A smooth function, represented by its values at `points`: u = V^(-1/2) R (theta - mean), K = R^T V R.

    K = scale^2 (k(|p_i - p_j| / length) + jitter I), with k from `KERNELS` (Rasmussen & Williams 2006, eqs. 4.9 and
    4.17). The components of u are the principal components of K, the largest (smoothest) first. They are mixed, so an
    infinite u does not correspond to a function.

    Args:
        points: the points, shape (d,) or (d, k).
        mean: mean of the function, one number or one for each point.
        scale: standard deviation of the function.
        length: correlation length, in units of the points.
        log: model the logarithm of theta, which is then positive; the other arguments refer to the logarithm.
        kernel: "squared exponential" (very smooth) or "matern" (twice differentiable).
        jitter: share of the variance that is independent from point to point; it keeps K well conditioned.
        names: names of the values; default x1, x2, ...
        units: units of the values.

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
    if frame is not None:  # the components are mixed, so they need a common unit
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
        return of_logarithm(whiten, mean, std, names, units)
    return Prior(whiten, mean=mean, std=std, names=names, units=units, frame=frame)
