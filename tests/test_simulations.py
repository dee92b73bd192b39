"""Simulated pairs: rows or batches, NumPy or JAX, with keys or without, slow or fragile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowknife.data import given_pairs, simulate
from flowknife.errors import InputError

THETA = np.random.default_rng(0).normal(size=(60, 2))
MATRIX = np.array([[1.0, 2.0, 0.0], [0.5, 0.0, -1.0]])
EXPECTED = np.sin(THETA) @ MATRIX


def numpy_row(theta):
    if theta.shape != (2,):
        raise ValueError("one row, please")
    return np.sin(theta) @ MATRIX


def numpy_either(theta):
    return np.sin(theta) @ MATRIX


def numpy_batch(theta):
    assert theta.ndim == 2
    return np.sin(theta) @ MATRIX


def jax_row(theta):
    a, b = theta
    return jnp.stack([jnp.sin(a) + 0.5 * jnp.sin(b), 2 * jnp.sin(a), -jnp.sin(b)])


@pytest.mark.parametrize("simulator", [numpy_row, numpy_either, numpy_batch, jax_row], ids=lambda f: f.__name__)
def test_every_kind_of_simulator_gives_the_same_pairs(simulator):
    found = simulate(simulator, THETA)
    np.testing.assert_allclose(found.y, EXPECTED, atol=1e-5)
    np.testing.assert_array_equal(found.theta, THETA)
    assert found.failed == 0


def with_key(theta, key):
    return theta + jax.random.normal(key, theta.shape)


def with_key_of_one_row(theta, key):
    a, _ = theta
    return a + jax.random.normal(key, (3,))


@pytest.mark.parametrize("simulator", [with_key, with_key_of_one_row], ids=lambda f: f.__name__)
def test_keys_make_noise_of_its_own_for_every_row_and_the_same_in_every_run(simulator):
    same = np.zeros((60, 2))
    first, second, other = (simulate(simulator, same, key=k).y for k in (1, 1, 2))
    assert len(np.unique(first[:, 0])) == 60
    np.testing.assert_array_equal(first, second)
    assert not np.any(first == other)


def test_noise_that_rows_of_a_batch_would_share_is_drawn_row_by_row():
    rng = np.random.default_rng(0)
    found = simulate(lambda theta: theta + rng.normal(size=2), np.zeros((60, 2)))
    assert len(np.unique(found.y[:, 0])) == 60


def test_noise_of_numpy_in_a_jax_function_is_not_frozen_by_compilation():
    rng = np.random.default_rng(0)
    found = simulate(lambda theta: jnp.stack([theta[0] + rng.normal(), theta[1] * theta[0]]), np.zeros((60, 2)))
    assert len(np.unique(found.y[:, 0])) == 60


def fails_where_positive(theta):
    if np.any(theta[..., 0] > 0):
        raise ArithmeticError("no solution")
    return np.sin(theta)


def nan_where_positive(theta):
    return np.where(theta[..., :1] > 0, np.nan, np.sin(theta))


@pytest.mark.parametrize(
    ("simulator", "reason"),
    [(fails_where_positive, "ArithmeticError: no solution"), (nan_where_positive, "a number that is not finite")],
)
def test_failures_are_counted_left_out_and_told(simulator, reason):
    found = simulate(simulator, THETA)
    kept = THETA[THETA[:, 0] <= 0]
    assert found.failed == len(THETA) - len(kept) > 10
    np.testing.assert_allclose(found.y, np.sin(kept))
    np.testing.assert_array_equal(found.theta, kept)
    assert found.reason == reason


def test_a_failure_of_single_rows_is_told_too():
    def row(theta):
        a, _ = theta
        if a > 0:
            raise ArithmeticError
        return np.array([a])

    found = simulate(row, np.concatenate([-np.abs(THETA), THETA]))
    assert found.failed == np.sum(THETA[:, 0] > 0)


def test_progress_reaches_the_end():
    calls = []
    simulate(numpy_row, THETA, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (60, 60)


def changes_shape(theta):
    a, _ = theta
    return np.zeros(3 if a > 1 else 2)


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        (changes_shape, "expected one length"),
        (lambda theta: 1 / 0, "ZeroDivisionError"),
        (lambda theta: np.full(theta.shape, np.nan), "usable pairs"),
        (lambda theta: "text", "text"),
    ],
)
def test_useless_simulators_get_one_line(simulator, message):
    with pytest.raises(InputError, match=message):
        simulate(simulator, THETA)


def test_given_pairs_lose_rows_that_are_not_finite():
    y = EXPECTED.copy()
    y[3, 1] = np.nan
    found = given_pairs(THETA, y)
    assert found.failed == 1
    assert len(found.theta) == len(found.y) == 59


@pytest.mark.parametrize(
    ("theta", "y", "message"),
    [
        (THETA, EXPECTED[:-1], "as many rows"),
        (THETA[:1], EXPECTED[:1], "1 usable pairs"),
        (np.array([["a", "b"]]), EXPECTED, "text"),
        (3.0, EXPECTED, "as many rows"),
    ],
)
def test_bad_pairs_get_one_line(theta, y, message):
    with pytest.raises(InputError, match=message):
        given_pairs(theta, y)
