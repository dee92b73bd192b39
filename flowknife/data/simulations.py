"""Pairs (theta, y) of parameters and observations, given or simulated by a Python function, whatever its habits."""

import inspect
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from flowknife._types import Key, as_key
from flowknife.errors import InputError

_AT_ONCE = 10_000
_LEAST = 8

Report = Callable[[int, int], None]
Outcome = np.ndarray | str
"""An observation as a vector, or in words why there is none."""


@dataclass(frozen=True)
class Simulations:
    """Pairs of parameters and observations.

    Attributes:
        theta: parameters, shape (n, d).
        y: observations, shape (n, m).
        failed: pairs left out, since a simulation raised an exception or a number is not finite.
        reason: the first such failure in words, or "".
        exact: the simulator gives the same observation of the same parameters every time.
    """

    theta: np.ndarray
    y: np.ndarray
    failed: int = 0
    reason: str = ""
    exact: bool = False


def given_pairs(theta: Any, y: Any) -> Simulations:
    """Pairs that exist already; those with a number that is not finite are left out and counted.

    Args:
        theta: parameters, shape (n, d), or (n,) for a single one.
        y: observations, shape (n, ...), flattened to vectors.

    Raises:
        InputError: for anything but numbers, different lengths, or fewer than 8 usable pairs.
    """
    try:
        theta, y = (np.asarray(values, np.float64) for values in (theta, y))
    except (TypeError, ValueError) as error:
        raise InputError(f"got pairs that are not numbers ({_told(error)}); expected two arrays, (theta, y)") from None
    if not theta.ndim or not y.ndim or len(theta) != len(y):
        raise InputError(f"got theta of shape {theta.shape} and y of shape {y.shape}; expected as many rows in both")
    return _finite(theta.reshape(len(theta), -1), list(y.reshape(len(y), -1)))


