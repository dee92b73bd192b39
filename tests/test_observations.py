"""Embeddings of sets, series, images and observations with gaps: what they may not depend on, and known posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife.apps.invert._gaps import filled, masked, set_in_order, with_gaps
from flowknife.errors import InputError
from flowknife.nets import ObservationEmbedding

SHAPES = {"numbers": (6,), "set": (5, 2), "series": (12,), "image": (6, 5)}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def with_holes(shape, count=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, *shape)).reshape(count, -1)
    rows[rng.random(rows.shape) < 0.3] = np.nan
    return rows


_OFTEN = [kind if kind == "series" else pytest.param(kind, marks=pytest.mark.slow) for kind in SHAPES]


@pytest.mark.parametrize("kind", _OFTEN)
def test_gaps_have_no_influence_but_that_they_are_there(kind):
    rows = with_holes(SHAPES[kind])
    net = ObservationEmbedding(kind, SHAPES[kind], masked(rows), learned=3, width=8, key=0)
    # the head starts at zero: perturbed, so that learned features count
    net = jax.tree.map(lambda leaf: leaf + 0.1 if hasattr(leaf, "ndim") and leaf.ndim else leaf, net)
    full = masked(rows[:7]).astype(np.float32)

    def seen_by(rows):
        return np.asarray(net(jnp.asarray(rows)))

    other = full.copy()
    size = rows.shape[1]
    other[:, :size] += np.where(full[:, size:] > 0.5, 0.0, 100.0)
    found = seen_by(full)
    np.testing.assert_allclose(found, seen_by(other), atol=1e-4)
    assert found.shape == (7, net.features) and np.all(np.isfinite(found))
    seen = full.copy()
    seen[:, :size] += 0.5
    assert np.abs(seen_by(seen) - found).max() > 0.1


def test_the_order_of_a_set_does_not_matter(rng):
    rows = with_holes((5, 2))
    net = ObservationEmbedding("set", (5, 2), masked(rows), learned=4, width=8, key=0)
    net = jax.tree.map(lambda leaf: leaf + 0.1 if hasattr(leaf, "ndim") and leaf.ndim else leaf, net)
    turned = rows.reshape(-1, 5, 2)[:, rng.permutation(5)].reshape(-1, 10)
    once, again = (np.asarray(net(jnp.asarray(masked(part), jnp.float32))) for part in (rows, turned))
    np.testing.assert_allclose(once, again, atol=2e-4)


def test_sets_are_compared_with_simulations_in_any_order(rng):
    rows = with_holes((5, 2))
    turned = rows.reshape(-1, 5, 2)[:, rng.permutation(5)].reshape(-1, 10)
    once, again = (set_in_order(masked(part), (5, 2)) for part in (rows, turned))
    np.testing.assert_array_equal(once, again)
    count = np.sum(~np.isnan(rows))
    assert np.sum(once[:, 10:]) == count and np.sum(~np.isnan(with_gaps(once))) == count
    plain = set_in_order(masked(np.array([[3.0, np.nan, 1.0]])), (3,))
    np.testing.assert_array_equal(plain, [[1.0, 3.0, 0.0, 1.0, 1.0, 0.0]])


def test_masks_are_told_and_taken_off():
    rows = with_holes((4,))
    np.testing.assert_array_equal(with_gaps(masked(rows)), rows)
    assert np.isfinite(filled(rows)).all()
    with pytest.raises(InputError, match="expected one of"):
        ObservationEmbedding("set", (3, 3, 3), masked(with_holes((27,))), key=0)


@pytest.mark.slow
def test_a_posterior_takes_observations_with_gaps_and_no_others(tmp_path, rng):
    x = rng.normal(size=(400, 1))
    y = x + 0.5 * rng.normal(size=(400, 3))
    y[rng.random(y.shape) < 0.3] = np.nan
    y[np.isnan(y).all(axis=1), 0] = 0.0
    quick = {"layers": 1, "width": 8, "depth": 1, "features": 2, "train": {"steps": 20}, "show_progress": False}
    posterior = fk.invert(pairs=(x, y[..., None]), embedding="set", prior=fk.Normal([0], [1]), key=0, **quick)
    assert posterior.used.observation == (3, 1)
    found = posterior.sample(4, y=[[0.1, np.nan, 0.2], [np.nan, np.nan, 1.0]], key=0)
    assert found.shape == (2, 4, 1) and np.isfinite(found).all()
    assert np.isnan(posterior.held_out_pairs["y"]).any()
    assert np.isfinite(posterior.score(y[:5])["score"]).all()
    np.testing.assert_allclose(posterior.score(y[:5, ::-1])["score"], posterior.score(y[:5])["score"])
    again = fk.load(posterior.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.sample(3, y=y[0], key=1), posterior.sample(3, y=y[0], key=1))
    with pytest.raises(InputError, match="finite"):
        posterior.sample(1, y=[0.0, np.inf, 0.0])
    with pytest.raises(InputError, match="embedding=image"):
        fk.invert(pairs=(x, y), embedding="image", observation=(2, 2), prior=fk.Normal([0], [1]), **quick)


QUICK = {"show_progress": False, "key": 0, "layers": 4, "width": 32}


@pytest.mark.slow
def test_the_mean_of_some_normal_draws(rng):
    mean = rng.normal(size=(8000, 1))
    y = mean + rng.normal(size=(8000, 10))
    y[np.arange(10) >= rng.integers(1, 11, size=(8000, 1))] = np.nan
    posterior = fk.invert(pairs=(mean, y), prior=fk.Normal([0], [1]), embedding="set", train={"steps": 1500}, **QUICK)
    for count in (1, 3, 10):
        row = np.full(10, np.nan)
        row[:count] = rng.normal(0.7, 0.5, size=count)
        drawn, spread = posterior.sample(4000, y=row, key=0)[:, 0], (1 + count) ** -0.5
        assert drawn.std() == pytest.approx(spread, rel=0.1)
        assert drawn.mean() == pytest.approx(np.nansum(row) / (1 + count), abs=0.15 * spread)


def series_of(rng, phi, steps):
    y = np.zeros((len(phi), steps))
    y[:, 0] = rng.normal(size=len(phi))
    for t in range(1, steps):
        y[:, t] = phi * y[:, t - 1] + rng.normal(size=len(phi))
    return y


@pytest.mark.slow
def test_the_coefficient_of_an_autoregressive_series(rng):
    phi = rng.uniform(-1, 1, 40_000)
    y = series_of(rng, phi, 30)
    prior = fk.Uniform([-1], [1])
    posterior = fk.invert(pairs=(phi[:, None], y), prior=prior, embedding="series", train={"steps": 1500}, **QUICK)
    grid = np.linspace(-1, 1, 2001)
    ratio, shift = [], []
    truth = rng.uniform(-1, 1, 30)
    for row in series_of(rng, truth, 30):
        level = -0.5 * np.sum((row[1:] - grid[:, None] * row[:-1]) ** 2, axis=1)
        weight = np.exp(level - level.max())
        weight /= weight.sum()
        exact = weight @ grid
        spread = (weight @ (grid - exact) ** 2) ** 0.5
        drawn = posterior.sample(2000, y=row, key=0)[:, 0]
        ratio.append(drawn.std() / spread)
        shift.append(abs(drawn.mean() - exact) / spread)
    assert 0.87 < np.median(ratio) < 1.15 and np.median(shift) < 0.25


@pytest.mark.slow
def test_a_gravity_curve_with_missing_stations(rng):
    problem = fk.problems.gravity(prisms=4, stations=8, noise=1.0)
    x = np.asarray(problem.prior.sample(40_000, key=0), np.float64)
    y = np.asarray(problem.simulate(x, key=1), np.float64)
    gaps = rng.random(y.shape) < 0.25
    gaps[:, 0] = False
    y[gaps] = np.nan
    posterior = fk.invert(pairs=(x, y), prior=problem.prior, embedding="series", train={"steps": 2000}, **QUICK)
    ratio, shift = [], []
    proposals = np.asarray(problem.prior.sample(200_000, key=2), np.float64)
    predicted = np.asarray(problem.forward(proposals), np.float64)
    test = np.asarray(problem.simulate(problem.prior.sample(20, key=4), key=3), np.float64)
    test[rng.random(test.shape) < 0.25] = np.nan
    for row in test:
        known = np.isfinite(row)
        level = -0.5 * np.sum((predicted[:, known] - row[known]) ** 2, axis=1)
        weight = np.exp(level - level.max())
        weight /= weight.sum()
        exact = weight @ proposals
        spread = (weight @ (proposals - exact) ** 2) ** 0.5
        drawn = posterior.sample(2000, y=row, key=0)
        ratio.append(drawn.std(axis=0) / spread)
        shift.append(np.abs(drawn.mean(axis=0) - exact) / spread)
    assert np.all(np.abs(np.log(np.median(ratio, axis=0))) < np.log(1.2)) and np.median(shift) < 0.25
