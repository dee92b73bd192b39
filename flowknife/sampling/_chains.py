"""Markov chains that start from draws of an approximation, whose spread sets their scale."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._xla import precise
from flowknife.errors import InputError
from flowknife.sampling._importance import Weighted, tempering

_WARMUP = 300  # steps of NUTS
_APART = 5  # steps between two draws that are kept, so that draws are nearly independent


def require_blackjax(what: str) -> None:
    """Raise an error unless blackjax is installed, which is needed for `what`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import blackjax  # noqa: F401
    except ImportError:
        raise InputError(
            f"got no blackjax, which {what}; expected it installed; try pip install 'flowknife[mcmc]'"
        ) from None


def nuts_chains(
    log_density: Callable[[Array], Array],
    starts: Float[Array, "c d"],
    key: Array,
    draws: int,
    warmup: int = _WARMUP,
    finish: Callable[[Array], Array] = lambda v: v,
) -> Float[Array, "c n k"]:
    """Draws of the no-U-turn sampler, one chain from each start, with step size and mass matrix adapted first.

    Hoffman & Gelman 2014, arXiv 1111.4246, as implemented by blackjax. Every fifth step is kept, since consecutive
    steps are correlated. To be called inside a compiled function.

    Args:
        log_density: log density of one position (d,), up to a constant, preferably in coordinates of about unit scale.
        starts: starting points of the chains.
        key: JAX key.
        draws: number of draws of each chain.
        warmup: number of adaptation steps.
        finish: transformation of each stored position.
    """
    import blackjax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    def chain(start, key):
        warmup_key, key = jax.random.split(key)
        adaptation = blackjax.window_adaptation(
            blackjax.nuts, log_density, initial_step_size=0.5, adaptation_info_fn=get_filter_adapt_info_fn()
        )
        (state, settings), _ = adaptation.run(warmup_key, start, num_steps=warmup)  # ty: ignore[unknown-argument]
        step = blackjax.nuts(log_density, **settings).step

        def move(state, key):
            keys = jax.random.split(key, _APART)
            state = jax.lax.fori_loop(0, _APART, lambda i, state: step(keys[i], state)[0], state)
            return state, finish(state.position)

        return jax.lax.scan(move, state, jax.random.split(key, draws))[1]

    return jax.vmap(chain)(starts, jax.random.split(key, len(starts)))


def metropolis(
    log_density: Callable[[np.ndarray], np.ndarray],
    starts: Float[np.ndarray, "n d"],
    factor: Float[np.ndarray, "d d"],
    generator: np.random.Generator,
    moves: int = 50,
    most: int = 12,
) -> Float[np.ndarray, "n d"]:
    """Random-walk Metropolis for many chains, for densities without gradients.

    Each proposal is normal with the covariance (2.38^2 / d) L L^T (Gelman, Roberts & Gilks 1996), at a random fifth to
    twice that scale. Between two rounds of moves, L is fitted to the positions of all chains, if there are at least ten
    for each dimension. The chains end when the mean log density over chains has stopped rising.

    Args:
        log_density: log density of positions (n, d), shape (n,), up to a constant; NaN counts as impossible.
        starts: starting point of each chain; the last position of each chain is returned.
        factor: L, a root of the covariance of the density.
        generator: random generator.
        moves: number of steps of each chain in a round.
        most: largest number of rounds; the chains do not end before the second one.
    """
    u = np.asarray(starts, np.float64)
    level, (n, dim) = _level(log_density, u), u.shape
    for round_ in range(most):
        if round_ and n >= 10 * dim:
            _, factor = whitening(u, np.full(n, 1 / n))
        before = level
        for _ in range(moves):
            size = 2.38 / dim**0.5 * np.exp(generator.uniform(np.log(0.2), np.log(2.0), (n, 1)))
            moved = u + size * (generator.standard_normal((n, dim)) @ factor.T)
            moved_level = _level(log_density, moved)
            accepted = np.log(generator.random(n)) < moved_level - level
            u, level = np.where(accepted[:, None], moved, u), np.where(accepted, moved_level, level)
        with np.errstate(invalid="ignore"):  # chains at impossible positions: the comparison is false
            settled = np.mean(level) - np.mean(before) <= 2 * np.std(level) * (2 / n) ** 0.5
        if round_ and settled:
            break
    return u


