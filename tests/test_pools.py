"""Simulators in pools: threads, and processes that are spawned."""

import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife.data import simulate
from flowknife.errors import InputError

THETA = np.random.default_rng(0).uniform(1, 2, (600, 3))
SPAWN = multiprocessing.get_context("spawn")


def row(theta):
    return [theta[0] * theta[1], theta[2]]


def share(theta):
    return theta / theta.sum()


def in_jax(theta):
    return jnp.stack([theta[0] * theta[1], jnp.sin(theta[2])])


def with_key(theta, key):
    return theta[0] + jax.random.normal(key, (2,))


def with_noise(theta):
    return [theta[0] + np.random.normal(), theta[1] + random.gauss(0, 1)]  # noqa: NPY002


def fails(theta):
    if theta[0] > 1.5:
        raise ArithmeticError("no solution")
    return theta[:1] if theta.ndim == 1 else 1 / 0


def complex_numbers(theta):
    return theta + 1j


def kills(theta):
    if theta[0] > THETA[300:, 0].max() - 1e-12:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return row(theta)


OWN = np.random.default_rng(0)


def with_a_generator_of_its_own(theta):
    time.sleep(0.01)  # so that both workers get some
    return [theta[0] + OWN.normal(), theta[1] + OWN.normal()]


@pytest.fixture(scope="module")
def spawned():
    with ProcessPoolExecutor(1, mp_context=SPAWN) as executor:
        yield executor


def test_processes_give_what_there_is_without_them(spawned):
    for simulator in (row, share, with_key):
        found, expected = (simulate(simulator, THETA, key=1, executor=e) for e in (spawned, None))
        np.testing.assert_allclose(found.y, expected.y, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found.theta, THETA)
        assert found.exact == expected.exact == (simulator is not with_key)
    found = simulate(fails, THETA, executor=spawned)
    assert found.failed == np.sum(THETA[:, 0] > 1.5) and found.reason == "ArithmeticError: no solution"
    with pytest.raises(InputError, match="complex"):
        simulate(complex_numbers, THETA, executor=spawned)


def test_random_streams_are_seeded_by_the_key_for_each_chunk(spawned):
    first, again, other = (simulate(with_noise, THETA, key=key, executor=spawned) for key in (1, 1, 2))
    np.testing.assert_array_equal(first.y, again.y)
    assert not np.any(first.y == other.y)
    noise = first.y - THETA[:, :2]
    assert len(np.unique(noise.round(12))) == noise.size
    assert not first.exact


def test_progress_is_told_in_chunks(spawned):
    calls = []
    simulate(row, THETA, executor=spawned, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1] == (600, 600) and 50 < len(calls) <= 128


class Messages:
    """An executor that counts what it is sent."""

    def __init__(self):
        self.count = 0

    def map(self, function, messages):
        for message in messages:
            self.count += 1
            yield function(message)


def test_there_are_far_fewer_messages_than_rows():
    executor, theta = Messages(), np.random.default_rng(0).uniform(1, 2, (20_000, 2))
    np.testing.assert_array_equal(simulate(np.sin, theta, executor=executor).y, np.sin(theta))
    assert executor.count < 150


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ThreadPool])
def test_threads_take_lambdas(pool):
    with pool(2) as executor:
        np.testing.assert_array_equal(
            simulate(lambda t: t[:1] * t[1:2], THETA, executor=executor).y[:, 0], THETA[:, 0] * THETA[:, 1]
        )
        np.random.seed(0)  # noqa: NPY002
        found = simulate(with_noise, THETA, executor=executor).y - THETA[:, :2]
    assert len(np.unique(found.round(12))) == found.size


def make_closure():
    hidden = 2.0
    return lambda theta: hidden * theta


class Local:
    def __init__(self):
        self.function = make_closure()

    def __call__(self, theta):
        return self.function(theta)


