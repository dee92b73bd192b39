"""The optional terms of training: zero where they should be, positive elsewhere, and trainable."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife.bijections import LU, Chain
from flowknife.objectives import Independence, matching_data, matching_latent, nll
from tests.catalogue import quick_jit

N = 2000


def batch(mix=0.0):
    """Pairs x in R^3, y in R^2: y = x_1, x_2, and x_3 follows x_1 as far as `mix` says."""
    rows = np.random.default_rng(0).normal(size=(N, 3))
    rows[:, 2] = np.sqrt(1 - mix**2) * rows[:, 2] + mix * rows[:, 0]
    return {"x": jnp.asarray(rows), "y": jnp.asarray(rows[:, :2])}


def log_prior(mix):
    covariance = np.eye(3)
    covariance[0, 2] = covariance[2, 0] = mix
    return lambda x: jax.scipy.stats.multivariate_normal.logpdf(x, np.zeros(3), covariance)


@pytest.fixture
def model():
    """The identity: right for independent x, since then z = x_3 is normal and knows nothing of y."""
    right = [fk.Block("y", 2, fk.laws.Given(0.1)), fk.Block("z", 1)]
    return fk.INN([fk.Block("x", 3)], right, Chain([LU(3, identity=True)]))


def test_a_latent_that_knows_nothing_of_the_data_costs_nothing(model):
    right, wrong = (float(eqx.filter_jit(matching_latent)(model, batch(mix), jax.random.key(0))) for mix in (0.0, 0.9))
    assert right < 0.005
    assert wrong > 10 * right + 0.01


def test_independence_is_exact(model):
    """For a Gaussian: log q(z | y) - log N(z) is a quadratic form that can be written down."""
    right = quick_jit(Independence(log_prior(0.0)))(model, batch(0.0), jax.random.key(0))
    assert right == pytest.approx(0.0, abs=1e-8)
    found = float(quick_jit(Independence(log_prior(0.6)))(model, batch(0.6), jax.random.key(0)))
    rng, n = np.random.default_rng(1), 200_000
    a, z, anew = rng.normal(size=(3, n))
    z = 0.6 * a + 0.8 * z
    change = [-0.5 * ((v - 0.6 * a) / 0.8) ** 2 + 0.5 * v**2 for v in (z, anew)]
    assert found == pytest.approx(np.mean((change[0] - change[1]) ** 2), rel=0.1)


def test_samples_that_belong_to_their_data_cost_nothing(model):
    right, wrong = (float(eqx.filter_jit(matching_data)(model, batch(mix), jax.random.key(0))) for mix in (0.0, 0.9))
    assert 0 <= right < 0.005
    assert wrong > 3 * right


@pytest.mark.parametrize("term", [nll, matching_latent, matching_data, Independence(log_prior(0.5))])
def test_every_term_can_be_trained(model, term):
    slope = quick_jit(eqx.filter_grad(lambda m, rows: term(m, rows, jax.random.key(0))))(model, batch(0.5))
    leaves = jax.tree.leaves(eqx.filter(slope, eqx.is_inexact_array))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert any(np.any(leaf != 0) for leaf in leaves)
