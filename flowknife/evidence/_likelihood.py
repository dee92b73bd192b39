"""The likelihood p(y | x) learnt from pairs, as a conditional density."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_count, as_generator, as_key, as_numbers, keys_of
from flowknife.apps import Density, DensityConfig, density
from flowknife.data import load_table, simulate
from flowknife.data._pairs import Pairs, is_table, read_pairs
from flowknife.data._read import by_name, names_in, some
from flowknife.errors import InputError
from flowknife.priors import Prior
from flowknife.priors._prior import default_names
from flowknife.problems import Problem
from flowknife.sampling import Target, posterior_chains, require_blackjax, whitening

_CHAINS, _STARTS = 4, 1000


class _OfRow(eqx.Module):
    """log p(y | x) of one row of parameters, for computing gradients."""

    density: Any
    frame: Any = eqx.field(static=True)
    given_frame: Any = eqx.field(static=True)

    def __call__(self, x: Any, y: Any) -> Any:
        inside = self.frame.inside(y).astype(jnp.float32)
        return self.density.log_prob(inside, y=self.given_frame.inside(x).astype(jnp.float32)) + self.frame.log_det


@dataclass(frozen=True)
class LearnedLikelihood:
    """The density p(y | x) of data given parameters, learnt from pairs.

    `likelihood(x, y)` is log p(y | x) of parameters (n, d) and one observation (m,), as needed by
    `fk.invert(log_likelihood=...)`.

    Attributes:
        density: density of y given x; save it with `density.save`, and recreate the likelihood from `fk.load(...)`.
        prior: prior of the parameters, if it is known.
    """

    density: Density
    prior: Prior | None = field(default=None, repr=False)

    def __call__(self, x: Any, y: Any) -> Any:
        x, rows = read_rows(x, self.density.given_names), read_rows(y, self.density.names)
        if len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time; try log_prob(y, x)")
        return self.density.log_prob(np.broadcast_to(rows, (len(x), rows.shape[1])), given=x)

    def log_prob(self, y: Any, x: Any) -> Float[np.ndarray, " n"]:
        """Log p(y | x) in nats, for rows y (n, m) and one row of parameters or one for each."""
        return self.density.log_prob(read_rows(y, self.density.names), given=x)

    def simulate(self, x: Any, *, key: Key = None) -> Float[np.ndarray, "n m"]:
        """Draw data for each row of parameters (n, d), as an emulator of the simulator."""
        x = read_rows(x, self.density.given_names)
        return np.asarray(self.density.sample(len(x), given=x, key=key), np.float64)

    @cached_property
    def row(self) -> Any:
        """The JAX function `(x (d,), y (m,)) -> log p(y | x)`."""
        return _OfRow(self.density.model, self.density.frame, self.density.given_frame)

    def posterior(
        self, y: Any, n: int = 1000, *, prior: Prior | None = None, key: Key = None
    ) -> Float[np.ndarray, "n d"]:
        """Draw `n` parameters from the posterior by NUTS (extra `mcmc`).

        Several observations of the same parameters, rows of `y` (k, m), are treated as independent: their
        log-likelihoods are added, which a posterior of `invert` does not support.

        Args:
            y: one observation (m,), or k of the same parameters (k, m).
            n: number of draws.
            prior: prior of the parameters; default that of the fit.
            key: int, JAX key or None.

        Raises:
            InputError: without a prior or with one of other parameters, for observations of another length, or without
                blackjax.
        """
        prior, names = prior or self.prior, self.density.given_names
        if prior is None:
            raise InputError("got no prior; expected that of the parameters; try prior=fk.Uniform(low, high)")
        if prior.dim != len(names):
            raise InputError(f"got a prior of {prior.dim} parameters; expected one of {len(names)}: {some(names)}")
        rows = read_rows(y, self.density.names)
        require_blackjax("draws this posterior")
        n, generator = as_count(n, "draw"), as_generator(key)
        target = Target(prior, _Sum(self.row), jnp.asarray(rows, float))
        u = generator.standard_normal((_STARTS, prior.inner.dim))
        level = np.asarray(eqx.filter_jit(eqx.filter_vmap(target))(jnp.asarray(u, float)), np.float64)
        level = np.where(np.isfinite(level), level + 0.5 * np.sum(u**2, axis=1), -np.inf)  # the prior drew them
        if not np.isfinite(level).any():
            raise InputError("got data that no parameters of the prior explain; expected others; see density.score")
        weight = np.exp(0.1 * (level - level.max()))  # tempered likelihood, so that chains have dispersed starts
        weight /= weight.sum()
        centre, factor = whitening(u, weight)
        starts = u[generator.choice(len(u), _CHAINS, p=weight)]
        parts = (jnp.asarray(part, float) for part in (centre, factor, starts))
        drawn = posterior_chains(target, *parts, as_key(int(generator.integers(2**32))), -(-n // _CHAINS))
        found = np.asarray(drawn, np.float64).swapaxes(0, 1)
        return found.reshape(-1, found.shape[-1])[:n]


class _Sum(eqx.Module):
    """The log-likelihood of several observations of the same parameters."""

    row: Any

    def __call__(self, x: Any, y: Any) -> Any:
        return jnp.sum(self.row(jnp.broadcast_to(x, (len(y), len(x))), y))


def likelihood(
    simulator: Any = None,
    prior: Prior | None = None,
    config: DensityConfig | None = None,
    *,
    pairs: Any = None,
    num_simulations: int = 10_000,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> LearnedLikelihood:
    """Learn p(y | x) from pairs of parameters x and data y: `fk.density(y, given=x)`.

    Args:
        simulator: y = simulator(x) or simulator(x, key=...), with noise, or a problem of `flowknife.problems`.
        prior: prior of the parameters; a problem includes its own. Without a simulator it is optional, for `posterior`.
        config: settings; default `DensityConfig()`.
        pairs: existing pairs (x, y), as for `invert`; in contrast to `invert`, x need not be drawn from the prior.
        num_simulations: number of simulations, if a simulator is given.
        key: int, JAX key or None.
        show_progress: show a progress bar.
        **settings: fields of `DensityConfig`; see `density`.

    Raises:
        InputError: for invalid pairs, or noise-free data, which have no density.

    Examples:
        >>> import flowknife as fk
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(400, 1))
        >>> y = 2 * x + np.random.default_rng(1).normal(size=(400, 1))
        >>> learned = fk.likelihood(pairs=(x, y), layers=1, train={"steps": 20}, show_progress=False)
        >>> learned.log_prob(y[:3], x[:3]).shape, learned.simulate(x[:3], key=0).shape
        ((3,), (3, 1))
    """
    simulate_key, fit_key = keys_of(as_key(key), 2)
    found, prior = pairs_of(simulator, prior, pairs, num_simulations, simulate_key)
    fitted = density(
        np.concatenate([found.y, found.x], axis=1),
        config,
        names=(*found.y_names, *found.names),
        given=found.names,
        key=key if pairs is not None else fit_key,
        show_progress=show_progress,
        **settings,
    )
    return LearnedLikelihood(fitted, prior)


def read_rows(source: Any, names: Sequence[str]) -> Float[np.ndarray, "n k"]:
    """Rows of finite numbers with these names: from one row (k,), rows, a table, or by name from a mapping or Series.

    Raises:
        InputError: for rows of another length or with other names, or numbers that are missing or infinite.
    """
    found = by_name(source, names)
    if found is not None:
        source = [found]
    elif not is_table(source) and np.ndim(source) < 2:
        source = np.reshape(as_numbers(source, "numbers"), (1, -1) if len(names) > 1 else (-1, 1))
    return load_table(source, columns=names, min_rows=1).values.astype(np.float64)


def pairs_of(simulator: Any, prior: Prior | None, pairs: Any, count: int, key: Any) -> tuple[Pairs, Prior | None]:
    """Parameters and data with their names, and the prior, from pairs or from a simulator.

    Raises:
        InputError: for neither or both, or a simulator without a prior.
    """
    if (simulator is None) == (pairs is None):
        got = "neither a simulator nor pairs" if pairs is None else "a simulator and pairs"
        raise InputError(f"got {got}; expected one of them; try pairs=(x, y)")
    if pairs is not None:
        found = read_pairs(pairs, prior.names if prior is not None else None)
        x, y = _columns(found.x, found.names), _columns(found.y, found.y_names)
        return _named(x, y, found.names, found.y_names), prior
    if isinstance(simulator, Problem):
        prior = prior or simulator.prior
        draw_key, noise_key = keys_of(key, 2)
        x = np.asarray(prior.sample(count, key=draw_key), np.float64)
        y = np.asarray(simulator.simulate(x, key=noise_key), np.float64)
        usable = np.isfinite(y).all(axis=1)
        return _named(x[usable], y[usable], prior.names, simulator.y_names), prior
    if prior is None:
        raise InputError("got a simulator without a prior; expected both; try prior=fk.Uniform(low, high)")
    draw_key, noise_key = keys_of(key, 2)
    made = simulate(simulator, np.asarray(prior.sample(count, key=draw_key), np.float64), key=noise_key)
    return _named(made.theta, made.y, prior.names, ()), prior


def _columns(part, names):
    """Numbers (n, k); the columns of a DataFrame in the order of `names`."""
    if names_in(part) is not None:
        return load_table(part, columns=names, min_rows=1).values
    numbers = as_numbers(part, "pairs")
    return numbers.reshape(len(numbers), -1)


def _named(x, y, names, y_names) -> Pairs:
    """Pairs with a name for every column; default x1, x2, ... for parameters and y1, y2, ... for data."""
    return Pairs(x, y, names or default_names(x.shape[1]), y_names or tuple(f"y{i + 1}" for i in range(y.shape[1])))
