"""Weighted proposals and Markov chains against densities that are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from flowknife.sampling import Weighted, annealed, metropolis, pareto_smoothed, tempered, whitening

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
def test_k_hat_is_the_shape_of_the_tail(shape):
    found = [pareto_smoothed(np.log(stats.genpareto(shape).rvs(20_000, random_state=RNG) + 1))[1] for _ in range(20)]
    assert np.mean(found) == pytest.approx(shape, abs=0.06)


def test_smoothing_moves_nothing_but_the_tail_and_keeps_the_order():
    raw = RNG.normal(size=1000) * 2
    smooth, _ = pareto_smoothed(raw)
    order = np.argsort(raw)
    tail = int(np.ceil(min(200, 3 * 1000**0.5)))
    np.testing.assert_array_equal(smooth[order[:-tail]], raw[order[:-tail]])
    assert np.all(np.diff(smooth[order]) >= -1e-12) and smooth.max() <= raw.max()
    assert pareto_smoothed(np.zeros(100))[1] == -np.inf  # equal weights: nothing could be better
    assert pareto_smoothed(np.zeros(4))[1] == np.inf  # too few to tell


@pytest.mark.parametrize(("scale", "trusted"), [(1.3, True), (0.4, False)])
def test_weights_of_proposals_wide_enough_give_the_evidence(scale, trusted):
    def propose(generator, m):
        x = scale * generator.normal(size=(m, 2))
        return x, np.log(7.0) + np.sum(stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=scale), axis=1)

    weighted = Weighted.gather(propose, np.random.default_rng(1), 4000, most=4000)
    assert (weighted.k_hat < 0.7) == trusted
    if trusted:
        error = weighted.log_evidence_error
        assert 0 < error < 0.05
        assert weighted.smoothed.log_evidence == pytest.approx(np.log(7.0), abs=4 * error)


def test_tempered_weights_keep_enough_draws():
    level = 50 * RNG.normal(size=500)
    weight = tempered(level, 40)
    assert weight.sum() == pytest.approx(1) and 1 / np.sum(weight**2) == pytest.approx(40, rel=0.05)
    np.testing.assert_allclose(tempered(np.zeros(10), 5), 0.1)


def test_metropolis_goes_on_from_bad_starts_to_the_density():
    covariance = np.array([[1.0, 0.8], [0.8, 2.0]])
    law = stats.multivariate_normal([1.0, -1.0], covariance)
    starts = RNG.normal(size=(4000, 2))
    _, factor = whitening(law.rvs(500, random_state=RNG), np.full(500, 1 / 500))
    drawn = metropolis(law.logpdf, starts, factor, np.random.default_rng(2))
    np.testing.assert_allclose(drawn.mean(axis=0), [1.0, -1.0], atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.15)


def test_annealing_finds_both_modes_and_their_shares():
    modes, width = np.array([[1.5, 0.0], [-1.5, 0.0]]), 0.1

    def log_likelihood(u):
        return logsumexp(
            [
                np.log(share) - 0.5 * np.sum((u - mode) ** 2, axis=1) / width**2
                for share, mode in zip((0.3, 0.7), modes, strict=True)
            ],
            axis=0,
        )

    generator = np.random.default_rng(0)
    drawn = annealed(generator.standard_normal((4000, 2)), log_likelihood, generator)
    right = drawn[:, 0] > 0
    assert right.mean() == pytest.approx(0.3, abs=0.04)
    for mode, own in zip(modes, (drawn[right], drawn[~right]), strict=True):
        np.testing.assert_allclose(own.mean(axis=0), mode / (1 + width**2), atol=0.02)
        np.testing.assert_allclose(own.std(axis=0), width / (1 + width**2) ** 0.5, rtol=0.1)


@pytest.mark.slow
def test_nuts_draws_from_prior_times_likelihood():
    import flowknife as fk
    from flowknife._types import as_key
    from flowknife.sampling import Target, posterior_chains

    prior = fk.Normal([0.0, 0.0], [1.0, 2.0])
    target = Target(prior, lambda x, y: -0.5 * jnp.sum((y - x) ** 2), jnp.asarray([1.0, 1.0]))
    start = jnp.zeros((4, 2)), as_key(0), 500
    drawn = np.asarray(posterior_chains(target, jnp.zeros(2), jnp.eye(2), *start)).reshape(-1, 2)
    np.testing.assert_allclose(drawn.mean(axis=0), [0.5, 0.8], atol=0.12)
    np.testing.assert_allclose(drawn.std(axis=0), [0.5**0.5, 0.8**0.5], atol=0.1)