@pytest.mark.parametrize(
    "simulator", [lambda theta: theta, make_closure(), Local()], ids=["lambda", "closure", "inside"]
)
def test_what_cannot_be_sent_is_told(simulator):
    with (
        ProcessPoolExecutor(1, mp_context=SPAWN) as executor,  # no process is started
        pytest.raises(
            InputError, match=r"cannot be sent to another process .* lambda, closure, or .*notebook.* loky"
        ) as caught,
    ):
        simulate(simulator, THETA, executor=executor)
    assert "\n" not in str(caught.value)


def test_what_a_process_cannot_find_is_told(spawned, monkeypatch):
    """A function of a notebook is pickled by its name, and no other process knows it."""
    import sys

    def local(theta):
        return theta

    local.__module__, local.__qualname__ = "__main__", "local"
    monkeypatch.setattr(sys.modules["__main__"], "local", local, raising=False)
    with pytest.raises(InputError, match=r"cannot be sent to another process .*local"):
        simulate(local, THETA, executor=spawned)
    assert len(simulate(row, THETA, executor=spawned).y) == 600  # the pool still works


def test_forked_processes_are_refused_by_name():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(InputError, match="ProcessPoolExecutor with the start method fork") as caught,
    ):
        fk.invert(fk.problems.kinematics(), executor=executor, num_simulations=20)
    assert 'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))' in str(caught.value)
    assert "loky" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pool_that_is_closed_is_told():
    with ThreadPoolExecutor(1) as executor:
        pass
    with pytest.raises(InputError, match="cannot schedule new futures after shutdown"):
        simulate(row, THETA, executor=executor)


@pytest.mark.parametrize("executor", [4, "spawn", ProcessPoolExecutor, object()])
def test_what_is_no_pool_is_told(executor):
    with pytest.raises(InputError, match="expected one with submit or map"):
        simulate(row, THETA, executor=executor)


# -- slow: more processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(spawned):
    with ProcessPoolExecutor(2, mp_context=SPAWN) as two:
        for simulator in (with_noise, with_key, in_jax):
            one_process, two_processes = (simulate(simulator, THETA, key=3, executor=e).y for e in (spawned, two))
            np.testing.assert_array_equal(one_process, two_processes)


@pytest.mark.slow
def test_copies_of_a_random_generator_are_refused():
    with ProcessPoolExecutor(2, mp_context=SPAWN) as executor:
        list(executor.map(time.sleep, [3, 3]))  # both processes run
        with pytest.raises(InputError, match="the same numbers in every process"):
            simulate(with_a_generator_of_its_own, THETA, executor=executor)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [lambda: ProcessPoolExecutor(1, mp_context=SPAWN), lambda: SPAWN.Pool(1)])
def test_chunks_that_are_done_outlive_their_worker(pool):
    with pool() as executor:
        found = simulate(kills, THETA, executor=executor)
    assert 300 <= len(found.y) < 600 and len(found.y) + found.failed == 600
    assert "worker was lost" in found.reason
    np.testing.assert_array_equal(found.y, [row(theta) for theta in found.theta])


@pytest.mark.slow
def test_pools_of_multiprocessing_and_of_loky(spawned):
    from joblib.externals.loky import get_reusable_executor

    with SPAWN.Pool(1) as executor:
        np.testing.assert_array_equal(simulate(row, THETA, executor=executor).y, simulate(row, THETA).y)
    executor = get_reusable_executor(1)
    np.testing.assert_array_equal(
        simulate(lambda t: t[:2] * t[2], THETA, executor=executor).y, THETA[:, :2] * THETA[:, 2:]
    )
    executor.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("make", [fk.problems.two_moons, fk.problems.gravity, fk.problems.kinematics])
def test_problems_are_simulated_in_processes(spawned, make):
    settings = {"layers": 1, "width": 4, "depth": 1, "train": {"steps": 1}, "num_simulations": 100, "key": 0}
    with_pool, without = (fk.invert(make(), executor=e, show_progress=False, **settings) for e in (spawned, None))
    np.testing.assert_allclose(with_pool.held_out["y"], without.held_out["y"], rtol=1e-4, atol=1e-4)
