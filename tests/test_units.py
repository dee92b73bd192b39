"""Origins and units: parameters, data and columns far from zero, tiny, huge, constant, or over many decades."""

import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife._frame import Frame, LocalSpread, heavy_tails, robust_spread
from flowknife.errors import InputError
from flowknife.priors import Fixed, GaussianProcess, Histogram, Product, Truncated, likeliest

QUICK = {"layers": 2, "width": 16, "depth": 1, "show_progress": False, "seed": 0}
NOISE = 0.1
SHRUNK = 1 / (1 + NOISE**2)  # of x ~ N(0, 1) given y = x + NOISE N(0, 1): mean SHRUNK y, variance 1 - SHRUNK
SPREAD = (1 - SHRUNK) ** 0.5
TINY, FAR = 1e-12, 1.7e9


# -- frames -----------------------------------------------------------------------------------------------------------


def table(seed=0, rows=400):
    z = np.random.default_rng(seed).normal(size=(rows, 5))
    return np.stack([z[:, 0], FAR + z[:, 1], 1e-30 * z[:, 2], 1e60 * (5 + z[:, 3]), np.full(rows, 0.1)], axis=1)


def test_a_frame_keeps_every_column_to_single_precision_of_its_spread():
    values = table()
    for drop in (False, True):
        frame = Frame.of(values, drop_constant=drop)
        rows = frame.to_model(values)
        assert rows.dtype == np.float32 and rows.shape == (400, 4 if drop else 5)
        error = np.abs(frame.from_model(rows) - values)
        assert np.all(error.max(axis=0)[:4] < 1e-6 * values.std(axis=0)[:4])
        assert np.all(error[:, 4] == 0)


def test_scales_are_powers_of_two_and_their_jacobian_is_told():
    frame = Frame.of(table())
    assert np.all(np.log2(frame.scale) % 1 == 0)
    assert frame.log_det == pytest.approx(-np.sum(np.log(frame.scale)))
    assert frame.scale[0] == 1 and 2**-101 < frame.scale[2] < 2**-98


def test_a_frame_knows_impossible_rows():
    frame = Frame.of(table(), drop_constant=True)
    rows = table()[:2]
    rows[1, 4] = 0.2
    assert frame.possible(rows).tolist() == [True, False]


def test_one_outlier_does_not_move_the_frame():
    values = np.random.default_rng(0).normal(size=(400, 1))
    values[3] = 1e10
    frame = Frame.of(values)
    assert frame.origin == (0.0,) and frame.scale == (1.0,)


def test_values_beyond_single_precision_are_infinite_without_a_word():
    assert np.isinf(Frame.of(table()).to_model(np.full((1, 5), 1e300))[0, 0])


# -- local spreads ----------------------------------------------------------------------------------------------------


def test_the_local_spread_of_a_normal_column_is_its_standard_deviation():
    rows = np.random.default_rng(0).normal(3.0, 2.0, size=(5000, 1))
    spread = np.asarray(LocalSpread.of(rows, rows.std(axis=0))(np.linspace(-1, 7, 9, dtype=np.float32)[:, None]))
    np.testing.assert_allclose(spread, 2.0, rtol=0.05)


def test_the_local_spread_of_decades_follows_the_value():
    rows = np.exp(5 * np.random.default_rng(0).normal(size=(5000, 1)))
    at = np.exp(5 * np.linspace(-2, 1, 7, dtype=np.float32))[:, None]
    relative = np.asarray(LocalSpread.of(rows, rows.std(axis=0))(at)) / at
    assert np.all((relative > 5) & (relative < 40))  # a standard deviation of the logarithm is 5


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_the_local_spread_of_ties_is_that_of_the_column(share):
    rows = (np.random.default_rng(0).uniform(size=(2000, 1)) < share).astype(float)
    spread = np.asarray(LocalSpread.of(rows, rows.std(axis=0))(np.float32([[0.0], [1.0]])))
    np.testing.assert_allclose(spread, rows.std(), rtol=1e-6)


