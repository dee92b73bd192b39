"""Exact posterior draws for a known likelihood: importance sampling first, MCMC where it fails."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowknife._frame import plain_frame
from flowknife._types import Key, as_generator, as_key
from flowknife.errors import InputError
from flowknife.sampling import TRUSTED, Target, Weighted, metropolis, posterior_chains, tempered, whitening

_CHAINS = 4
_PROPOSALS = 20  # proposals for each draw, at most; chains are faster than more of them
_FEWEST = 1000  # smallest number of proposals
_TAIL = 6.0  # degrees of freedom of the Student t proposal for the evidence


class GaussianLikelihood(eqx.Module):
    """log N(y; f(x), noise^2) of parameters x, where f is the noise-free simulator; missing numbers (NaN) are left out.

    Args:
        forward: the simulator f, for rows or for one row.
        noise: standard deviations of the data.
    """

    forward: Callable[[Any], Any]
    noise: Array | np.ndarray

    def __call__(self, x: Any, y: Any) -> Any:
        module = np if isinstance(x, np.ndarray) else jnp
        missing = module.isnan(module.asarray(y))
        residual = module.where(missing, 0.0, y - module.asarray(self.forward(x))) / self.noise
        constant = module.sum(module.where(missing, 0.0, module.log(self.noise) + 0.5 * np.log(2 * np.pi)))
        return -0.5 * module.sum(residual**2, axis=-1) - constant


class OfOneRow(eqx.Module):
    """Adapts a function of rows to a single row."""

    function: Callable[..., Any]

    def __call__(self, x: Any, y: Any) -> Any:
        return self.function(x[None], y)[0]


@dataclass(frozen=True)
class Likelihood:
    """A known likelihood.

    Attributes:
        rows: `(x (n, d), y (m,)) -> (n,)`.
        one: the same for one row, differentiable by JAX; None if there is no such function.
    """

    rows: Callable[[np.ndarray, np.ndarray], np.ndarray]
    one: Callable[[Array, Array], Array] | None


@dataclass(frozen=True)
class Refined:
    """Draws of the exact posterior of one observation, and the method that produced them.

    Attributes:
        draws: shape (n, d).
        method: "weights", "NUTS" or "Metropolis".
        k_hat: Pareto shape of the tail of the importance weights, which are reliable up to 0.7.
        effective: effective sample size of the proposals.
        proposals: number of weighted draws of the flow.
    """

    draws: Float[np.ndarray, "n d"] = field(repr=False)
    method: str
    k_hat: float
    effective: float
    proposals: int

    @property
    def verdict(self) -> str:
        """A summary in one sentence."""
        share = f"k-hat {self.k_hat:.2f}, {self.effective:,.0f} of {self.proposals:,} draws effective"
        if self.method == "weights":
            return f"Resampled by weights ({share})."
        why = f"k-hat above {TRUSTED}" if self.k_hat > TRUSTED else "too few effective draws"
        return f"Drawn by {self.method}, started from the flow, since the weights are unreliable: {why} ({share})."


@dataclass(frozen=True)
class Evidence:
    """The evidence of one observation, p(y), the mean likelihood over the prior.

    Attributes:
        log_evidence: log p(y), in nats per unit of y.
        error: its standard error.
        k_hat: Pareto shape of the tail of the weights; up to 0.7 the estimate and its error are reliable.
    """

    log_evidence: float
    error: float
    k_hat: float


def known_likelihood(posterior: Any) -> Likelihood:
    """The likelihood of a posterior.

    Raises:
        InputError: it is not known.
    """
    own = posterior.log_likelihood
    if own is None and posterior.record.data.own_likelihood:
        raise InputError(
            "got a posterior that was loaded without the log_likelihood of its fit, which is not saved; expected it; "
            "try dataclasses.replace(posterior, log_likelihood=f)"
        )
    start = np.asarray(posterior.example_pairs["x"][0], np.float64)
    y = np.asarray(posterior.example_pairs["y"][0], np.float64)
    if own is not None:
        rows = partial(_checked, own)
        return Likelihood(rows, _differentiable([OfOneRow(own), own], rows, start, y))
    if posterior.forward is None or posterior.record.data.exact or not np.all(np.asarray(posterior.noise) > 0):
        raise InputError(
            "got a posterior whose likelihood is not known; expected a simulator without randomness and Gaussian noise "
            "of the data; try noise=..., or log_likelihood=f with f(x, y) -> log p(y | x) of parameters (n, d)"
        )
    noise = np.asarray(posterior.noise, np.float64)
    forward = posterior.forward
    rows = GaussianLikelihood(forward, noise)
    # and the wrapped simulator, of one row or of many
    plain = [forward, *filter(callable, getattr(forward, "args", ()))]
    single = jnp.asarray(noise, float)
    ones = [make(GaussianLikelihood(each, single)) for each in plain for make in (lambda f: f, OfOneRow)]
    return Likelihood(rows, _differentiable(ones, rows, start, y))


def require_likelihood(function: Any) -> None:
    """Refuse anything but a function of parameters and an observation.

    Raises:
        InputError: it is none, or takes other arguments.
    """
    wanted = "expected a function f(x, y) -> log p(y | x) of parameters (n, d) and one observation (m,)"
    if not callable(function):
        raise InputError(f"got {type(function).__name__} as log_likelihood; {wanted}")
    try:
        inspect.signature(function).bind(None, None)
    except ValueError:  # a function whose arguments are unknown
        return
    except TypeError as error:
        raise InputError(f"got a log_likelihood that cannot be called with two arguments ({error}); {wanted}") from None


def _checked(function, x, y):
    found = np.asarray(function(x, y), np.float64)
    if found.shape != x.shape[:1]:
        raise InputError(
            f"got log-likelihoods of shape {found.shape} for parameters of shape {x.shape} and an observation of shape "
            f"{y.shape}; expected ({len(x)},), one for each row"
        )
    return found


def _differentiable(candidates, rows, x, y):
    """The first of these functions of one row that JAX can differentiate and that agrees with `rows`."""
    expected = float(rows(x[None], y)[0])
    for function in candidates:
        try:
            value, slope = jax.jit(jax.value_and_grad(function))(jnp.asarray(x, float), jnp.asarray(y, float))
        except Exception:  # a function that was not written for JAX may raise anything
            continue
        if np.isclose(value, expected, rtol=1e-2, atol=1e-1) and np.isfinite(slope).all():
            return function
    return None


def refine(posterior: Any, y: np.ndarray, n: int, key: Key, report: Callable[[str], None]) -> Refined:
    """Draws of the exact posterior of one observation (m,); see `Posterior.refine`.

    `report` is called with a short text on the progress.
    """
    likelihood = _reported(posterior.likelihood, report)
    generator = as_generator(key)
    propose = partial(_propose, posterior, likelihood, y)
    weighted = Weighted.proposed(propose, generator, max(4 * n, _FEWEST))
    # with as many proposals no draw is repeated, and a classifier would find repeated draws
    needed = int(n * weighted.smoothed.weight.max() * weighted.count) if weighted.k_hat <= TRUSTED else 0
    enough = weighted.k_hat <= TRUSTED and (needed <= _PROPOSALS * n or not _has_nuts(likelihood))
    more = min(needed, _PROPOSALS * n) - weighted.count
    if enough and more > 0:
        weighted = weighted.joined(Weighted.proposed(propose, generator, more))
    found = {"k_hat": weighted.k_hat, "effective": weighted.effective, "proposals": weighted.count}
    if enough and weighted.k_hat <= TRUSTED and weighted.effective >= n / 2:
        return Refined(weighted.smoothed.draw(generator, n), "weights", **found)
    report("running Markov chains")
    method, draws = _chains(posterior, likelihood, y, weighted, generator, n)
    return Refined(draws, method, **found)


def _reported(likelihood, report):
    """A copy of the likelihood that reports its number of evaluations so far."""
    total = 0

    def rows(x, y):
        nonlocal total
        found = likelihood.rows(x, y)
        total += len(x)
        report(f"{total:,} evaluations of the likelihood")
        return found

    return replace(likelihood, rows=rows)


def weighed(posterior: Any, y: np.ndarray, n: int, key: Key) -> Weighted:
    """`n` draws of a posterior with their weights."""
    propose = partial(_propose, posterior, posterior.likelihood, y)
    return Weighted.gather(propose, as_generator(key), n, most=n)


def _propose(posterior, likelihood, y, generator, count):
    x = posterior.sample(count, y=y, key=int(generator.integers(2**32)))
    return x, _log_joint(posterior, likelihood, x, y) - posterior.log_prob(x, y)


def _log_joint(posterior, likelihood, x, y):
    found = np.asarray(likelihood.rows(x, y), np.float64) + np.asarray(posterior.prior.log_prob(x), np.float64)
    return np.where(np.isnan(found), -np.inf, found)


def _standard(posterior, x):
    """Parameters as coordinates u in which the prior is N(0, I)."""
    prior = posterior.prior
    frame = prior.frame or plain_frame(prior.dim)
    return np.asarray(prior.inner.bijection.encode(jnp.asarray(frame.to_model(x)))[0], np.float64)


def _chains(posterior, likelihood, y, weighted, generator, n):
    """Run Markov chains from weighted proposals; returns the method and n draws."""
    if not len(weighted.theta):
        raise InputError(
            "got an observation that no draw of the posterior explains; expected one that the simulator can produce; "
            "see misspecification(y)"
        )
    u = _standard(posterior, weighted.theta)
    usable = np.isfinite(u).all(axis=1)
    u, level = u[usable], weighted.log_weight[usable]
    weight = tempered(level, enough=min(10 * u.shape[1], len(u) / 4))
    centre, factor = whitening(u, weight)
    target = Target(posterior.prior, likelihood.one, jnp.asarray(y, float))
    if _has_nuts(likelihood):
        starts = u[generator.choice(len(u), _CHAINS, p=weight)]
        drawn = posterior_chains(
            target,
            *(jnp.asarray(part, float) for part in (centre, factor, starts)),
            as_key(int(generator.integers(2**32))),
            -(-n // _CHAINS),
        )
        # shuffled, since otherwise the first rows would come from one chain
        rows = np.asarray(drawn, np.float64).swapaxes(0, 1)
        return "NUTS", rows.reshape(-1, rows.shape[-1])[:n]

    def log_density(u):
        x = np.asarray(jax.vmap(target.parameters)(jnp.asarray(u, float)), np.float64)
        return np.asarray(likelihood.rows(x, y), np.float64) - 0.5 * np.sum(u**2, axis=-1)

    moved = metropolis(log_density, u[generator.choice(len(u), n, p=weight)], factor, generator)
    return "Metropolis", np.asarray(jax.vmap(target.parameters)(jnp.asarray(moved, float)), np.float64)


def _has_nuts(likelihood):
    """Whether the no-U-turn sampler can be used: there is a gradient, and blackjax."""
    if likelihood.one is None:
        return False
    try:
        import blackjax  # noqa: F401
    except ImportError:
        return False
    return True


def evidence(posterior: Any, y: np.ndarray, n: int, key: Key) -> Evidence:
    """The evidence of one observation (m,); see `Posterior.evidence`."""
    likelihood, generator = posterior.likelihood, as_generator(key)
    weighted = weighed(posterior, y, n, key)
    if weighted.k_hat > TRUSTED and len(weighted.theta):
        _, draws = _chains(posterior, likelihood, y, weighted, generator, max(n // 4, _FEWEST))
        propose = partial(_propose_mixed, posterior, likelihood, y, _standard(posterior, draws))
        weighted = Weighted.gather(propose, generator, n, most=n)
    if not len(weighted.theta):
        return Evidence(-np.inf, np.inf, np.inf)
    smoothed = weighted.smoothed
    log_evidence = smoothed.log_evidence + posterior.record.data.log_prior_mass
    return Evidence(log_evidence, smoothed.log_evidence_error, weighted.k_hat)


def _propose_mixed(posterior, likelihood, y, drawn, generator, count):
    """Proposals: half from the flow, half from a Student t fitted to MCMC draws, weighted by the mixture density."""
    prior, dim = posterior.prior, drawn.shape[1]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    centre, factor = whitening(drawn, np.full(len(drawn), 1 / len(drawn)))
    factor = 1.1 * factor
    half = count // 2
    v = (
        generator.standard_normal((count - half, dim))
        * np.sqrt(_TAIL / generator.chisquare(_TAIL, count - half))[:, None]
    )
    frame = prior.frame or plain_frame(prior.dim)
    others = frame.from_model(np.asarray(prior.inner.bijection.decode(jnp.asarray(centre + v @ factor.T, float))[0]))
    x = np.concatenate([posterior.sample(max(half, 1), y=y, key=int(generator.integers(2**32))), others])
    u, log_det = prior.inner.bijection.encode(jnp.asarray(frame.to_model(x)))
    log_t = _log_student(np.asarray(u, np.float64), centre, factor) + np.asarray(log_det, np.float64) + frame.log_det
    mixture = np.logaddexp(np.asarray(posterior.log_prob(x, y), np.float64), log_t) - np.log(2)
    return x, _log_joint(posterior, likelihood, x, y) - mixture


def _log_student(u, centre, factor):
    from scipy.stats import multivariate_t

    return multivariate_t(centre, factor @ factor.T, df=_TAIL).logpdf(u)
