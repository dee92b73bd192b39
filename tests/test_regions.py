"""Regions and intervals whose coverage is promised: right values, and the promise over many calibrations."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import flowknife as fk
from flowknife.apps.invert._regions import exceeded, ranked
from flowknife.diagnostics import Cells, Region, conformal_quantile
from flowknife.errors import InputError
from tests.test_golden import GOLDEN

RNG = np.random.default_rng(0)


def normal_region(level, calibration, scale=1.0, dim=2):
    """The region of N(0, scale^2 I), calibrated with rows."""
    law = stats.multivariate_normal(np.zeros(dim), scale**2 * np.eye(dim))
    bound = -conformal_quantile(-law.logpdf(calibration), level)
    return Region(level, bound, lambda x: np.atleast_1d(law.logpdf(x)), lambda n, key: law.rvs(n, random_state=key))


def test_the_quantile_is_the_rank_that_keeps_the_promise():
    scores = np.arange(1.0, 10.0)
    assert [conformal_quantile(scores, level) for level in (0.1, 0.5, 0.9)] == [1, 5, 9]
    assert conformal_quantile(scores, 0.91) == np.inf  # takes ten
    assert conformal_quantile(np.array([np.nan, 0.0, 1.0]), 0.75) == np.inf  # NaN is the largest
    for level in (0, 1, -0.5):
        with pytest.raises(InputError, match="between 0 and 1"):
            conformal_quantile(scores, level)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_regions_hold_new_rows_at_the_rate_promised_whatever_the_density(scale):
    rates = [
        normal_region(0.8, RNG.normal(size=(19, 2)), scale).contains(RNG.normal(size=(50, 2))).mean()
        for _ in range(1000)
    ]
    assert np.mean(rates) == pytest.approx(0.8, abs=4 * np.std(rates) / 1000**0.5)


def test_a_region_of_a_normal_distribution_is_a_disc():
    region = normal_region(0.9, RNG.normal(size=(20_000, 2)))
    radius = np.sqrt(stats.chi2(2).ppf(0.9))
    assert region.volume(100_000, key=0) == pytest.approx(np.pi * radius**2, rel=0.03)
    inside = region.sample(3000, key=0)
    assert inside.shape == (3000, 2) and region.contains(inside).all()
    assert np.linalg.norm(inside, axis=1).max() == pytest.approx(radius, rel=0.02)
    everything = normal_region(0.9, RNG.normal(size=(5, 2)))  # too few to promise anything else
    assert everything.bound == -np.inf and everything.contains([[1e3, 0.0]]).all() and everything.volume() == np.inf


@pytest.fixture(scope="module")
def posterior():
    """x + noise, where the noise grows with |x|; trained for a few steps, so that it is wrong."""
    x = RNG.normal(size=(600, 2))
    y = x + (0.1 + 0.5 * np.abs(x)) * RNG.normal(size=x.shape)
    quick = {"layers": 2, "width": 8, "depth": 1, "features": 4, "train": {"steps": 30, "validation": 0.5}}
    return fk.invert(pairs=(x, y), prior=fk.Normal([0, 0], [1, 1]), key=0, show_progress=False, **quick)


def fresh(count):
    x = RNG.normal(size=(count, 2))
    return x, x + (0.1 + 0.5 * np.abs(x)) * RNG.normal(size=x.shape)


@pytest.mark.parametrize("local", [False, True])
def test_posterior_regions_hold_the_truth_at_the_rate_promised(posterior, local):
    x, y = fresh(100)
    regions = [posterior.region(one, 0.8, local=local) for one in y]
    inside = np.array([region.contains(truth[None])[0] for region, truth in zip(regions, x, strict=True)])
    m = posterior.flagging.rows
    assert np.mean(inside) == pytest.approx(0.8, abs=3.5 * (0.16 / 100 + 0.16 / m) ** 0.5)
    size = np.abs(y).max(axis=1)
    for half in (size < np.median(size), size >= np.median(size)):  # local regions hold in each cell
        assert not local or inside[half].mean() > 0.8 - 3.5 * (0.16 / 50 + 0.16 / 80) ** 0.5


@pytest.mark.slow
def test_intervals_hold_each_parameter_at_the_rate_promised(posterior):
    x, y = fresh(100)
    low, high = np.moveaxis(posterior.intervals(y, 0.8), 1, 0)
    rates = np.mean((x >= low) & (x <= high), axis=0)
    m = posterior.flagging.rows
    np.testing.assert_allclose(rates, 0.8, atol=3.5 * (0.16 / 100 + 0.16 / m) ** 0.5)
    assert posterior.intervals(y[0], 0.8).shape == (2, 2)


def test_regions_of_a_density_are_calibrated_too():
    x = RNG.normal(size=(400, 1)) ** 3
    quick = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "train": {"steps": 3}}
    flow = fk.density(x, key=0, show_progress=False, **quick)
    region = flow.region(0.8)
    inside = region.contains(RNG.normal(size=(4000, 1)) ** 3).mean()
    assert inside == pytest.approx(0.8, abs=3.5 * (0.16 / 2000 + 0.16 / flow.flagging.rows) ** 0.5)
    assert region.contains(region.sample(50, key=0)).all()


def test_values_that_were_constant_in_training_count_in_calibration():
    """The last column is 0 in training, and 1 in half of the calibration rows and of the new rows."""
    generator = np.random.default_rng(1)
    rows = np.column_stack([generator.normal(size=(3000, 1)), generator.integers(0, 2, 3000)])
    calibration, new, train = rows[:400], rows[400:2400], rows[2400:] * [1, 0]
    quick = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "train": {"steps": 3}, "alpha": 0.05}
    flow = fk.density(train, calibration=calibration, key=0, show_progress=False, **quick)
    assert flow.flagging.rows == 400 and len(flow.calibration_rows) == 400
    assert np.mean(flow.score(new)["p_value"] < 0.05) <= 0.05
    flagged = {check.name: check.value for check in flow.check(new)}["share of rows flagged"]
    assert flagged == np.mean(flow.score(new)["p_value"] < 0.05)
    assert flow.region(0.9).contains(new).all()  # of which half are impossible
    inside = flow.region(0.4).contains(new).mean()
    assert inside == pytest.approx(0.4, abs=3.5 * (0.24 / 2000 + 0.24 / 400) ** 0.5)
    with pytest.raises(InputError, match="rows of the same distribution"):
        fk.density(train, calibration=calibration + np.array([0, 2]), key=0, show_progress=False, **quick)


def test_levels_are_between_zero_and_one(posterior):
    for ask in (posterior.region, posterior.intervals):
        with pytest.raises(InputError, match="a number between 0 and 1"):
            ask([0, 0], 90)
    with pytest.raises(InputError, match="probabilities between 0 and 1"):
        posterior.quantiles([0, 0], (5, 95))


@pytest.mark.slow
def test_a_region_of_a_table_with_categories_draws_such_a_table():
    pandas, generator = pytest.importorskip("pandas"), np.random.default_rng(1)
    table = pandas.DataFrame({"a": generator.normal(size=200), "b": generator.choice(["u", "v"], 200)})
    flow = fk.density(table, categories="auto", layers=1, width=4, train={"steps": 3}, key=0, show_progress=False)
    drawn = flow.region(0.9).sample(4, key=0)
    assert list(drawn.columns) == ["a", "b"] and len(drawn) == 4 and set(drawn["b"]) <= {"u", "v"}


def test_regions_need_calibration_and_one_observation(posterior):
    with pytest.raises(InputError, match="one at a time"):
        posterior.region([[0, 0], [1, 1]])
    whole = fk.load(GOLDEN / "format-3" / "density")
    bare = replace(whole, held_out=whole.held_out[:0])
    with pytest.raises(InputError, match="without held-out rows"):
        bare.region()


def test_cells_divide_observations_where_scores_differ():
    features = RNG.normal(size=(2000, 3))
    scores = RNG.exponential(size=2000) * np.where(features[:, 1] > 0, 5.0, 1.0)
    cells = Cells.of(features, scores)
    assert cells.splits and cells.splits[0][1] == 1 and abs(cells.splits[0][2]) < 0.2
    assert len(np.unique(cells(features))) == len(cells.splits) + 1
    assert len(Cells.of(features, scores, most=3).splits) == 2
    assert Cells.of(features[:100], scores[:100]).splits == ()  # too few to divide


def test_the_threshold_of_a_rank_is_the_inverse_of_the_rank():
    drawn = RNG.normal(size=(50, 200))
    log_prob = drawn.max(axis=1) - RNG.exponential(2.0, size=50)
    rank = ranked(log_prob, drawn)
    np.testing.assert_allclose(exceeded(drawn, rank), log_prob, atol=1e-9)
    assert (rank > 1).any() and (rank < 1).any() and np.all((rank > 1) == (log_prob < drawn.min(axis=1)))
    np.testing.assert_allclose(exceeded(drawn, np.full(50, 0.25)), np.quantile(drawn, 0.75, axis=1))
    assert exceeded(drawn, np.full(50, np.inf))[0] == -np.inf
