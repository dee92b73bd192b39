"""Priors: each is exactly N(0, I) behind its bijection, has the density it says, and is never left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.bijections import Affine, Concatenate, HistogramToNormal, Reshape, TruncatedToNormal
from flowknife.errors import InputError
from flowknife.priors import (
    GaussianProcess,
    Histogram,
    LogNormal,
    LogUniform,
    Normal,
    Prior,
    Product,
    Truncated,
    Uniform,
)
from tests.catalogue import quick_jit

POISSON = stats.poisson(15)


def truncated(mean, scale, low, high):
    return stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale)


# one parameter each, and the same law from scipy
SINGLE = {
    "Uniform": (lambda: Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "Uniform, far from zero": (lambda: Uniform(1000.0, 1000.5), stats.uniform(1000.0, 0.5)),
    "Normal": (lambda: Normal(2.0, 0.5), stats.norm(2.0, 0.5)),
    "LogNormal": (lambda: LogNormal(-1.0, 0.7), stats.lognorm(0.7, scale=np.exp(-1.0))),
    "LogUniform": (lambda: LogUniform(0.5, 40.0), stats.loguniform(0.5, 40.0)),
    "Truncated": (lambda: Truncated(0.5, 1.0, -0.2, 1.0), truncated(0.5, 1.0, -0.2, 1.0)),
    "Truncated below": (lambda: Truncated(0.0, 2.0, 1.0, np.inf), truncated(0.0, 2.0, 1.0, np.inf)),
    "Truncated above": (lambda: Truncated(-3.0, 0.5, -np.inf, -3.0), truncated(-3.0, 0.5, -np.inf, -3.0)),
    "Truncated far above": (lambda: Truncated(0.0, 1.0, 6.0, 8.0), truncated(0.0, 1.0, 6.0, 8.0)),
    "Truncated far below": (lambda: Truncated(0.0, 1.0, -9.0, -7.0), truncated(0.0, 1.0, -9.0, -7.0)),
    "Truncated nowhere": (lambda: Truncated(1.0, 2.0, -np.inf, np.inf), stats.norm(1.0, 2.0)),
    "Histogram": (
        lambda: Histogram([-1.0, 0.0, 0.5, 4.0], [2.0, 5.0, 1.0]),
        stats.rv_histogram((np.array([2.0, 5.0, 1.0]), np.array([-1.0, 0.0, 0.5, 4.0])), density=False),
    ),
    "Histogram of a Poisson": (
        lambda: Histogram(np.arange(42) - 0.5, POISSON.pmf(np.arange(41))),
        stats.rv_histogram((POISSON.pmf(np.arange(41)), np.arange(42) - 0.5), density=False),
    ),
}
SEVERAL = {
    "Uniform": lambda: Uniform([-2.0, 0.1, 1e6], [2.0, 0.3, 1e6 + 8], names=["a", "b", "c"], units=["m", "s", ""]),
    "Normal": lambda: Normal([0.0, 1.0], 2.0),
    "LogNormal": lambda: LogNormal(0.0, [1.0, 0.1]),
    "LogUniform": lambda: LogUniform([1e-9, 0.5], [1e9, 0.7]),
    "Truncated": lambda: Truncated(0.0, 1.0, [-1.0, 0.1, -np.inf], [0.7, np.inf, np.inf]),
    "GaussianProcess": lambda: GaussianProcess(np.linspace(0, 3, 7), np.arange(7.0), 0.8, 0.6),
    "GaussianProcess, log": lambda: GaussianProcess(np.linspace(0, 3, 7), 0.5, 0.3, 0.6, log=True, kernel="matern"),
    "Histogram": lambda: SINGLE["Histogram of a Poisson"][0](),
    "Product": lambda: Product(
        {"angle": Uniform(0.0, 90.0), "speed": Histogram([0.0, 1.0, 3.0], [1, 2]), "depth": LogNormal([0.0, 1.0], 0.5)}
    ),
}


@pytest.fixture(params=SINGLE)
def single(request, float64):
    make, law = SINGLE[request.param]
    return make(), law


@pytest.fixture(params=SEVERAL)
def prior(request):
    return SEVERAL[request.param]()


@quick_jit
def decode(prior, u):
    return prior.bijection.decode(u)


@quick_jit
def encode(prior, theta):
    return prior.bijection.encode(theta)


@quick_jit
def log_prob(prior, theta):
    return prior.log_prob(theta)


# -- against scipy ----------------------------------------------------------------------------------------------------


def test_log_prob_is_that_of_scipy(single):
    prior, law = single
    theta = law.ppf(np.linspace(0.001, 0.999, 97))
    np.testing.assert_allclose(log_prob(prior, theta[:, None]), np.log(law.pdf(theta)), rtol=1e-8, atol=1e-8)


def test_the_bijection_is_the_normal_score(single):
    prior, law = single
    p = np.array([1e-6, 1e-3, 0.2, 0.5, 0.8, 1 - 1e-3])
    u = stats.norm.ppf(p)[:, None]
    theta, _ = decode(prior, jnp.asarray(u))
    np.testing.assert_allclose(theta[:, 0], law.ppf(p), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(encode(prior, theta)[0], u, atol=1e-8)


def test_moments_are_those_of_scipy(single):
    prior, law = single
    np.testing.assert_allclose([prior.mean[0], prior.std[0]], [law.mean(), law.std()], rtol=1e-7)


def test_the_density_integrates_to_one(single):
    prior, law = single
    ends = [max(float(prior.low[0]), law.ppf(1e-13)), min(float(prior.high[0]), law.ppf(1 - 1e-13))]
    cells = np.linspace(*ends, 400_001)
    middle = 0.5 * (cells[1:] + cells[:-1])
    mass = np.sum(np.exp(log_prob(prior, middle[:, None])) * np.diff(cells))
    assert mass == pytest.approx(1, abs=1e-5)  # the midpoint rule may misplace half a cell at each edge of a bin


@pytest.mark.parametrize("name", SINGLE)
def test_draws_follow_the_law(name):
    make, law = SINGLE[name]
    theta = np.asarray(make().sample(20_000, key=3), np.float64)[:, 0]
    assert stats.kstest(theta, law.cdf).pvalue > 1e-3


# -- of every prior ---------------------------------------------------------------------------------------------------


def test_no_number_decodes_to_the_outside(prior):
    u = np.random.default_rng(0).standard_normal((1_000_000 // prior.dim, prior.dim)).astype(np.float32)
    theta = np.asarray(decode(prior, jnp.asarray(u))[0])
    far = np.float32([5.0, 6.0, 9.0, 20.0, 1e4, 1e30, 1e37])
    far = np.concatenate([far, -far])[:, None] * np.ones((1, prior.dim), np.float32)
    theta = np.concatenate([theta, decode(prior, jnp.asarray(far))[0]])
    assert np.all((theta >= prior.low) & (theta <= prior.high))


@pytest.mark.parametrize("name", [name for name in SEVERAL if "Gaussian" not in name])
def test_infinity_decodes_to_the_ends(name):
    prior = SEVERAL[name]()
    for sign in (-1, 1):
        theta = np.asarray(decode(prior, jnp.full(prior.dim, sign * np.inf))[0])
        assert np.all((theta >= prior.low) & (theta <= prior.high))


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (-0.3, -0.1), (1 / 3, 2 / 3), (1e6 + 0.01, 1e6 + 7.3)])
def test_bounds_that_are_no_single_precision_numbers_hold_in_double(low, high):
    for prior in (Uniform(low, high), Truncated(low, high - low, low, high)):
        ends = np.asarray(prior.inner.bijection.decode(jnp.asarray([[-30.0], [-5.0], [5.0], [30.0]]))[0], np.float64)
        ends = ends if prior.frame is None else prior.frame.from_model(ends)
        assert low <= ends.min() and ends.max() <= high
        assert np.all(np.isfinite(prior.log_prob([[low], [high]])))


def test_outside_of_the_support_the_density_is_zero(prior):
    inside = np.array(prior.sample(3, key=0))
    assert np.all(np.isfinite(log_prob(prior, inside)))
    for end, sign in ((prior.low, -1), (prior.high, 1)):
        for i in np.flatnonzero(np.isfinite(end)):
            outside = inside.copy()
            outside[:, i] = end[i] + sign * max(np.spacing(np.float32(np.abs(end[i]))), np.float32(1e-30))
            assert np.all(np.isneginf(log_prob(prior, outside)))


def test_gradients_are_finite_inside_outside_and_at_the_ends(prior):
    theta = prior.sample(key=0)
    points = [theta, theta - 1e3, theta + 1e3, jnp.clip(prior.low, -1e6, 1e6), jnp.clip(prior.high, -1e6, 1e6)]
    by_theta = jax.jit(jax.vmap(jax.grad(prior.log_prob)))(jnp.stack(points))
    u = np.outer([-9.0, -1.0, 0.0, 1.0, 9.0], np.ones(prior.dim)).astype(np.float32)
    by_u = jax.jit(jax.vmap(jax.grad(lambda u: jnp.sum(prior.bijection.decode(u)[0]))))(u)
    assert np.all(np.isfinite(by_theta)) and np.all(np.isfinite(by_u))


def test_round_trips(prior):
    u = jax.random.normal(jax.random.key(1), (500, prior.dim))
    theta, log_det = decode(prior, u)
    again, log_det_again = encode(prior, theta)
    # theta is rounded: near a bound, or far from zero, that moves u
    error = 2e-4 + 20 * np.spacing(np.abs(theta)).max(axis=1) * np.exp(np.abs(log_det).max())
    assert np.all(np.abs(again - u).max(axis=1) < error)
    np.testing.assert_allclose(decode(prior, again)[0], theta, rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(log_det_again - log_det) < 10 * error)


def test_moments_agree_with_draws(prior):
    theta = np.asarray(prior.sample(40_000, key=0), np.float64)
    assert theta.shape == (40_000, prior.dim)
    errors = np.abs(theta.mean(axis=0) - prior.mean) / prior.std
    assert errors.max() < 5 / np.sqrt(40_000)
    np.testing.assert_allclose(theta.std(axis=0) / prior.std, 1, atol=0.05)


def test_shapes_keys_and_names(prior):
    np.testing.assert_array_equal(prior.sample(3, key=5), prior.sample((3,), key=jax.random.key(5)))
    assert prior.sample(key=0).shape == (prior.dim,) and prior.sample((2, 3), key=None).shape == (2, 3, prior.dim)
    assert prior.log_prob(prior.sample((2, 3), key=0)).shape == (2, 3)
    assert len(prior.names) == len(set(prior.names)) == len(prior.units) == prior.dim
    assert prior.low.shape == prior.high.shape == prior.mean.shape == prior.std.shape == (prior.dim,)


# -- of one prior -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["squared exponential", "matern"])
def test_a_gaussian_process_has_its_covariance(kernel, float64):
    points = np.random.default_rng(0).uniform(0, 2, (6, 2))
    prior = GaussianProcess(points, 1.5, 0.7, 0.9, kernel=kernel, jitter=1e-3)
    r = np.linalg.norm(points[:, None] - points[None], axis=-1) / 0.9
    k = {"squared exponential": np.exp(-(r**2) / 2), "matern": (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r)}
    law = stats.multivariate_normal(np.full(6, 1.5), 0.49 * (k[kernel] + 1e-3 * np.eye(6)))
    theta = law.rvs(20, random_state=0)
    np.testing.assert_allclose(prior.log_prob(theta), law.logpdf(theta), rtol=1e-9)
    positive = GaussianProcess(points, 1.5, 0.7, 0.9, kernel=kernel, jitter=1e-3, log=True)
    np.testing.assert_allclose(positive.log_prob(np.exp(theta)), law.logpdf(theta) - theta.sum(axis=1), rtol=1e-9)
    jacobian = jax.jacobian(lambda u: prior.bijection.decode(u)[0])(jnp.zeros(6))
    np.testing.assert_allclose(jacobian @ jacobian.T, law.cov, atol=1e-9)
    assert np.all(np.diff(np.linalg.norm(jacobian, axis=0)) <= 1e-12)  # the largest component first


def test_a_product_is_the_sum_of_its_parts():
    a, b = Uniform(0.0, 2.0), Normal([1.0, 2.0], [0.1, 0.2])
    both = Product({"a": a, "b": b})
    theta = both.sample(50, key=0)
    np.testing.assert_allclose(both.log_prob(theta), a.log_prob(theta[:, :1]) + b.log_prob(theta[:, 1:]), rtol=1e-5)


def test_a_product_names_its_components():
    prior = Product(
        {
            "position": Uniform([0.0, 0.0], [1.0, 1.0], names=["x", "y"], units=["m", "m"]),
            "speed": LogNormal(0.0, 1.0, units=["m/s"]),
            "depth": Normal([0.0, 0.0], 1.0),
        }
    )
    assert prior.names == ("x", "y", "speed", "depth1", "depth2")
    assert prior.units == ("m", "m", "m/s", "", "")


def test_the_top_level_names_are_the_priors():
    assert (fk.Uniform, fk.Normal, fk.LogNormal, fk.LogUniform) == (Uniform, Normal, LogNormal, LogUniform)


def test_a_prior_of_ones_own():
    prior = Prior(Affine([1.0, 2.0], 2.0))
    law = stats.norm([1.0, 2.0], 2.0)
    np.testing.assert_allclose(prior.log_prob([0.0, 1.0]), law.logpdf([0.0, 1.0]).sum(), rtol=1e-6)
    assert prior.mean is None and prior.std is None and Product({"a": prior}).mean is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform([0.0, 1.0], [1.0, 1.0]), "low < high"),
        (lambda: Uniform(0.0, np.inf), "finite"),
        (lambda: Uniform([0.0, 1.0], [1.0, 2.0, 3.0]), "one number for each parameter"),
        (lambda: Uniform(np.zeros((2, 2)), 1.0), "one number for each parameter"),
        (lambda: Uniform([], []), "one number for each parameter"),
        (lambda: Normal(0.0, 0.0), "positive scales"),
        (lambda: LogNormal(np.nan, 1.0), "finite"),
        (lambda: LogUniform(0.0, 1.0), "0 < low < high"),
        (lambda: LogUniform(1.0, 1e200), "other units"),
        (lambda: Truncated(0.0, -1.0, 0.0, 1.0), "positive scales"),
        (lambda: Truncated(0.0, 1.0, 2.0, 1.0), "low < high"),
        (lambda: Truncated(0.0, 1.0, 30.0, 31.0), "nearer to the bounds"),
        (lambda: Histogram([0.0, 1.0, 1.0], [1.0, 1.0]), "increas"),
        (lambda: Histogram([0.0, 1.0, 2.0], [1.0, 0.0]), "merging bins"),
        (lambda: Histogram([0.0, 1.0], [1.0, 1.0]), "one edge more"),
        (lambda: Histogram([[0.0, 1.0]], [[1.0]]), "vectors"),
        (lambda: GaussianProcess([0.0, 1.0], 0.0, 1.0, -1.0), "positive numbers"),
        (lambda: GaussianProcess([0.0, 1.0], [0.0, 0.0, 0.0], 1.0, 1.0), "mean of shape"),
        (lambda: GaussianProcess([0.0, 1.0], 0.0, 1.0, 1.0, kernel="cubic"), "squared exponential"),
        (lambda: Product({}), "priors by name"),
        (lambda: Product([Normal(0.0, 1.0), Normal(0.0, 1.0)]), "got list .* priors by name"),
        (lambda: Product(Normal(0.0, 1.0)), "got Prior .* priors by name"),
        (lambda: Product(None), "priors by name"),
        (lambda: Product({"a": 3.0}), "'a' of type float"),
        (lambda: Product({"a": stats.norm(0, 1)}), "'a' of type rv_"),
        (lambda: Product({"a": Normal}), "'a' of type"),
        (lambda: Product({1: Normal(0.0, 1.0)}), "the part 1"),
        (lambda: Prior(None), "NoneType as the bijection"),
        (lambda: Prior(lambda x: x), "function as the bijection"),
        (lambda: Prior(Affine([1.0], 2.0), low=[1.0, 2.0]), "bounds or moments of shape"),
        (lambda: Prior(Affine([1.0], 2.0), low="a"), "text"),
        (lambda: Uniform("0", "1"), "text as low"),
        (lambda: Uniform(None, 1.0), "finite"),
        (lambda: Uniform(0.0, 1j), "complex numbers as high"),
        (lambda: Uniform([[1], [1, 2]], 3.0), "list as low"),
        (lambda: Uniform({"a": 1}, 2.0), "dict as low"),
        (lambda: Uniform(np.ma.array([0.0, 1.0], mask=[0, 1]), 3.0), "finite"),
        (lambda: Normal([0.0, 0.0], np.eye(2)), "scale of shape"),
        (lambda: Normal([0.0, 0.0], 1.0, units="km"), "a text for each"),
        (lambda: Normal([0.0, 0.0], 1.0, names=[1, 2]), "a text for each"),
        (lambda: Normal(0.0, 1.0, names=3), "a text for each"),
        (lambda: LogNormal(1000.0, 1.0), "has to be a number"),
        (lambda: Truncated("a", 1.0, 0.0, 1.0), "text as mean"),
        (lambda: Histogram("ab", [1.0]), "text as edges"),
        (lambda: GaussianProcess([], 0.0, 1.0, 1.0), "points of shape"),
        (lambda: GaussianProcess([0.0, np.nan], 0.0, 1.0, 1.0), "finite"),
        (lambda: GaussianProcess([0.0, 1.0], "a", 1.0, 1.0), "text as mean"),
        (lambda: GaussianProcess([0.0, 1.0], 0.0, [1.0, 1.0], 1.0), "positive numbers"),
        (lambda: GaussianProcess([0.0, 1.0], 0.0, "1", 1.0), "text as scale"),
        (lambda: GaussianProcess([0.0, 1.0], 0.0, 1.0, 1.0, kernel=[1]), "squared exponential"),
        (lambda: Normal(0.0, 1.0).log_prob("a"), "text"),
        (lambda: Normal(0.0, 1.0).log_prob(None), "x1"),
        (lambda: Normal(0.0, 1.0).log_prob([1j]), "complex"),
        (lambda: Normal(0.0, 1.0).sample(-1, key=0), "whole number"),
        (lambda: Normal(0.0, 1.0).sample(2.5, key=0), "whole number"),
        (lambda: Normal(0.0, 1.0).sample("a", key=0), "whole number"),
        (lambda: fk.priors.likeliest(np.zeros((0, 2))), "finite numbers of shape"),
        (lambda: Product({"x1": Normal(0.0, 1.0), "x": Normal([0.0, 0.0], 1.0)}), "name of its own"),
        (lambda: Normal(0.0, 1.0, names=["a", "b"]), "name"),
        (lambda: Normal(0.0, 1.0, units=[]), "unit"),
        (lambda: Prior(Reshape((2, 2), (2, 2))), "expected \\(d,\\)"),
        (lambda: Normal([0.0, 1.0], 1.0).log_prob([[1.0]]), "x1, x2"),
        (lambda: Concatenate([]), "at least one"),
        (lambda: HistogramToNormal(0.0, 1.0), "one edge more"),
        (lambda: TruncatedToNormal(np.nan, 1.0, 0.0, 1.0), "finite"),
    ],
)
def test_what_cannot_be_a_prior_is_told(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_edges_of_the_caller_are_left_alone():
    edges = np.array([0.1, 0.2, 0.3])
    Histogram(edges, [1.0, 1.0])
    np.testing.assert_array_equal(edges, [0.1, 0.2, 0.3])


def test_a_prior_prints_the_bounds_of_its_components():
    assert repr(Uniform([1, 0], [3, 2], names=["mass", "speed"])) == ("Prior(mass from 1 to 3, speed from 0 to 2)")
    assert repr(Normal([0.0], [1.0], names=["angle"])) == "Prior(angle)"
    assert repr(LogNormal([0.0], [1.0], names=["mass"])) == "Prior(mass from 0)"