def test_heavy_tails_are_told_with_the_remedy():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=1000)
    assert heavy_tails(np.stack([normal, FAR + normal, normal > 2.5], axis=1), "abc") == ""
    assert "b" in heavy_tails(np.stack([normal, np.exp(4 * normal)], axis=1), "ab")
    assert "logarithm" in heavy_tails(np.exp(4 * normal)[:, None], "a")
    assert "arcsinh" in heavy_tails(rng.standard_cauchy((1000, 1)), "a")
    assert robust_spread(normal[:, None])[0] == pytest.approx(normal.std(), rel=0.1)


# -- priors -----------------------------------------------------------------------------------------------------------

FAR_PRIORS = {
    "Uniform": (lambda: fk.Uniform(FAR, FAR + 1), stats.uniform(FAR, 1)),
    "Normal": (lambda: fk.Normal(FAR, 0.5), stats.norm(FAR, 0.5)),
    "tiny": (lambda: fk.Normal(0, 1e-40), stats.norm(0, 1e-40)),
    "huge": (lambda: fk.Uniform(-1e100, 1e100), stats.uniform(-1e100, 2e100)),
    "LogNormal": (lambda: fk.LogNormal(100, 0.2), stats.lognorm(0.2, scale=np.exp(100))),
    "Truncated": (lambda: Truncated(FAR, 1, FAR - 1, np.inf), stats.truncnorm(-1, np.inf, FAR, 1)),
    "Histogram": (
        lambda: Histogram(FAR + np.array([0, 1, 3.0]), [1, 3]),
        stats.rv_histogram((np.array([1.0, 3.0]), FAR + np.array([0, 1, 3.0])), density=False),
    ),
}


@pytest.mark.parametrize("name", FAR_PRIORS)
def test_a_prior_far_from_zero_has_the_law_it_says(name):
    make, law = FAR_PRIORS[name]
    prior = make()
    draws = prior.sample(2000, key=0)
    assert draws.dtype == np.float64 and len(np.unique(draws)) > 1900
    assert stats.kstest(draws[:, 0], law.cdf).pvalue > 1e-3
    np.testing.assert_allclose(prior.log_prob(draws), law.logpdf(draws[:, 0]), rtol=1e-4, atol=1e-3)
    assert prior.mean[0] == pytest.approx(law.mean(), rel=1e-5)
    if name != "Histogram":  # whose variance scipy takes as a difference of squares
        assert prior.std[0] == pytest.approx(law.std(), rel=1e-5)


def test_a_gaussian_process_far_from_zero_varies():
    prior = GaussianProcess([0.0, 1.0, 2.0], FAR, 1.0, 1.0)
    assert prior.sample(4000, key=0).std(axis=0) == pytest.approx([1, 1, 1], rel=0.05)


def test_parameters_that_are_fixed_come_back_exactly():
    prior = Product({"a": fk.Normal(0, 1), "b": Fixed(0.1), "c": fk.Uniform(FAR, FAR + 2)})
    draws = prior.sample(100, key=0)
    assert prior.dim == 3 and np.all(draws[:, 1] == 0.1)
    expected = stats.norm.logpdf(draws[:, 0]) - np.log(2)
    np.testing.assert_allclose(prior.log_prob(draws), expected, atol=1e-5)
    assert np.all(np.isneginf(prior.log_prob(draws + np.array([0, 0.1, 0]))))


def test_likeliest_finds_the_law_whatever_the_units():
    rng = np.random.default_rng(0)
    for unit, origin in ((1e-12, 0), (1e12, 0), (1, FAR)):
        prior = likeliest(origin + unit * rng.uniform(size=(2000, 1)))
        assert prior.low[0] == pytest.approx(origin, abs=0.01 * unit)
        assert prior.high[0] - origin == pytest.approx(unit, abs=0.01 * unit)
    assert likeliest(np.full((10, 1), 0.3)).sample(key=0) == 0.3