def simulate(
    simulator: Callable[..., Any],
    theta: np.ndarray,
    *,
    key: Key = None,
    executor: Any = None,
    on_progress: Report | None = None,
) -> Simulations:
    """Observations of given parameters.

    Args:
        simulator: `simulator(theta)` or `simulator(theta, key=...)`, of one row (d,) or of a batch (n, d); it is tried
            out which. One that takes a key gets a JAX key; one that does not may draw random numbers of its own.
        theta: parameters, shape (n, d).
        key: int, JAX key or None.
        executor: something with `map`, as in `concurrent.futures`, that runs the rows of a slow simulator.
        on_progress: called with (done, total).

    Returns:
        the pairs whose simulation did not fail.

    Raises:
        InputError: if all simulations fail, or an observation has another shape than the ones before.
    """
    theta = np.asarray(theta)
    keys = _keys(simulator, len(theta), key)
    batched = None if executor else _batched(simulator, theta, keys)
    if batched is None:
        run = executor.map if executor else map
        made = run(_attempt, itertools.repeat(simulator), theta, keys)
        outcomes = _watched(made, len(theta), on_progress)
    else:
        outcomes = []
        size = max(min(_AT_ONCE, len(theta) // 20), 1)
        for start in range(0, len(theta), size):
            outcomes += _halving(batched, theta[start : start + size], keys[start : start + size])
            if on_progress:
                on_progress(len(outcomes), len(theta))
    found = _finite(theta, outcomes)
    if keys[0] is not None:
        return found
    first, again = (_attempt(simulator, found.theta[0], None) for _ in range(2))
    exact = not isinstance(first, str) and not isinstance(again, str) and np.array_equal(first, again)
    return replace(found, exact=exact)


def predicted(simulator: Callable[..., Any], theta: np.ndarray) -> np.ndarray:
    """Observations of a simulator without noise, shape (n, m); NaN where it fails."""
    theta = np.asarray(theta)
    batched = _batched(simulator, theta, np.full(len(theta), None))
    if batched is None:
        outcomes = [_attempt(simulator, row, None) for row in theta]
    else:
        outcomes = _halving(batched, theta, np.full(len(theta), None))
    size = max((outcome.size for outcome in outcomes if not isinstance(outcome, str)), default=1)
    return np.stack([np.full(size, np.nan) if isinstance(outcome, str) else outcome for outcome in outcomes])


def _keys(simulator, count, key) -> Any:
    """One key per row, as plain numbers that travel to other processes; or None for each."""
    try:
        wanted = "key" in inspect.signature(simulator).parameters
    except (TypeError, ValueError):
        wanted = False
    return np.asarray(jax.random.key_data(jax.random.split(as_key(key), count))) if wanted else np.full(count, None)


def _run(simulator, theta, key):
    return simulator(theta) if key is None else simulator(theta, key=jax.random.wrap_key_data(key))


def _attempt(simulator, row, key) -> Outcome:
    try:
        return np.asarray(_run(simulator, row, key), float).reshape(-1)
    except Exception as error:
        return _told(error)


def _batched(simulator, theta, keys):
    """The simulator as a function of many rows (theta, keys), or None if it takes single rows only."""

    def whole(theta, keys):
        return _run(simulator, theta, keys[0])

    def mapped(theta, keys):
        if keys[0] is None:
            return jax.vmap(simulator)(theta)
        return jax.vmap(lambda row, key: _run(simulator, row, key))(theta, keys)

    # a number of rows that is not the number of parameters: a batch has to give as many observations
    count = min(7 if theta.shape[1] != 7 else 11, len(theta))
    tried = [_attempt(simulator, theta[i], keys[i]) for i in range(min(_LEAST, len(theta)))]
    works = [i for i, outcome in enumerate(tried) if not isinstance(outcome, str)]
    if not works:
        answer = _answer(whole, theta[:count], keys[:count])
        if isinstance(answer, str) or len(answer) != count:
            raise InputError(f"got a simulator that fails: {tried[0]}; expected y = simulator(theta), an array")
        return whole
    first = works[0]
    row, again = tried[first], _attempt(simulator, theta[first], keys[first - 1])
    noisy = isinstance(again, str) or not np.array_equal(row, again, equal_nan=True)
    # all alike: if all rows share one draw of the noise, it is a function of single rows
    same = np.repeat(theta[first : first + 1], count, axis=0), np.repeat(keys[first : first + 1], count, axis=0)
    answer = _answer(whole, *same)
    fits = not isinstance(answer, str) and len(answer) == count and answer[0].size == np.size(row)
    if fits and not (noisy and count > 1 and np.array_equal(answer[0], answer[1], equal_nan=True)):
        return whole
    if not noisy or keys[0] is not None:  # a draw that is not told by a key would be frozen when it is compiled
        compiled = jax.jit(mapped)
        answer = _answer(compiled, *same)
        if not isinstance(answer, str) and np.allclose(answer[0].reshape(-1), row, 1e-3, 1e-5, equal_nan=True):
            return compiled
    return None


def _answer(batched, theta, keys) -> Outcome:
    try:
        answer = np.asarray(batched(theta, keys), float)
    except Exception as error:  # whatever a function does with what it was not written for
        return _told(error)
    return answer if answer.ndim else "a single number"


def _halving(batched, theta, keys) -> list[Outcome]:
    """Observations of several rows; a batch that fails is halved until the row that is to blame is alone."""
    answer = _answer(batched, theta, keys)
    if not isinstance(answer, str):
        if len(answer) != len(theta):
            raise InputError(f"got {len(answer)} observations of {len(theta)} rows; expected one of each")
        return list(answer.reshape(len(theta), -1))
    if len(theta) == 1:
        return [answer]
    half = len(theta) // 2
    return _halving(batched, theta[:half], keys[:half]) + _halving(batched, theta[half:], keys[half:])


def _watched(outcomes: Iterable[Outcome], total: int, on_progress: Report | None) -> list[Outcome]:
    kept = []
    for outcome in outcomes:
        kept.append(outcome)
        if on_progress and (len(kept) % max(total // 200, 1) == 0 or len(kept) == total):
            on_progress(len(kept), total)
    return kept


def _finite(theta, outcomes: list[Outcome]) -> Simulations:
    """The pairs that can be used, and how many cannot."""
    size, good, reasons = None, [], []
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, str):
            reasons.append(outcome)
            continue
        size = outcome.size if size is None else size
        if outcome.size != size:
            raise InputError(
                f"got an observation of {outcome.size} numbers in row {i + 1} and of {size} before; expected one length"
            )
        if np.isfinite(outcome).all() and np.isfinite(theta[i]).all():
            good.append(i)
        else:
            reasons.append("a number that is not finite")
    if len(good) < _LEAST:
        why = f" ({reasons[0]})" if reasons else ""
        raise InputError(
            f"got {len(good)} usable pairs of {len(outcomes)}{why}; expected at least {_LEAST}, better some thousands"
        )
    y = np.stack([outcomes[i] for i in good])
    return Simulations(np.asarray(theta)[good], y, len(reasons), reasons[0] if reasons else "")


def _told(error: Exception) -> str:
    words = " ".join(str(error).split())[:120]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
