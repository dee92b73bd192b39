"""Two standard tasks of simulation-based inference with exact posteriors (Lueckmann et al. 2021, arXiv 2101.04653)."""

import jax
import jax.numpy as jnp
import numpy as np

from flowknife._types import as_generator
from flowknife.errors import InputError
from flowknife.priors import Normal, Uniform
from flowknife.problems._problem import Problem, check_count

_VARIANCE = 0.1  # variance of the prior and of the noise of `gaussian_linear`
_RADIUS = 0.1, 0.01
_CENTRE = 0.25


def gaussian_linear(dim: int = 10) -> Problem:
    """Ten normal means: theta ~ N(0, 0.1 I), y ~ N(theta, 0.1 I), so theta given y is N(y/2, 0.05 I).

    These are variances, not standard deviations.

    Args:
        dim: number of parameters and of data.

    Lueckmann et al. 2021, arXiv 2101.04653, T.1.
    """
    check_count("dim", dim)
    scale = _VARIANCE**0.5
    return Problem(
        name="gaussian_linear",
        prior=Normal(np.zeros(dim), scale),
        forward=jnp.asarray,
        reference=_halfway,
        y_names=tuple(f"y{i + 1}" for i in range(dim)),
        y_units=("",) * dim,
        noise=scale,
        source="Lueckmann et al. 2021, arXiv 2101.04653, T.1",
    )


def _halfway(key, y, n):
    return y / 2 + (_VARIANCE / 2) ** 0.5 * as_generator(key).standard_normal((n, len(y)))


def two_moons() -> Problem:
    """A posterior of two crescents.

    With theta ~ U(-1, 1)^2, a ~ U(-pi/2, pi/2) and r ~ N(0.1, 0.01^2),

        y = (r cos a + 1/4, r sin a) + (-|t1 + t2|, -t1 + t2) / sqrt 2.

    `forward` is the mean of y given theta; the noise is not Gaussian, so `noise` is None.

    The reference is exact. The second term is a rotation of theta folded along t1 + t2 = 0, which preserves areas. So
    under a flat prior, the density of theta is that of the first term at the difference of y and the second term, on
    either side of the fold. A draw of (a, r) thus determines t1 + t2 up to its sign, which is drawn too, and is dropped
    if theta falls outside of the square.

    Lueckmann et al. 2021, arXiv 2101.04653, T.8; Greenberg et al. 2019, arXiv 1905.07488.
    """
    return Problem(
        name="two_moons",
        prior=Uniform([-1.0, -1.0], [1.0, 1.0]),
        forward=_middle_of_crescents,
        reference=_crescents_of,
        y_names=("y1", "y2"),
        y_units=("", ""),
        noise=None,
        draw=_draw_crescents,
        source="Lueckmann et al. 2021, arXiv 2101.04653, T.8",
    )


def _fold(theta):
    total, difference = theta[..., 0] + theta[..., 1], theta[..., 1] - theta[..., 0]
    return jnp.stack([-jnp.abs(total), difference], axis=-1) / np.sqrt(2)


def _middle_of_crescents(theta):
    # the mean of cos a is 2/pi, that of sin a is zero
    return _fold(jnp.asarray(theta)) + jnp.asarray([_CENTRE + _RADIUS[0] * 2 / np.pi, 0.0])


def _draw_crescents(key, theta):
    angle_key, radius_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, theta.shape[:-1], minval=-np.pi / 2, maxval=np.pi / 2)
    radius = _RADIUS[0] + _RADIUS[1] * jax.random.normal(radius_key, theta.shape[:-1])
    crescent = radius[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return crescent + jnp.asarray([_CENTRE, 0.0]) + _fold(theta)


def _crescents_of(key, y, n):
    numbers = as_generator(key)
    parts, found, tries = [], 0, 0
    while found < n:
        theta = _unfold(numbers, y, 2 * n + 1000)
        parts.append(theta)
        found, tries = found + len(theta), tries + 1
        if tries == 100 and found < n:
            raise InputError(f"got y={y}, which (almost) no parameters of the square explain; try a simulated one")
    return np.concatenate(parts)[:n]


def _unfold(numbers: np.random.Generator, y: np.ndarray, m: int) -> np.ndarray:
    """Draws of theta given y, those of m proposals that fall inside the square."""
    angle = numbers.uniform(-np.pi / 2, np.pi / 2, m)
    radius = numbers.normal(*_RADIUS, m)
    rest = np.sqrt(2) * (y - np.stack([_CENTRE + radius * np.cos(angle), radius * np.sin(angle)], axis=-1))
    total = -rest[:, 0] * numbers.choice([-1.0, 1.0], m)
    theta = np.stack([total - rest[:, 1], total + rest[:, 1]], axis=-1) / 2
    return theta[(rest[:, 0] <= 0) & np.all(np.abs(theta) <= 1, axis=-1)]
