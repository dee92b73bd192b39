"""Inverse problems: both forms against exact posteriors, and everything one asks a posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import flowknife as fk
from flowknife.errors import InputError

DIM, NOISE = 3, 0.5
MATRIX = np.array([[1.0, 0.3], [-0.5, 1.0], [0.2, 0.4]])
QUICK = {"layers": 2, "width": 16, "depth": 1, "show_progress": False, "seed": 0}


def forward(theta):
    return theta @ MATRIX


def exact(y):
    """Mean and covariance of the linear-Gaussian posterior."""
    precision = np.eye(DIM) + MATRIX @ MATRIX.T / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ MATRIX @ np.asarray(y) / NOISE**2, covariance


@pytest.fixture(scope="module", params=["conditional", pytest.param("partitioned", marks=pytest.mark.slow)])
def linear(request):
    prior = fk.Normal(np.zeros(DIM), np.ones(DIM), names=["a", "b", "c"])
    more = 5 if request.param == "partitioned" else 1
    settings = {"form": request.param, "noise": NOISE, "num_simulations": 2000 * more, "train": {"steps": 300 * more}}
    return fk.invert(forward, prior, **settings, **QUICK)


def test_the_posterior_is_the_exact_one(linear):
    for y in ([0.5, -0.3], [-1.5, 2.0]):
        mean, covariance = exact(y)
        drawn = linear.sample(4000, y=y, key=1)
        spread = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(drawn.mean(0), mean, atol=0.12 * spread.max())
        np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.12 * spread.max() ** 2)
        theta = mean + np.random.default_rng(0).normal(size=(200, DIM)) @ np.linalg.cholesky(covariance).T
        difference = theta - mean
        log_prob = -0.5 * np.sum(difference @ np.linalg.inv(covariance) * difference, axis=1)
        log_prob -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        assert np.mean(np.abs(linear.log_prob(theta, y=y) - log_prob)) < 0.25


@pytest.mark.slow
def test_it_says_of_itself_that_it_is_calibrated(linear):
    assert all(check.passed for check in linear.check()), linear.check()
    assert linear.metrics["nll"] < linear.metrics["prior_nll"] - 0.5


def test_observations_are_never_mixed_up(linear):
    y = np.random.default_rng(1).normal(scale=2.0, size=(7, 2))
    together = linear.sample(1000, y=y, key=3)
    assert together.shape == (7, 1000, DIM)
    for rows, one in zip(together, y, strict=True):
        np.testing.assert_allclose(rows.mean(0), exact(one)[0], atol=0.15)
    theta = together[:, :5]
    each = np.stack([linear.log_prob(t, y=o) for t, o in zip(theta, y, strict=True)])
    np.testing.assert_allclose(linear.log_prob(theta, y=y), each, atol=1e-4)
    np.testing.assert_allclose(linear.log_prob(theta[:, 0], y=y), each[:, 0], atol=1e-4)
    assert linear.quantiles(y, n=1000, key=0).shape == (7, 3, DIM)
    assert linear.quantiles(y[0], (0.5,), n=100, key=0).shape == (1, DIM)


@pytest.mark.slow
def test_the_mode_of_a_gaussian_posterior_is_its_mean(linear):
    y = np.array([[0.5, -0.3], [-1.0, 1.0]])
    np.testing.assert_allclose(linear.map(y, key=0), [exact(one)[0] for one in y], atol=0.2)
    assert linear.map(y[0], key=0).shape == (DIM,)


def test_it_predicts_the_data(linear):
    theta = np.random.default_rng(2).normal(size=(4, 5, DIM))
    np.testing.assert_allclose(linear.predict(theta), forward(theta), atol=0.2)


def test_the_noise_has_its_exact_posterior_too(linear):
    if linear.config.form == "conditional":
        with pytest.raises(InputError, match="partitioned"):
            linear.sample_noise(5, y=[0.0, 0.0])
        return
    y = np.array([1.0, -1.5])
    theta, noise = linear.sample_noise(20_000, y=y, key=4)
    mean, covariance = exact(y)
    np.testing.assert_allclose(noise.mean(0), y - mean @ MATRIX, atol=0.05)
    np.testing.assert_allclose(np.cov(noise.T), MATRIX.T @ covariance @ MATRIX, atol=0.06)
    np.testing.assert_allclose(noise, y - forward(theta), atol=0.4)
    assert np.std(noise - (y - forward(theta))) < 0.3 * NOISE


def test_saved_and_loaded_it_draws_the_same(linear, tmp_path):
    again = fk.load(linear.save(tmp_path / "run"))
    y = [0.2, 0.1]
    np.testing.assert_array_equal(again.sample(5, y=y, key=0), linear.sample(5, y=y, key=0))
    assert again.names == ("a", "b", "c")
    assert again.metrics == linear.metrics
    assert again.config == linear.config


def test_data_that_the_simulator_cannot_make_are_flagged(linear):
    usual = forward(np.random.default_rng(5).normal(size=(200, DIM)))
    usual += NOISE * np.random.default_rng(6).normal(size=usual.shape)
    assert np.mean(linear.score(usual)["flag"]) < 0.12
    assert linear.score([[30.0, 0.0]])["flag"].all()
    # each number usual, together not: y1 and y2 of this simulator are hardly correlated but for their sum's limits
    assert linear.misspecification([9.0, -9.0]).p_value < 0.05


@pytest.mark.parametrize("form", [pytest.param("conditional", marks=pytest.mark.slow), "partitioned"])
def test_no_sample_leaves_the_prior(form):
    prior = fk.Uniform(low=[0.0, -1.0], high=[1.0, 3.0])
    posterior = fk.invert(
        lambda theta: theta[..., :1] + theta[..., 1:],
        prior,
        form=form,
        num_simulations=500,
        train={"steps": 20},
        **QUICK,
    )
    for temperature in (1.0, 3.0):
        drawn = posterior.sample(4000, y=[[0.0], [4.0], [100.0], [1e30]], key=0, temperature=temperature).reshape(-1, 2)
        assert np.all((drawn >= [0.0, -1.0]) & (drawn <= [1.0, 3.0]))


@pytest.mark.slow
def test_a_problem_brings_its_prior_noise_and_names(tmp_path):
    posterior = fk.invert(fk.problems.kinematics(noise=0.1), num_simulations=300, train={"steps": 20}, **QUICK)
    assert posterior.noise == pytest.approx((0.1, 0.1))
    assert len(posterior.names) == 4
    again = fk.load(posterior.save(tmp_path / "run"))
    theta = again.sample(3, y=[1.5, 0.0], key=0)
    np.testing.assert_allclose(again.predict(theta), fk.problems.kinematics().forward(theta), atol=1e-5)


@pytest.mark.slow
def test_randomness_of_another_kind_stays_in_the_simulation():
    posterior = fk.invert(fk.problems.two_moons(), num_simulations=300, train={"steps": 20}, **QUICK)
    assert posterior.noise == (0.0, 0.0)
    assert "resimulation" not in posterior.calibration


@pytest.mark.slow
def test_a_prior_is_estimated_from_pairs():
    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(-1, 2, 2000), rng.normal(3, 0.5, 2000), rng.lognormal(0, 1, 2000)], axis=1)
    posterior = fk.invert(pairs=(x, x[:, :2]), train={"steps": 5}, **QUICK)
    low, high = np.asarray(posterior.prior.low), np.asarray(posterior.prior.high)
    np.testing.assert_allclose(low, [-1, -np.inf, 0], atol=0.01)
    np.testing.assert_allclose(high, [2, np.inf, np.inf], atol=0.01)
    assert posterior.record.data.prior_estimated


@pytest.mark.slow
def test_long_observations_are_summarised():
    times = np.linspace(0, 1, 60)

    def curve(theta):
        return theta[..., :1] * np.sin(6 * times) + theta[..., 1:]

    prior = fk.Uniform(low=[-1, -1], high=[1, 1])
    posterior = fk.invert(curve, prior, noise=0.3, num_simulations=1500, train={"steps": 200}, **QUICK)
    truth = np.array([0.4, -0.2])
    drawn = posterior.sample(2000, y=curve(truth), key=0)
    np.testing.assert_allclose(drawn.mean(0), truth, atol=0.15)


@pytest.mark.slow
def test_failed_simulations_are_reported():
    def fragile(theta):
        return np.where(theta[..., :1] > 0.5, np.nan, theta)

    posterior = fk.invert(fragile, fk.Uniform([0, 0], [1, 1]), num_simulations=400, train={"steps": 5}, **QUICK)
    assert 150 < posterior.record.data.left_out < 250
    assert posterior.record.data.rows + posterior.record.data.left_out == 400


PRIOR = fk.Uniform(low=[-1, -1], high=[1, 1])
X = np.random.default_rng(0).uniform(-1, 1, (100, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither a simulator nor pairs"),
        ({"simulator": forward, "pairs": (X, X)}, "a simulator and pairs"),
        ({"simulator": forward}, "without a prior"),
        ({"simulator": 3, "prior": PRIOR}, "expected a function"),
        ({"simulator": forward, "prior": "uniform"}, "flowknife.priors"),
        ({"pairs": X}, "two arrays"),
        ({"pairs": (X[:1], X[:1])}, "1 usable pairs"),
        ({"pairs": (X, X[:50])}, "as many rows"),
        ({"pairs": (3 * X, X), "prior": PRIOR}, "outside of the prior"),
        ({"pairs": (X, X), "prior": fk.Uniform([0], [1])}, "expected as many"),
        ({"pairs": (X, X), "noise": -1.0}, "standard deviation"),
        ({"pairs": (X, X), "noise": (1.0, 1.0, 1.0)}, "one for each of 2"),
        ({"pairs": (X, X), "form": "partitioned"}, "fewer data than parameters"),
        ({"pairs": (X, X), "form": "both"}, "form"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        fk.invert(**arguments, **QUICK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1.0], "expected \\(2,\\)"),
        ([[1.0, 2.0, 3.0]], "expected \\(2,\\)"),
        ([1.0, np.nan], "nan as y2 of observation 1"),
        ([[1.0, 2.0], [np.inf, 0.0]], "inf as y1 of observation 2"),
        ("text", "expected numbers"),
    ],
)
def test_bad_observations_get_one_line(linear, y, message):
    with pytest.raises(InputError, match=message):
        linear.sample(3, y=y)


def test_bad_parameters_get_one_line(linear):
    with pytest.raises(InputError, match="a, b, c"):
        linear.log_prob(np.zeros((5, 2)), y=[0.0, 0.0])
    with pytest.raises(InputError, match="as many as the leading axis"):
        linear.log_prob(np.zeros((5, 3)), y=np.zeros((4, 2)))


@pytest.mark.slow
def test_the_density_of_a_posterior_integrates_to_one():
    """In two dimensions, by quadrature, for a prior with bounds."""
    prior = fk.Uniform(low=[0.0, 0.0], high=[1.0, 1.0])
    posterior = fk.invert(lambda t: t[..., :1] * t[..., 1:], prior, num_simulations=500, train={"steps": 100}, **QUICK)
    middle = (np.arange(200) + 0.5) / 200
    grid = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    assert np.mean(np.exp(posterior.log_prob(grid, y=[0.3]))) == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
def test_gradients_of_the_partitioned_density_reach_the_forward_model():
    problem = fk.problems.kinematics(noise=0.1)
    posterior = fk.invert(problem, form="partitioned", num_simulations=200, train={"steps": 5}, **QUICK)

    def loss(x):
        return jnp.sum(posterior.model.log_prob({"x": x, "noise": jnp.zeros((3, 2))}, y=jnp.ones((3, 2))))

    slope = jax.grad(loss)(jnp.full((3, 4), 0.1))
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.slow
def test_the_terms_beside_the_likelihood_train():
    problem = fk.problems.kinematics()
    settings = {"form": "partitioned", "num_simulations": 300, "train": {"steps": 30}}
    posterior = fk.invert(problem, matching=1.0, independence=1e-3, **settings, **QUICK)
    assert np.isfinite(posterior.metrics["nll"])


def test_independence_needs_a_partitioned_model():
    with pytest.raises(InputError, match="partitioned"):
        fk.invert(pairs=(X, X), independence=1.0, **QUICK)


@pytest.mark.slow
def test_few_pairs_choose_their_weight_decay():
    """Who leaves the length of training open gets several candidates; held-out pairs choose."""
    posterior = fk.invert(pairs=(X, X + 0.1), train={"minutes": 0.01}, **QUICK)
    assert posterior.used.train.weight_decay in (0.0, 1.0, 5.0)
    assert posterior.used.train.minutes == 0.01  # of all candidates


def test_an_observation_with_names_counts_by_name(linear):
    expected = linear.sample(3, y=[0.5, -1.0], key=0)
    for y in (pd.Series({"y2": -1.0, "y1": 0.5}), {"y2": -1.0, "y1": 0.5}, pd.Series([0.5, -1.0])):
        np.testing.assert_array_equal(linear.sample(3, y=y, key=0), expected)
    with pytest.raises(InputError, match="got numbers named u, v; expected one for each of y1, y2"):
        linear.sample(3, y=pd.Series({"u": 0.5, "v": -1.0}))
    with pytest.raises(InputError, match=r"got n=2\.5; expected at least 1 draw, as a whole number"):
        linear.sample(2.5, y=[0.5, -1.0])
