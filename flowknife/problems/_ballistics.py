"""The second problem of application 5: infer the throw from the landing point."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flowknife._types import as_generator
from flowknife.priors import Histogram, Normal, Product, Uniform
from flowknife.problems._problem import Problem
from flowknife.sampling._importance import Weighted

GRAVITY, DRAG, MASS = 9.81, 0.25, 0.2
_TIME = MASS / DRAG
_X0_SCALE = 0.5
_NEWTON_STEPS = 24


def path(theta, t):
    """Positions after the time t, shape (*batch, 2): drag is proportional to velocity.

        x(t) = x0 + T vx (1 - e^(-t/T)),    y(t) = y0 + T (g T + vy)(1 - e^(-t/T)) - g T t,    T = m / k

    Args:
        theta: x0, latent height w (y0 = max(w, 0)), angle in radians and speed, shape (*batch, 4).
        t: time in s, shape `batch`.
    """
    x0, height, vx, vy = _launch(theta)
    spent = -jnp.expm1(-t / _TIME)
    x = x0 + _TIME * vx * spent
    y = height + _TIME * (GRAVITY * _TIME + vy) * spent - GRAVITY * _TIME * t
    return jnp.stack([x, y], axis=-1)


def flight_time(theta):
    """Time of landing, in s, shape `batch`.

    The height is concave in time, and at t = (y0 + T (g T + vy)) / (g T) already below the ground. From there, Newton's
    method converges monotonically to the later root, for any throw.
    """
    _, height, _, vy = _launch(theta)

    def step(t):
        fall = (GRAVITY * _TIME + vy) * jnp.exp(-t / _TIME) - GRAVITY * _TIME
        return jnp.maximum(t - path(theta, t)[..., 1] / jnp.minimum(fall, -1e-6), 0.0)

    start = (height + _TIME * (GRAVITY * _TIME + vy)) / (GRAVITY * _TIME)
    root = jax.lax.fori_loop(0, _NEWTON_STEPS, lambda _, t: step(t), jax.lax.stop_gradient(start))
    return step(jax.lax.stop_gradient(root))  # the last step carries the gradient


def _launch(theta):
    x0, latent, angle, speed = jnp.moveaxis(theta, -1, 0)
    return x0, jnp.maximum(latent, 0.0), speed * jnp.cos(angle), speed * jnp.sin(angle)


def _landing(theta):
    theta = jnp.asarray(theta)
    return path(theta, flight_time(theta))[..., :1]


def ballistics(noise: float | int = 0.0) -> Problem:
    """A throw with air drag; y is the landing point, in m.

        x0 ~ N(0, 0.5^2) m, y0 = max(w, 0) with w ~ N(1.5, 0.5^2) m, angle ~ U(9, 81) degrees, v0 ~ Poisson(15) m/s

    with g = 9.81 m/s^2, drag k = 0.25 kg/s and mass m = 0.2 kg. Two of these distributions have no density. So the
    second parameter is w, of which the forward model uses the positive part, and v0 is dequantised: uniform within half
    a unit of the Poisson count (truncated at 44, beyond which its probability is 5e-10).

    Args:
        noise: standard deviation of y, in m.

    The reference is exact: all parameters but x0 are drawn from their prior, x0 is the starting point for which the
    throw lands at y, and the prior density of this x0 is the weight. Kruse et al. 2021, arXiv 2101.10763, sec. 3.2.
    """
    from scipy import stats

    speeds = np.arange(45)
    prior = Product(
        {
            "x0": Normal(0.0, _X0_SCALE, units=["m"]),
            "y0": Normal(1.5, 0.5, units=["m"]),
            "angle": Uniform(*np.radians([9.0, 81.0]), units=["rad"]),
            "speed": Histogram(np.arange(46) - 0.5, stats.poisson(15).pmf(speeds), units=["m/s"]),
        }
    )
    return Problem(
        name="ballistics",
        prior=prior,
        forward=_landing,
        reference=partial(_reference, noise),
        y_names=("landing",),
        y_units=("m",),
        noise=noise,
        source="Kruse et al. 2021, arXiv 2101.10763",
    )


def _propose(noise, y, numbers, m):
    from scipy import stats

    w = numbers.normal(1.5, 0.5, m)
    angle = numbers.uniform(*np.radians([9, 81]), m)
    speed = np.minimum(numbers.poisson(15, m), 44) + numbers.uniform(-0.5, 0.5, m)
    theta = np.stack([np.zeros(m), w, angle, speed], axis=-1)
    with jax.enable_x64(True):
        reached = np.asarray(jax.jit(_landing)(theta))[:, 0]
    theta[:, 0] = y[0] + noise * numbers.standard_normal(m) - reached
    return theta, stats.norm.logpdf(theta[:, 0], scale=_X0_SCALE)


def _reference(noise, key, y, n):
    numbers = as_generator(key)
    return Weighted.gather(partial(_propose, noise, y), numbers, 12 * n).draw(numbers, n)
