"""The rule of batches: a row has one observation, alone and in whatever company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import flowknife as fk
from flowknife.apps import InvertConfig
from flowknife.apps.invert._pairs import UNLIKE_PRIOR, failures_note, prior_note
from flowknife.apps.invert._task import Task, task_of
from flowknife.data import given_pairs, predicted, simulate
from flowknife.errors import InputError

QUICK = {"layers": 1, "width": 4, "depth": 1, "show_progress": False, "train": {"steps": 1}}
MATRIX = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, -1.0], [0.3, 0.3, 0.3]])


def draws(rows, dim, seed=0):
    return np.random.default_rng(seed).uniform(1, 2, (rows, dim))


class Counted:
    """A simulator that counts its calls and the rows of the largest one."""

    def __init__(self, function):
        self.function, self.calls, self.largest = function, 0, 0

    def __call__(self, theta):
        self.calls += 1
        self.largest = max(self.largest, len(theta) if np.ndim(theta) == 2 else 1)
        return self.function(theta)


# each is a function of one row that also accepts a batch, of which it makes something else
OF_ONE_ROW = {
    "share": lambda t: t / t.sum(),
    "reversed": lambda t: t[::-1],
    "rolled": lambda t: np.roll(t, 1),
    "cumulated": lambda t: np.cumsum(t),
    "cumulated along the first axis": lambda t: np.cumsum(t, axis=0),
    "centred": lambda t: t - t.mean(),
    "hardly coupled": lambda t: t - 1e-6 * t.mean(),
    "ratio to the first": lambda t: t / t[0],
    "sorted": lambda t: np.sort(t, axis=0),
    "sorted by Python": lambda t: sorted(t),
    "order": lambda t: np.argsort(t, axis=0),
    "softmax": lambda t: special.softmax(t),
    "softmax along the first axis": lambda t: special.softmax(t, axis=0),
    "square": lambda t: t @ t.T,
    "outer": lambda t: np.outer(t, t),
    "scalar": lambda t: t.sum(),
    "number of rows": lambda t: t * len(t),
    "size": lambda t: t * t.size,
    "axes": lambda t: t * t.ndim,
    "weighted by place": lambda t: t * np.arange(len(t)).reshape(-1, *[1] * (t.ndim - 1)),
    "NaN for all": lambda t: np.where(np.any(t > 1.97), np.nan, t),
    "seldom coupled": lambda t: t - (t.mean() if np.any(t > 1.97) else 0),
    "only rows": lambda t: t if t.ndim == 1 else 1 / 0,
    "in JAX, centred": lambda t: jnp.asarray(t) - jnp.mean(t),
    "in JAX, reversed": lambda t: jnp.flip(jnp.asarray(t), 0),
    "in JAX, a list": lambda t: [jnp.sum(t), t[0]],
}


@pytest.mark.parametrize(("rows", "dim"), [(40, 1), (40, 3), (40, 8), (7, 7), (64, 64), (300, 2)])
def test_a_row_has_the_observation_it_has_alone(rows, dim):
    if rows < 8:
        rows, dim = 8, 8
    theta = draws(rows, dim)
    for name, function in OF_ONE_ROW.items():
        if "JAX" in name and (rows, dim) != (40, 3):
            continue  # each compiles
        alone = [np.asarray(function(row.copy()), float).ravel() for row in theta]
        finite = [i for i, y in enumerate(alone) if np.isfinite(y).all()]
        if len(finite) < 8:
            continue
        expected = np.array([alone[i] for i in finite])
        found = simulate(function, theta)
        np.testing.assert_allclose(found.y, expected, rtol=1e-6 if "JAX" in name else 1e-9, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found.theta, theta[finite])
        np.testing.assert_allclose(predicted(function, theta[finite]), expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_shares_have_the_mean_that_shares_have():
    settings = {"noise": 0.01, "num_simulations": 200, "features": 0, **QUICK}
    posterior = fk.invert(OF_ONE_ROW["share"], fk.Uniform([1] * 3, [2] * 3), **settings)
    assert posterior.held_out["y"].mean() == pytest.approx(1 / 3, abs=0.01)
    theta = draws(50, 3)
    shares = theta / theta.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(posterior.predict(theta), shares, rtol=1e-5)
    np.testing.assert_allclose(posterior.predict(theta[:1]), shares[:1], rtol=1e-5)
    np.testing.assert_allclose(posterior.predict(theta.reshape(5, 10, 3)), shares.reshape(5, 10, 3), rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda t: np.sin(t) @ MATRIX, lambda t: np.sin(t) @ MATRIX),
        (lambda t: t[:, 0] * t[:, 1], lambda t: t[:, :1] * t[:, 1:2]),
        (lambda t: np.roll(t, 1, axis=-1), lambda t: t[:, [2, 0, 1]]),
        (lambda t: jnp.sin(t) @ MATRIX, lambda t: np.sin(t) @ MATRIX),
    ],
    ids=["either", "batches only", "along the last axis", "in JAX"],
)
def test_batches_go_in_whole(function, expected):
    theta = draws(10_000, 3)
    counted = Counted(function)
    found = simulate(counted, theta)
    np.testing.assert_allclose(found.y, expected(theta), rtol=1e-5, atol=1e-5)
    assert found.exact and counted.largest == 500 and counted.calls < 250


def test_functions_of_one_row_in_jax_are_mapped():
    counted = Counted(lambda t: jnp.stack([t[0] * t[1], jnp.sin(t[2])]))
    theta = draws(2000, 3)
    np.testing.assert_allclose(
        simulate(counted, theta).y, np.stack([theta[:, 0] * theta[:, 1], np.sin(theta[:, 2])], 1), rtol=1e-5
    )
    assert counted.calls < 150


def test_a_slow_function_of_one_row_is_called_little_more_than_once_a_row():
    counted = Counted(lambda t: [t[0] + t[1], float(t[0])])
    simulate(counted, draws(500, 2))
    assert counted.calls < 515


def test_a_row_to_blame_does_not_cost_the_others_their_batch():
    def function(theta):
        if np.any(theta > 1.9999):
            raise ArithmeticError("no solution")
        return np.sin(theta)

    theta, counted = draws(20_000, 3), Counted(function)
    found = simulate(counted, theta)
    assert found.failed == np.sum(np.any(theta > 1.9999, axis=1)) > 0
    assert found.reason == "ArithmeticError: no solution" and counted.calls < 1000


def with_noise(rng, function, scale=0.01):
    return lambda theta: (y := np.asarray(function(theta))) + scale * rng.normal(size=y.shape)


@pytest.mark.parametrize("name", ["share", "reversed", "centred"])
@pytest.mark.parametrize(("rows", "scale"), [(200, 0.01), (8192, 0.01), (8192, 1.0)])
def test_noise_hides_no_dependence_between_rows(name, rows, scale):
    theta, rng = draws(rows, 3), np.random.default_rng(0)
    found = simulate(with_noise(rng, OF_ONE_ROW[name], scale), theta)
    residual = (found.y - np.array([OF_ONE_ROW[name](row) for row in theta])) / scale
    assert not found.exact
    np.testing.assert_allclose(residual.std(axis=0), 1, atol=0.25 if rows == 200 else 0.05)
    np.testing.assert_allclose(residual.mean(axis=0), 0, atol=5 / np.sqrt(rows))


@pytest.mark.parametrize("shared", [0.01, 0.003])
def test_noise_that_rows_share_is_drawn_for_each(shared):
    rng = np.random.default_rng(0)
    counted = Counted(lambda t: t + shared * rng.normal() + 0.01 * rng.normal(size=t.shape))
    residual = simulate(counted, (theta := draws(8192, 3))).y - theta
    assert counted.largest < 100  # tried, but no batch of the run
    assert abs(np.corrcoef(residual[:-1].mean(axis=1), residual[1:].mean(axis=1))[0, 1]) < 0.05


def test_batches_with_noise_go_in_whole_where_repeats_decide():
    rng = np.random.default_rng(0)
    counted = Counted(with_noise(rng, lambda t: np.sin(t) @ MATRIX))
    theta = draws(20_000, 3)
    residual = simulate(counted, theta).y - np.sin(theta) @ MATRIX
    assert counted.largest == 1000 and counted.calls < 1200
    np.testing.assert_allclose(residual.std(axis=0), 0.01, rtol=0.03)


@pytest.mark.parametrize(
    "simulator",
    [
        lambda t, key: t + jax.random.normal(key, t.shape),
        lambda t, key: jnp.asarray(t)[::-1] + jax.random.normal(key, ()),
        lambda t, key: t + np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=3),
    ],
    ids=["of either", "of one row", "with a generator of NumPy"],
)
def test_a_row_and_its_key_have_one_observation(simulator):
    theta = draws(40, 3)
    found = simulate(simulator, theta, key=3)
    keys = jax.random.split(jax.random.key(3), 40)
    alone = [np.asarray(simulator(row, key=key)) for row, key in zip(theta, keys, strict=True)]
    np.testing.assert_allclose(found.y, alone, rtol=1e-5, atol=1e-6)
    assert not found.exact


def test_a_state_is_no_reason_to_go_wrong():
    """A simulator that counts is one with noise; its rows are simulated one by one, in their order."""
    calls = iter(range(10**6))
    found = simulate(lambda t: t + next(calls), np.zeros((50, 2)) + draws(50, 2))
    assert np.all(np.diff(np.round(found.y[:, 0] - found.theta[:, 0])) == 1)


class Buffered:
    """Returns its own array every time."""

    def __init__(self):
        self.y = np.zeros(2)

    def __call__(self, theta):
        self.y[:] = theta[0] * theta[1], theta[2]
        return self.y


def test_observations_and_parameters_are_copied():
    theta = draws(100, 3)
    before = theta.copy()
    expected = np.stack([theta[:, 0] * theta[:, 1], theta[:, 2]], axis=1)
    np.testing.assert_array_equal(simulate(Buffered(), theta).y, expected)
    np.testing.assert_array_equal(predicted(Buffered(), theta), expected)

    def doubling(t):
        t *= 2
        return t

    theta.setflags(write=False)
    for given in (theta, jnp.asarray(theta)):
        found = simulate(doubling, given)
        np.testing.assert_array_equal(found.y, 2 * np.asarray(given, float))
        np.testing.assert_array_equal(found.theta, given)
    np.testing.assert_array_equal(predicted(doubling, theta), 2 * before)
    np.testing.assert_array_equal(theta, before)


def test_masked_and_missing_numbers_are_no_observations():
    theta = draws(60, 2)
    for function in (
        lambda t: np.ma.masked_array(t, t > 1.5),
        lambda t: [np.ma.masked_array(t, t > 1.5)[0], np.ma.masked_array(t, t > 1.5)[1]] if t.ndim == 1 else 1 / 0,
        lambda t: [x if x <= 1.5 else None for x in t] if t.ndim == 1 else 1 / 0,
    ):
        found = simulate(function, theta)
        kept = np.all(theta <= 1.5, axis=1)
        np.testing.assert_array_equal(found.theta, theta[kept])
        np.testing.assert_array_equal(found.y, theta[kept])
    masked = np.ma.masked_array(theta, theta > 1.5)
    assert given_pairs(theta, masked).failed == given_pairs(masked, theta).failed == np.sum(~kept)


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        (lambda t: t + 1j, "complex"),
        (lambda t: [complex(t[0]), 1.0], "complex"),
        (lambda t: jnp.fft.fft(jnp.asarray(t)), "complex"),
        (lambda t: None, "returned None"),
        (lambda t: np.array([]), "empty"),
        (lambda t: {"y": 1.0}, "dict"),
        (lambda t: "3.5", "text"),
        (lambda t: [[1.0], [1.0, 2.0]], "inhomogeneous"),
        (lambda: 1.0, "positional"),
        (fk.problems.kinematics, "Problem"),
    ],
)
def test_useless_observations_get_one_line(simulator, message):
    with pytest.raises(InputError, match=message) as caught:
        simulate(simulator, draws(40, 2))
    assert "\n" not in str(caught.value)


def test_noise_that_rarely_shows_is_noise():
    """Of a few rows every count is zero."""
    generator = np.random.default_rng(0)
    theta = draws(2000, 2)
    assert not simulate(lambda t: generator.poisson(0.02 * t), theta).exact
    assert simulate(lambda t: np.floor(50 * t[0]) == 60, theta).exact
    assert simulate(lambda t: jnp.sin(40 * t), theta).exact


@pytest.mark.slow
def test_a_simulator_with_a_key_is_no_forward_model():
    """Its noise would be taken for the data."""
    prior = fk.Uniform([1.0], [2.0])
    settings = {"noise": 0.1, "num_simulations": 50}
    posterior = fk.invert(lambda t, key: t + jax.random.normal(key, t.shape), prior, **settings, **QUICK)
    with pytest.raises(InputError, match="no simulator"):
        posterior.predict([[1.5]])


def test_only_a_simulator_without_randomness_is_a_forward_model():
    """Gaussian noise around a noisy simulation is not the likelihood, by which `refine` would weigh the draws."""
    generator, prior = np.random.default_rng(0), fk.Uniform([1.0, 1.0], [2.0, 2.0])
    for simulator, known in (
        (lambda t: 2 * t, True),
        (lambda t: t + generator.normal(size=2), False),
        (lambda t, key: t + jax.random.normal(key, t.shape), False),
    ):
        task = task_of(simulator, prior, None, InvertConfig(noise=0.1), None, None)
        assert (task.forward_without_noise(simulate(simulator, draws(40, 2), key=0)) is not None) == known
    problem = task_of(fk.problems.kinematics(), None, None, InvertConfig(noise=0.1), None, None)
    assert problem.forward_without_noise(given_pairs(draws(40, 4), draws(40, 2))) is not None


X = draws(30, 2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((np.zeros((0, 2)), np.zeros((0, 2))), "no numbers"),
        (([], []), "no numbers"),
        ((X[:, :0], X), "no numbers"),
        ((X, X[:, :0]), "no numbers"),
        ((X, X, X), "length 3"),
        ([(x, x) for x in X], "length 30"),
        ({"x": X, "y": X}, "got dict"),
        ((X, 1j * X), "complex"),
        ((X, np.full(X.shape, "2020-01-01", "M8[D]")), "dates"),
        ((X, X.astype(str)), "text"),
        ((X, {"y": X}), "dict"),
        ((X, None), "as many rows"),
    ],
)
def test_odd_pairs_get_one_line(pairs, message):
    with pytest.raises(InputError, match=message) as caught:
        fk.invert(pairs=pairs, **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [None, 0.1])
def test_the_partitioned_form_takes_no_random_numbers_of_a_simulator(noise):
    """Its draws would be far too narrow: they explain the data as if these had no noise but the one that is stated."""
    generator, prior = np.random.default_rng(0), fk.Uniform([1.0, 1.0], [2.0, 2.0])
    for simulator in (lambda t: t[:1] + generator.normal(), lambda t, key: t[:1] + jax.random.normal(key)):
        with pytest.raises(InputError, match="its own random numbers and form=partitioned"):
            fk.invert(simulator, prior, form="partitioned", noise=noise, num_simulations=40, **QUICK)


def test_a_note_says_where_pairs_are_no_draws_of_the_prior():
    prior = fk.priors.Product({"a": fk.Uniform(-2.0, 2.0), "b": fk.LogUniform(0.01, 100.0)})
    drawn = np.asarray(prior.sample(1000, key=0), np.float32)
    pairs = given_pairs(drawn, drawn)
    assert prior_note(drawn, prior, pairs) == ""
    assert prior_note(drawn[:50], prior, pairs) == ""
    for others in (drawn * np.float32([0.6, 1.0]), np.stack([drawn[:, 0], drawn[:, 1] ** 0.5], axis=1)):
        assert prior_note(others, prior, pairs).startswith(UNLIKE_PRIOR)
    half = given_pairs(drawn, np.where(drawn > 0, drawn, np.nan))
    kept = half.theta.astype(np.float32)
    assert prior_note(kept, prior, half) == ""  # that some were left out is said instead
    task = Task(prior, pairs=half)
    assert failures_note(half, task).startswith(f"{half.failed} of 1,000 pairs")
    assert failures_note(half, Task(prior)).startswith(f"{half.failed} of 1,000 simulations")
    assert failures_note(pairs, task) == ""


def test_the_maker_of_a_problem_is_no_simulator():
    with pytest.raises(InputError, match=r"try kinematics\(\)"):
        fk.invert(fk.problems.kinematics, **QUICK)