def _level(log_density, u):
    """Log densities of positions, -inf where they are NaN."""
    found = np.asarray(log_density(u), np.float64)
    return np.where(np.isnan(found), -np.inf, found)


def annealed(
    particles: Float[np.ndarray, "n d"],
    log_likelihood: Callable[[np.ndarray], np.ndarray],
    generator: np.random.Generator,
    moves: int = 8,
) -> Float[np.ndarray, "n d"]:
    """Draws of N(u; 0, I) L(u), from draws of N(0, I), also with several modes.

        p_b(u) ~ N(u; 0, I) L(u)^b,  b from 0 to 1

    b grows such that the weights L^(change of b) keep half of the effective sample size; particles are resampled by
    these weights and moved by `metropolis` (Del Moral, Doucet & Jasra 2006, doi 10.1111/j.1467-9868.2006.00553.x).

    Args:
        particles: draws of N(0, I).
        log_likelihood: log L of positions (n, d), shape (n,), up to a constant; NaN counts as impossible.
        generator: random generator.
        moves: number of Metropolis steps after each change of b.
    """
    u, power = particles, 0.0
    while power < 1:
        rest = (1 - power) * _level(log_likelihood, u)
        change = tempering(rest, len(u) / 2)
        power = 1.0 if change == 1 else power + change * (1 - power)
        kept = np.isfinite(rest)
        u = Weighted(u[kept], change * rest[kept], len(u)).draw(generator, len(u))
        equal = np.full(len(u), 1 / len(u))

        def log_density(u, power=power):
            return power * np.asarray(log_likelihood(u), np.float64) - 0.5 * np.sum(u**2, axis=-1)

        rounds = {"moves": 4 * moves, "most": 4} if power == 1 else {"moves": moves, "most": 1}
        u = metropolis(log_density, u, whitening(u, equal)[1], generator, **rounds)
    return u


def whitening(rows: Float[np.ndarray, "n d"], weight: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of weighted rows and a lower triangular root of their regularised covariance."""
    centre = weight @ rows
    covariance = (rows - centre).T @ (weight[:, None] * (rows - centre))
    ridge = 1e-6 * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return centre, np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))


class Target(eqx.Module):
    """A posterior in the coordinates u in which the prior is N(0, I): log N(u; 0, I) + log p(y | x(u)).

    Args:
        prior: prior of the parameters, with `bijection` and `frame`.
        log_likelihood: `(x, y) -> log p(y | x)` for one row of parameters in their units, differentiable.
        y: the observation.
    """

    prior: Any
    log_likelihood: Any
    y: Array

    def parameters(self, u: Array) -> Array:
        """The parameters at u, in their units."""
        x = self.prior.inner.bijection.decode(u)[0]
        return x if self.prior.frame is None else self.prior.frame.from_model(x)

    def __call__(self, u: Array) -> Array:
        value = self.log_likelihood(self.parameters(u), self.y) - 0.5 * jnp.sum(u**2)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)


@precise
@eqx.filter_jit
def posterior_chains(target: Target, centre: Array, factor: Array, starts: Array, key: Array, draws: int) -> Array:
    """Draws of parameters, shape (chains, draws, d): NUTS in (u - centre) / factor, from `starts` of u."""

    def place(v):
        return centre + factor @ v

    v = jax.vmap(lambda u: jax.scipy.linalg.solve_triangular(factor, u - centre, lower=True))(starts)
    return nuts_chains(lambda v: target(place(v)), v, key, draws, finish=lambda v: target.parameters(place(v)))
