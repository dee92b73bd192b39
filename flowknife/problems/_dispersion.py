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
from flowknife.sampling import annealed

THICKNESS = np.repeat([0.1, 0.2], 5)
"""Thickness of the layers in km; the last one is a half-space."""

PERIODS = np.logspace(-0.5, 0.5, 14)
"""In s."""

LOW = np.array([0.33, 0.43, 0.48, 0.51, 0.55, 0.60, 0.58, 0.56, 0.56, 0.60])
HIGH = np.array([0.63, 0.79, 0.88, 0.95, 1.05, 1.20, 1.28, 1.36, 1.36, 1.40])
"""Bounds of the shear velocities, in km/s; half their distance is two standard deviations of the prior."""

_MEAN, _SCALE = (LOW + HIGH) / 2, (HIGH - LOW) / 4
_PARTICLES = 2000  # at least: with fewer, modes are lost
_FINE, _COARSE = 1e-4, 1e-3  # steps of the search, in km/s
_FILE = "dispersion.npz"


def dispersion(noise: float | int = 0.01) -> Problem:
    """Phase velocities of Rayleigh waves (fundamental mode, 14 periods) over ten layers of shear velocity Vs, in km/s.

        Vs ~ N((low + high) / 2, ((high - low) / 4)^2),    Vp = 1.16 Vs + 1.36,    density = 1.74 Vp^(1/4)

    The forward model is the package disba (`pip install 'flowknife[dispersion]'`); if it finds no fundamental mode,
    data are NaN. `pairs()` returns stored simulations, without disba.

    Args:
        noise: standard deviation of the data, in km/s.

    The reference is annealed from the prior (`sampling.annealed`), with a coarser search of the forward model (see
    `phase_velocities`): three minutes for up to 2,000 draws. Some observations have two modes, whose shares differ
    between runs. After Zhang & Curtis 2021, doi 10.1029/2021JB022320;
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


def phase_velocities(theta: np.ndarray, step: float = _FINE) -> np.ndarray:
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


def _forward(theta, step=_FINE):
    if not isinstance(theta, Tracer):
        return jnp.asarray(phase_velocities(np.asarray(theta), step), float)
    dtype = jnp.zeros(()).dtype
    shape = jax.ShapeDtypeStruct((*theta.shape[:-1], len(PERIODS)), dtype)
    return jax.pure_callback(
        lambda value: phase_velocities(np.asarray(value), step).astype(dtype), shape, theta, vmap_method="expand_dims"
    )


def _reference(noise, key, y, n):
    return _MEAN + _SCALE * _sample_posterior(as_generator(key), y, noise, n)


def _sample_posterior(numbers, y, noise, n):
    """Draws given y, in units of the prior, u: particles of the prior, annealed, since there may be several modes."""

    def log_likelihood(u):
        residual = (y - phase_velocities(_MEAN + _SCALE * u, step=_COARSE)) / noise
        return -0.5 * np.sum(residual**2, axis=-1)

    particles = numbers.standard_normal((max(n, _PARTICLES), len(_MEAN)))
    return annealed(particles, log_likelihood, numbers)[:n]
