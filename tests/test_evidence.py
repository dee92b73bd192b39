"""Learned likelihoods and compared simulators against exact answers."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.errors import InputError

RNG = np.random.default_rng(0)
NOISE = 0.5


@pytest.fixture(scope="module")
def learned():
    """y = x + noise; training starts at the linear-Gaussian answer."""
    x = RNG.normal(size=(2000, 2))
    y = x + NOISE * RNG.normal(size=x.shape)
    settings = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 40}, "key": 0, "show_progress": False}
    return fk.likelihood(pairs=(x, y), prior=fk.Normal([0, 0], [1, 1]), **settings)


def test_the_likelihood_is_the_density_with_the_ends_exchanged(learned):
    x = RNG.normal(size=(100, 2))
    y = x + NOISE * RNG.normal(size=x.shape)
    exact = stats.norm(x, NOISE).logpdf(y).sum(axis=1)
    assert np.quantile(np.abs(learned.log_prob(y, x) - exact), 0.9) < 0.4
    assert abs(np.mean(learned.log_prob(y, x) - exact)) < 0.1
    np.testing.assert_allclose(learned(x, y[0]), learned.log_prob(np.broadcast_to(y[0], y.shape), x))
    row = learned.row(jnp.asarray(x[0], jnp.float32), jnp.asarray(y[0], jnp.float32))
    np.testing.assert_allclose(row, learned.log_prob(y[:1], x[:1])[0], atol=1e-3)
    drawn = learned.simulate(np.zeros((2000, 2)), key=0)
    np.testing.assert_allclose(drawn.std(axis=0), NOISE, rtol=0.15)


@pytest.mark.slow
def test_it_stands_in_for_a_likelihood_that_is_not_known(learned):
    x = RNG.normal(size=(800, 2))
    pairs = x, x + NOISE * RNG.normal(size=x.shape)
    quick = {"layers": 1, "width": 8, "depth": 1, "features": 2, "train": {"steps": 20}, "show_progress": False}
    posterior = fk.invert(pairs=pairs, prior=learned.prior, log_likelihood=learned, key=0, **quick)
    y = np.array([0.5, -0.3])
    drawn = posterior.sample(1000, y=y, key=0, refine=True)
    np.testing.assert_allclose(drawn.mean(axis=0), y / (1 + NOISE**2), atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), NOISE / (1 + NOISE**2) ** 0.5, rtol=0.15)


@pytest.mark.slow
def test_several_observations_of_the_same_parameters_add_up(learned):
    y = np.array([[1.0, 1.0], [0.5, 1.2]])
    drawn = learned.posterior(y, 1000, key=0)
    precision = 1 + 2 / NOISE**2
    np.testing.assert_allclose(drawn.mean(axis=0), y.sum(axis=0) / NOISE**2 / precision, atol=0.08)
    np.testing.assert_allclose(drawn.std(axis=0), precision**-0.5, rtol=0.15)


def test_names_of_parameters_and_data_count():
    pandas, generator = pytest.importorskip("pandas"), np.random.default_rng(1)
    x = generator.normal(size=(400, 2))
    y = x * [1.0, 3.0] + NOISE * generator.normal(size=x.shape)
    x, y = pandas.DataFrame(x, columns=["p", "q"]), pandas.DataFrame(y, columns=["u", "v"])
    prior = fk.Normal([0, 0], [1, 1], names=["p", "q"])
    settings = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 3}, "key": 0, "show_progress": False}
    found, other = (fk.likelihood(pairs=pairs, prior=prior, **settings) for pairs in ((x, y), (x[["q", "p"]], y)))
    one = found(x[:3], [0.5, -2.0])
    for same in (found(x[["q", "p"]][:3], {"v": -2.0, "u": 0.5}), found(x.to_numpy()[:3], [0.5, -2.0])):
        np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(other(x[:3], [0.5, -2.0]), one, rtol=1e-4)
    np.testing.assert_array_equal(found.log_prob(y[["v", "u"]][:3], x[:3]), found.log_prob(y.to_numpy()[:3], x[:3]))
    for wrong in ([0.5], [0.5, -2.0, 7.0], y.rename(columns={"u": "w"})):
        with pytest.raises(InputError, match="expected"):
            found.posterior(wrong)
    with pytest.raises(InputError, match="a prior of 1 parameters"):
        found.posterior([0.5, -2.0], prior=fk.Normal([0], [1]))
    with pytest.raises(InputError, match="one at a time"):
        found(x[:3], y[:2])


@pytest.mark.slow
def test_columns_of_compared_data_are_matched_by_name():
    pandas, generator = pytest.importorskip("pandas"), np.random.default_rng(1)
    wide, high = (
        pandas.DataFrame(generator.normal(size=(300, 2)) * scale, columns=["u", "v"]) for scale in ([3, 1], [1, 3])
    )
    settings = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 3}, "key": 0, "show_progress": False}
    found, other = (fk.compare({"wide": wide, "high": rows}, **settings) for rows in (high, high[["v", "u"]]))
    y = pandas.DataFrame({"u": [0.0], "v": [4.0]})
    level = found.odds(y).probability
    assert level[0, 1] > 0.8
    for same in (y[["v", "u"]], {"v": 4.0, "u": 0.0}, [0.0, 4.0]):
        np.testing.assert_array_equal(found.odds(same).probability, level)
    np.testing.assert_allclose(other.odds(y).probability, level, rtol=1e-4)
    with pytest.raises(InputError, match="without u"):
        found.odds(y.rename(columns={"u": "w"}))
    with pytest.raises(InputError, match="missing or infinite"):
        found.odds([np.nan, 0.0])
    with pytest.raises(InputError, match="expected one of wide, high"):
        found.odds(y).log_bayes_factor("wide", "other")
    with pytest.raises(InputError, match="equal names"):
        fk.compare({"wide": wide, "high": high.rename(columns={"u": "w"})}, **settings)


@pytest.fixture(scope="module")
def compared():
    def make(mean):
        return lambda x: x + mean + NOISE * RNG.normal(size=np.shape(x))

    models = {"low": (make(-1.0), fk.Normal([0.0], [1.0])), "high": (make(1.0), fk.Normal([0.0], [1.0]))}
    settings = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 40}, "key": 0, "show_progress": False}
    return fk.compare(models, num_simulations=3000, prior={"low": 1, "high": 3}, **settings)


def test_odds_are_those_of_bayes(compared):
    y = np.array([[-2.0], [-0.5], [0.0], [0.7], [1.5]])
    odds = compared.odds(y)
    exact = 2 * y[:, 0] / (1 + NOISE**2)  # of two normals with means 1 and -1
    np.testing.assert_allclose(odds.log_bayes_factor("high", "low"), exact, atol=0.35)
    np.testing.assert_allclose(odds.probability.sum(axis=1), 1)
    logit = np.log(odds.probability[:, 1] / odds.probability[:, 0])
    calibrated = odds.log_bayes_factor("high", "low") / compared.temperature
    np.testing.assert_allclose(logit, calibrated + np.log(3), atol=1e-6)
    assert 0.7 < compared.temperature < 1.4 and compared.check()[0].passed
    np.testing.assert_allclose(odds.log_evidence[:, 1], stats.norm(1, 1.25**0.5).logpdf(y[:, 0]), atol=0.4)


def test_what_cannot_be_compared_is_refused():
    data = RNG.normal(size=(50, 2))
    with pytest.raises(InputError, match="at least two"):
        fk.compare({"one": data})
    with pytest.raises(InputError, match="as many from each"):
        fk.compare({"one": data, "two": data[:, :1]})
    with pytest.raises(InputError, match="positive probability"):
        fk.compare({"one": data, "two": data}, prior={"one": 1})
    with pytest.raises(InputError, match="positive probability"):
        fk.compare({"one": data, "two": data}, prior={"one": float("nan"), "two": 1})
    with pytest.raises(InputError, match="got list; expected at least two simulators, by name"):
        fk.compare([data, data])
    with pytest.raises(InputError, match="held-out data"):
        fk.compare({"one": data, "two": data}, train={"validation": 0})
    with pytest.raises(InputError, match="neither a simulator nor pairs"):
        fk.likelihood()
