"""Application 7, noise as an input: infer shear velocities below ground from the dispersion of surface waves."""

from functools import cache, partial
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flowknife._types import as_generator
from flowknife.errors import InputError
from flowknife.priors import Normal
from flowknife.problems._problem import Problem
from flowknife.sampling import tempered

THICKNESS = np.repeat([0.1, 0.2], 5)
"""Thickness of the layers in km; the last one is a half-space."""

PERIODS = np.logspace(-0.5, 0.5, 14)
"""In s."""

LOW = np.array([0.33, 0.43, 0.48, 0.51, 0.55, 0.60, 0.58, 0.56, 0.56, 0.60])
HIGH = np.array([0.63, 0.79, 0.88, 0.95, 1.05, 1.20, 1.28, 1.36, 1.36, 1.40])
"""Bounds of the shear velocities, in km/s; half their distance is two standard deviations of the prior."""

_MEAN, _SCALE = (LOW + HIGH) / 2, (HIGH - LOW) / 4
_TAIL = 6.0  # degrees of freedom of the Student t
_ROUNDS, _ROUND, _MOVES = 5, 1000, 100
_COARSE = 1e-3  # km/s
_FILE = "dispersion.npz"


def dispersion(noise: float | int = 0.01) -> Problem:
    """Phase velocities of Rayleigh waves (fundamental mode, 14 periods) over ten layers of shear velocity Vs, in km/s.

        Vs ~ N((low + high) / 2, ((high - low) / 4)^2),    Vp = 1.16 Vs + 1.36,    density = 1.74 Vp^(1/4)

    The forward model is the package disba (`pip install 'flowknife[dispersion]'`); if it finds no fundamental mode,
    data are NaN. `pairs()` returns stored simulations, without disba.

    Args:
        noise: standard deviation of the data, in km/s.

    The reference is Markov chain Monte Carlo without gradients, one chain for each draw, started from weighted draws of
    a Student t that was fitted to the posterior. It runs the forward model 100 times for each draw, with a coarser
    search (see `phase_velocities`): 45 seconds for 1,000. After Zhang & Curtis 2021, doi 10.1029/2021JB022320;
    constants of a public replication.
    """
    return Problem(
        name="dispersion",
        prior=Normal(_MEAN, _SCALE, names=[f"vs{i + 1}" for i in range(10)], units=["km/s"] * 10),
        forward=_forward,
        reference=partial(_reference, noise if np.any(noise) else 0.01),
        y_names=tuple(f"c{i + 1}" for i in range(len(PERIODS))),
        y_units=("km/s",) * len(PERIODS),
        noise=noise,
        geometry={"thickness": THICKNESS, "periods": PERIODS},
        source="Zhang & Curtis 2021, doi 10.1029/2021JB022320",
    )


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Shear velocities, float32 of shape (20000, 10), and their noiseless phase velocities, (20000, 14), in km/s.

    Drawn from the prior of `dispersion` by `python -m flowknife.problems.make_dispersion`, stored as integers, with a
    rounding error of at most 2e-5 km/s.
    """
    with resources.files("flowknife.problems").joinpath(_FILE).open("rb") as file, np.load(file) as stored:
        columns = [
            stored[f"{name}_low"] + stored[f"{name}_step"] * stored[name].astype(np.float64) for name in ("theta", "y")
        ]
    return columns[0].astype(np.float32), columns[1].astype(np.float32)


@cache
def _phase_dispersion():
    """Disba's model class and error class; the first use in a process compiles them, which takes seconds."""
    try:
        from disba import DispersionError, PhaseDispersion  # ty: ignore[import-not-found]
    except ImportError:
        raise InputError(
            "got no disba, the forward model of dispersion; expected it installed; try "
            "pip install 'flowknife[dispersion]', or the stored simulations of flowknife.problems.pairs()"
        ) from None
    return PhaseDispersion, DispersionError


