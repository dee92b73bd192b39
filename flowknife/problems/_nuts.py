"""The No-U-Turn sampler for posteriors with a Gaussian likelihood, in nearly isotropic coordinates.

The prior makes theta = decode(u), u ~ N(0, I). With r(u) = (y - forward(decode(u))) / noise, the log posterior is
-|u|^2/2 - |r(u)|^2/2. Its mode u* is found by Levenberg and Marquardt's method, and NUTS moves v in

    u = u* + L^-T v,    L L^T = I + J^T J,    J = dr/du at u*,

in which the posterior would be N(0, I) if the forward model were linear. So short trajectories and few warm-up steps
are sufficient. Hoffman & Gelman 2014, arXiv 1111.4246, as implemented by blackjax.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife._xla import precise
from flowknife.priors import Prior
from flowknife.sampling import nuts_chains, require_blackjax

_CHAINS, _MODE_STEPS = 4, 60


def nuts_posterior(
    prior: Prior,
    forward: Callable[[Any], Array],
    noise: float | int | Sequence[float] | np.ndarray,
    key: Array,
    y: np.ndarray,
    n: int,
) -> np.ndarray:
    """Draws of theta given one observation; with the first three arguments bound, a `Reference`.

    Args:
        prior: prior of theta.
        forward: theta -> noiseless data, differentiable.
        noise: standard deviation of the data.
        key: JAX key.
        y: the observation.
        n: number of draws.
    """
    require_blackjax("draws this reference posterior")
    sd = jnp.broadcast_to(jnp.asarray(noise, float), y.shape)
    theta = sample_chains(key, prior, forward, jnp.asarray(y, float), sd, math.ceil(n / _CHAINS))
    # shuffled, since otherwise the first rows would come from one chain
    return np.asarray(theta).swapaxes(0, 1).reshape(-1, prior.dim)[:n]


@precise
@eqx.filter_jit
def sample_chains(key: Array, prior: Prior, forward: Any, y: Array, noise: Array, draws: int) -> Array:
    """Draws of theta, shape (4 chains, draws, dim)."""

    def residual(u):
        return (y - forward(prior.bijection.decode(u)[0])) / noise

    mode = _mode(residual, prior.dim)
    jacobian = jax.jacfwd(residual)(mode)
    factor = jnp.linalg.cholesky(jnp.eye(prior.dim) + jacobian.T @ jacobian)

    def position(v):
        return mode + jax.scipy.linalg.solve_triangular(factor, v, lower=True, trans="T")

    def log_density(v):
        u = position(v)
        return -0.5 * jnp.sum(u**2) - 0.5 * jnp.sum(residual(u) ** 2)

    start_key, key = jax.random.split(key)
    starts = jax.random.normal(start_key, (_CHAINS, prior.dim))
    return nuts_chains(log_density, starts, key, draws, finish=lambda v: prior.bijection.decode(position(v))[0])


def _mode(residual: Callable[[Array], Array], dim: int) -> Array:
    """The u that minimises |u|^2 + |residual(u)|^2, by the Levenberg-Marquardt method from u = 0."""

    def objective(u):
        return jnp.sum(u**2) + jnp.sum(residual(u) ** 2)

    def step(state, _):
        u, damping, best = state
        jacobian = jax.jacfwd(residual)(u)
        curvature = jnp.eye(dim) + jacobian.T @ jacobian
        gradient = u + jacobian.T @ residual(u)
        damped = curvature + damping * jnp.diag(jnp.diag(curvature))
        moved = u - jax.scipy.linalg.solve(damped, gradient, assume_a="pos")
        value = objective(moved)
        better = value < best  # False for NaN
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 4), 1e-8, 1e8)
        return (jnp.where(better, moved, u), damping, jnp.where(better, value, best)), None

    start = jnp.zeros(dim)
    (u, _, _), _ = jax.lax.scan(step, (start, jnp.asarray(1e-2), objective(start)), length=_MODE_STEPS)
    return u