# -- inversion --------------------------------------------------------------------------------------------------------


def pairs(rows, seed=0):
    """Two parameters and a constant; two data, which see one parameter each with noise, and a constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    y = x + NOISE * rng.normal(size=x.shape)
    return units(x), data(y)


def units(x):
    return np.stack([TINY * x[..., 0], FAR + x[..., 1], np.full(x.shape[:-1], 0.1)], axis=-1)


def data(y):
    return np.stack([1e6 + y[..., 0], -FAR + 1e12 * y[..., 1], np.full(y.shape[:-1], 7.0)], axis=-1)


@pytest.fixture(scope="module")
def posterior():
    prior = Product({"a": fk.Normal(0, TINY), "b": fk.Normal(FAR, 1), "c": Fixed(0.1)})
    return fk.invert(pairs=pairs(5000), prior=prior, train={"steps": 600}, **QUICK)


OBSERVED = np.array([0.5, -1.0])


def test_a_posterior_far_from_zero_is_the_exact_one(posterior):
    drawn = posterior.sample(4000, y=data(OBSERVED), key=1)
    assert np.all(drawn[:, 2] == 0.1)
    standard = (drawn - units(np.zeros(2)))[:, :2] / [TINY, 1]
    np.testing.assert_allclose(standard.mean(axis=0), SHRUNK * OBSERVED, atol=0.02)
    np.testing.assert_allclose(standard.std(axis=0), SPREAD, rtol=0.1)
    middle = posterior.quantiles(data(OBSERVED), (0.5,), key=0)[0]
    np.testing.assert_allclose((middle - units(SHRUNK * OBSERVED))[:2] / [TINY, 1], 0, atol=0.03)
    top = posterior.map(data(OBSERVED), key=0)
    np.testing.assert_allclose((top - units(SHRUNK * OBSERVED))[:2] / [TINY, 1], 0, atol=0.05)


def test_its_density_is_in_the_units_of_the_parameters(posterior):
    x = SHRUNK * OBSERVED + SPREAD * np.random.default_rng(3).normal(size=(200, 2))
    exact = stats.norm.logpdf(x, SHRUNK * OBSERVED, SPREAD).sum(axis=1) - np.log(TINY)
    found = posterior.log_prob(units(x), y=data(OBSERVED))
    assert np.mean(np.abs(found - exact)) < 0.2
    entropy = np.log(2 * np.pi * np.e * SPREAD**2) + np.log(TINY)
    assert posterior.metrics["nll"] == pytest.approx(entropy, abs=0.2)
    assert posterior.metrics["prior_nll"] == pytest.approx(np.log(2 * np.pi * np.e) + np.log(TINY), abs=0.3)
    assert np.isneginf(posterior.log_prob(units(x[0]) + np.array([0, 0, 0.01]), y=data(OBSERVED)))
    assert np.isneginf(posterior.log_prob([1e300, -1e300, 0.1], y=data(OBSERVED)))


@pytest.mark.slow
def test_it_can_be_checked_and_flags_what_cannot_be(posterior):
    assert all(check.passed for check in posterior.check()), posterior.check()
    assert all(check.passed for check in posterior.check(pairs(300, seed=5)))
    usual = pairs(100, seed=6)[1]
    assert np.mean(posterior.score(usual)["flag"]) < 0.15
    assert posterior.score(usual[:1] + np.array([0, 0, 1.0]))["flag"].all()
    assert posterior.score(usual[:1] + np.array([30.0, 0, 0]))["flag"].all()


def test_it_is_the_same_after_loading(posterior, tmp_path):
    again = fk.load(posterior.save(tmp_path / "run"))
    y = data(OBSERVED)
    np.testing.assert_array_equal(again.sample(5, y=y, key=0), posterior.sample(5, y=y, key=0))
    x = posterior.sample(3, y=y, key=2)
    np.testing.assert_array_equal(again.log_prob(x, y=y), posterior.log_prob(x, y=y))
    assert again.metrics == posterior.metrics
    np.testing.assert_array_equal(again.held_out_pairs["x"], posterior.held_out_pairs["x"])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["conditional", "partitioned"])
@pytest.mark.parametrize("origin", [1e6, FAR])
def test_a_simulator_with_an_origin_gives_the_exact_posterior(form, origin):
    settings = {**QUICK, "num_simulations": 4000, "form": form, "noise": NOISE, "train": {"steps": 1500}}
    posterior = fk.invert(lambda x: origin + x, fk.Normal(0, 1), **settings)
    drawn = posterior.sample(10_000, y=[origin + 0.5], key=1)
    assert drawn.mean() == pytest.approx(0.5 * SHRUNK, abs=0.03)
    assert drawn.std() == pytest.approx(SPREAD, rel=0.25)
    assert posterior.predict([[0.5]])[0, 0] - origin == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "width"), [(FAR, 1.0), (0.0, 1e-12), (-5e11, 1e12)])
def test_a_uniform_prior_with_an_origin_gives_the_exact_posterior(low, width):
    settings = {**QUICK, "num_simulations": 3000, "noise": 0.03 * width, "train": {"steps": 600}}
    posterior = fk.invert(lambda x: x, fk.Uniform(low, low + width), **settings)
    drawn = (posterior.sample(10_000, y=[low + 0.5 * width], key=1) - low) / width
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(0.03, rel=0.2)
    edge = posterior.sample(10_000, y=[low], key=1)
    assert np.all((edge >= low) & (edge <= low + width))


@pytest.mark.slow
def test_exact_data_over_many_decades_keep_their_small_end():
    settings = {**QUICK, "num_simulations": 4000, "train": {"steps": 1000}}
    posterior = fk.invert(lambda x: np.exp(5 * x), fk.Normal(0, 1), **settings)
    for truth in (-2.0, -1.0, 0.0, 1.5):
        drawn = posterior.sample(4000, y=np.exp([5 * truth]), key=1)
        assert drawn.mean() == pytest.approx(truth, abs=0.15)
        assert drawn.std() < 0.2
    assert any("heavy tails" in note for note in posterior.record.notes)


X = np.random.default_rng(0).uniform(0, 1, (100, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": (X * [1, 0], X), "prior": fk.Uniform([-1, -1], [2, 2])}, "parameter x2, which is 0 .*Fixed"),
        ({"pairs": (0 * X, X)}, "never vary"),
        ({"pairs": (X, 0 * X)}, "same for all"),
        ({"simulator": lambda x: 0 * x, "prior": fk.Uniform(0, 1), "num_simulations": 50}, "same for all"),
        ({"pairs": (X[:, :1], X), "prior": fk.Uniform(0, 1e-30)}, "outside of the prior"),
        (
            {"simulator": lambda x: x, "prior": fk.LogNormal(0.0, 1e-9), "num_simulations": 50},
            "single precision cannot resolve",
        ),
    ],
)
def test_what_cannot_be_inverted_gets_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        fk.invert(**arguments, **QUICK)
    assert "\n" not in str(error.value)


# -- density ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_density_in_other_units_is_the_same_density():
    x = np.random.default_rng(0).normal(size=(300, 2))
    unit = 2.0**-60
    plain, tiny = (fk.density(rows, train={"steps": 20}, **QUICK) for rows in (x, unit * x))
    np.testing.assert_allclose(tiny.log_prob(unit * x), plain.log_prob(x) - 2 * np.log(unit), rtol=1e-5)
    np.testing.assert_array_equal(tiny.sample(5, key=0), unit * plain.sample(5, key=0))
    assert tiny.metrics["nll"] == pytest.approx(plain.metrics["nll"] + 2 * np.log(unit))