def phase_velocities(theta: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Noiseless data of shear velocities, shape (*batch, 10) -> (*batch, 14), model by model; NaN if there are none.

    Args:
        theta: shear velocities in km/s.
        step: step of the search for the slowest wave, in km/s: 3 ms per model with 1e-4; 0.4 ms with 1e-3, which misses
            the fundamental mode of 1 in 1,000 models of the prior.
    """
    curve, failure = _phase_dispersion()
    rows = np.asarray(theta, np.float64).reshape(-1, len(THICKNESS))
    found = np.full((len(rows), len(PERIODS)), np.nan)
    for row, vs in enumerate(rows):
        if not np.all(vs > 0):
            continue
        vp = 1.16 * vs + 1.36
        try:
            velocity = curve(THICKNESS, vp, vs, 1.74 * vp**0.25, dc=step)(PERIODS, mode=0, wave="rayleigh").velocity
        except failure:
            continue
        if velocity.shape == PERIODS.shape:
            found[row] = velocity
    return found.reshape(*np.shape(theta)[:-1], len(PERIODS))


def _forward(theta):
    if not isinstance(theta, Tracer):
        return jnp.asarray(phase_velocities(np.asarray(theta)), float)
    dtype = jnp.zeros(()).dtype
    shape = jax.ShapeDtypeStruct((*theta.shape[:-1], len(PERIODS)), dtype)
    return jax.pure_callback(
        lambda value: phase_velocities(np.asarray(value)).astype(dtype), shape, theta, vmap_method="expand_dims"
    )


def _reference(noise, key, y, n):
    return _MEAN + _SCALE * _sample_posterior(as_generator(key), y, noise, n)


def _sample_posterior(numbers, y, noise, n):
    """Draws given y, in units of the prior, u.

    The posterior is far from normal. So a Student t, initially at the mode with the curvature there, is refitted to its
    own weighted draws for some rounds (adaptive importance sampling, Bugallo et al. 2017, doi
    10.1109/MSP.2017.2699226). Draws of the last round are resampled by weight, then moved by random-walk Metropolis
    (resample-move, Gilks & Berzuini 2001, doi 10.1111/1467-9868.00280), which also covers tails that the t misses.
    """
    dim = len(_MEAN)

    def residual(u):
        return (y - phase_velocities(_MEAN + _SCALE * u, step=_COARSE)) / noise

    def log_posterior(u):
        value = -0.5 * np.sum(u**2, axis=-1) - 0.5 * np.sum(residual(u) ** 2, axis=-1)
        return np.where(np.isnan(value), -np.inf, value)

    centre, root = _laplace(residual, dim)
    for _ in range(_ROUNDS):
        v = numbers.standard_normal((_ROUND, dim)) * np.sqrt(_TAIL / numbers.chisquare(_TAIL, _ROUND))[:, None]
        u = centre + v @ root.T
        level = log_posterior(u)
        weight = tempered(level + 0.5 * (_TAIL + dim) * np.log1p(np.sum(v**2, axis=-1) / _TAIL), enough=10 * dim)
        centre = weight @ u
        # a tenth wider, to cover the tails
        root = np.linalg.cholesky(1.1 * (u - centre).T @ (weight[:, None] * (u - centre)) + 1e-4 * np.eye(dim))

    chosen = numbers.choice(_ROUND, n, p=weight)
    u, level = u[chosen], level[chosen]
    for _ in range(_MOVES):
        moved = u + 2 / np.sqrt(dim) * numbers.standard_normal((n, dim)) @ root.T
        moved_level = log_posterior(moved)
        accepted = np.log(numbers.random(n)) < moved_level - level
        u, level = np.where(accepted[:, None], moved, u), np.where(accepted, moved_level, level)
    return u


def _laplace(residual, dim):
    """Mode of |u|^2 + |residual(u)|^2 by the Gauss-Newton method, and the root of the inverse curvature there."""
    step, sizes = 1e-2 * np.eye(dim), np.array([1.0, 0.5, 0.25, 0.1])[:, None]
    mode, best = np.zeros(dim), np.inf
    while True:
        slope = (residual(mode + step) - residual(mode - step)) / 2e-2  # (dim, data)
        curvature = np.eye(dim) + slope @ slope.T
        candidates = mode - sizes * np.linalg.solve(curvature, mode + slope @ residual(mode))
        values = np.sum(candidates**2, axis=-1) + np.sum(residual(candidates) ** 2, axis=-1)
        values = np.where(np.isnan(values), np.inf, values)
        if not np.min(values) < best - 1e-2:
            return mode, np.linalg.cholesky(np.linalg.inv(curvature))
        mode, best = candidates[np.argmin(values)], np.min(values)
