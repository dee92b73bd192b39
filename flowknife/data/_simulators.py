"""Calling a simulator row by row, or in batches if every row then has the same observation as alone.

A function may be written for one row (d,) or for a batch (n, d), and most functions of one row also accept a batch:
`t / t.sum()` then divides by the sum over all rows. So shapes are not enough: a batch of different rows must give the
same values as each row alone. In doubt, rows are simulated one by one.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife._types import Key, as_key, as_numbers, error_in_words
from flowknife.errors import InputError

Outcome = np.ndarray | str
"""An observation as a vector, or the reason for its absence."""

_FEW = 32  # too few rows for a batch to be worthwhile
_PROBES = 8
_SEARCHED = 32  # rows in which one that does not fail is searched
_MAPPED = 1e-3  # relative rounding error of a compiled function
_REPEATS, _REPEATS_WORTH = 128, 8192  # repeats of each noisy probe, and rows of a run that make them worthwhile
_BATCHES = 16


@dataclass(frozen=True)
class Way:
    """How a simulator accepts rows.

    Attributes:
        lifted: whether a single row must be passed as a batch of one, shape (1, d).
        batch: "whole" if batches are accepted, "mapped" if they need `jax.vmap`, "" if neither works.
        noisy: whether the same row with the same key gives different observations; None if all tested rows failed.
        tolerance: relative rounding error of a batch, far below any relevant dependence between rows.
        first: two observations of the first row, made before any others, to detect copies of the simulator's random
            generator.
    """

    lifted: bool = False
    batch: Literal["whole", "mapped", ""] = ""
    noisy: bool | None = None
    tolerance: float = 0.0
    first: tuple[Outcome, Outcome] = ("", "")


def plain_way(way: Way) -> dict[str, Any]:
    """A `Way` as plain values for a later process, without the observations, which only this process needs."""
    return {name: value for name, value in vars(way).items() if name != "first"}


def way_of(plain: Any) -> Way:
    """The inverse of `plain_way`.

    Raises:
        ValueError: for other values.
    """
    return Way(**_PlainWay.model_validate(plain).model_dump())


class _PlainWay(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    lifted: bool
    batch: Literal["whole", "mapped", ""]
    noisy: bool | None
    tolerance: float


class Unlike(Exception):
    """A batch gave a row another observation than the row has alone."""


def takes_key(function: Callable[..., Any]) -> bool:
    """Whether a simulator has an argument `key`, which is then its only source of randomness."""
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def row_keys(function: Callable[..., Any], count: int, key: Key) -> np.ndarray:
    """One key per row, as plain numbers for other processes; None for each row if the simulator takes no key."""
    if not takes_key(function):
        return np.full(count, None)
    return np.asarray(jax.random.key_data(jax.random.split(as_key(key), count)))


class Simulator:
    """A simulator that gives each row the same observation alone and in any batch.

    Rows and observations are copied, so that neither side can change the arrays of the other.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._compiled: dict[bool, Callable[..., Any]] = {}

    # -- calls --------------------------------------------------------------------------------------------------------

    def _run(self, theta, key):
        return self.function(theta) if key is None else self.function(theta, key=jax.random.wrap_key_data(key))

    def alone(self, row: np.ndarray, key: Any, lifted: bool) -> Outcome:
        """The observation of a single row."""
        found = _numbers(lambda: self._run(np.array(row[None] if lifted else row), key))
        if isinstance(found, str):
            return found
        if lifted and (found.ndim == 0 or len(found) != 1):
            return f"an observation of shape {found.shape} of one row in a batch; expected (1, m)"
        return found.reshape(-1) if found.size else "an empty observation"

    def _whole(self, theta, keys):
        return _rows(_numbers(lambda: self._run(np.array(theta), keys[0])), len(theta))

    def _mapped(self, lifted, theta, keys):
        if lifted not in self._compiled:

            def one(row, key):
                found = self._run(row[None] if lifted else row, key)
                return jnp.ravel(jnp.asarray(found[0] if lifted else found))

            self._compiled[lifted] = jax.jit(
                lambda theta, keys: jax.vmap(one, in_axes=(0, None if keys is None else 0))(theta, keys)
            )
        known = None if keys[0] is None else keys
        return _rows(_numbers(lambda: self._compiled[lifted](theta, known)), len(theta))

    def _batch(self, way, theta, keys):
        return self._whole(theta, keys) if way.batch == "whole" else self._mapped(way.lifted, theta, keys)

    def outcomes(self, way: Way, theta: np.ndarray, keys: np.ndarray) -> list[Outcome]:
        """The observation of each row.

        Raises:
            Unlike: if a row has another observation alone than in a batch.
        """
        if not way.batch:
            return [self.alone(row, key, way.lifted) for row, key in zip(theta, keys, strict=True)]
        found = self._halved(way, theta, keys)
        if not way.noisy:
            self._verify(way, theta, keys, found)
        return found

    def _halved(self, way, theta, keys):
        """Halve a failing batch until the failing row is alone."""
        if len(theta) == 1:
            return [self.alone(theta[0], keys[0], way.lifted)]
        answer = self._batch(way, theta, keys)
        if not isinstance(answer, str):
            return list(answer)
        half = len(theta) // 2
        return self._halved(way, theta[:half], keys[:half]) + self._halved(way, theta[half:], keys[half:])

    def _verify(self, way, theta, keys, found):
        """Simulate some rows alone and compare: the first, the middle, the last, and the first non-finite ones."""
        answered = [i for i, outcome in enumerate(found) if not isinstance(outcome, str)]
        if not answered:
            return
        if len({len(found[i]) for i in answered}) > 1:
            raise Unlike
        together = np.stack([found[i] for i in answered])
        not_finite = np.flatnonzero(~np.isfinite(together).all(axis=1))[:2]
        typical = typical_of(together)
        for k in sorted({0, len(answered) // 2, len(answered) - 1, *not_finite}):
            alone = self.alone(theta[answered[k]], keys[answered[k]], way.lifted)
            if not alike(together[k], alone, typical, way.tolerance):
                raise Unlike

    # -- how rows are accepted ----------------------------------------------------------------------------------------

    def way(self, theta: np.ndarray, keys: np.ndarray, *, noise: bool = True) -> Way:
        """Determine on a few rows how the simulator accepts rows; without `noise`, few rows skip the test for noise."""
        rows = _different(theta)
        lifted, start, outcome = self._form(theta, keys, rows)
        if isinstance(outcome, str):
            return Way()
        if len(theta) < _FEW and not noise:
            return Way(lifted)
        again = self.alone(theta[start], keys[start], lifted)
        plain = Way(lifted, noisy=not _same(outcome, again), first=(outcome, again) if start == 0 else ("", ""))
        if not plain.noisy and not all(self._repeats_itself(plain, theta[i], keys[i]) for i in rows[:2]):
            plain = replace(plain, noisy=True)
        if len(theta) < _FEW:
            return plain
        if not plain.noisy:
            return self._without_noise(plain, theta, keys, rows, start, len(outcome))
        worth = keys[0] is None and len(theta) >= _REPEATS_WORTH
        return replace(plain, batch="whole") if worth and self._repeats_agree(plain, theta, keys, rows) else plain

    def _repeats_itself(self, way, row, key):
        return _same(*(self.alone(row, key, way.lifted) for _ in range(2)))

    def _form(self, theta, keys, rows):
        """Whether a single row needs a batch axis, the first row that works, and its observation."""
        outcome: Outcome = ""
        for lifted in (False, True):
            for i in dict.fromkeys([0, *rows, *range(min(_SEARCHED, len(theta)))]):
                outcome = self.alone(theta[i], keys[i], lifted)
                if not isinstance(outcome, str):
                    return lifted, i, outcome
        return False, 0, outcome

    def _without_noise(self, plain, theta, keys, rows, start, size):
        in_jax, precision = self._kind(theta[start], keys[start], plain.lifted)
        # batch sizes that differ from all other sizes of the problem
        counts = [count for count in (8, 7, 6, 5) if count not in (theta.shape[1], size)][:2]
        together = self._whole(theta[rows], keys[rows]) if len(rows) >= counts[0] else "too few different rows"
        could_be_whole = not isinstance(together, str) and together.shape[1] == size
        if not could_be_whole and not in_jax:
            return plain  # the common case of a slow simulator, after few calls
        outcomes = [self.alone(theta[i], keys[i], plain.lifted) for i in rows]
        works = [k for k, found in enumerate(outcomes) if not isinstance(found, str) and len(found) == size]
        rows, alone = [rows[k] for k in works], np.array([outcomes[k] for k in works])
        again = [self.alone(theta[i], keys[i], plain.lifted) for i in rows]
        if not all(_same(a, b) for a, b in zip(alone, again, strict=True)):
            return replace(plain, noisy=True)
        by_key = keys[0] is not None and not all(
            _same(a, self.alone(theta[i], keys[i - 1], plain.lifted)) for i, a in zip(rows, alone, strict=True)
        )
        whole = replace(plain, batch="whole", tolerance=precision**0.6)
        mapped = replace(plain, batch="mapped", tolerance=_MAPPED)
        # if all rows have similar observations, a batch may permute them or share noise without being noticed
        telling = len(rows) >= counts[0] and bool(np.any(alone != alone[0]))
        if could_be_whole and not by_key and telling:
            ends = [list(range(counts[0])), list(range(len(rows)))[: -1 - counts[1] : -1]]
            if all(self._agrees(whole, theta, keys, rows, alone, chosen) for chosen in ends):
                return whole
        if in_jax and rows and self._agrees(mapped, theta, keys, rows, alone, list(range(len(rows)))):
            return mapped
        return plain

    def _kind(self, row, key, lifted):
        """Whether the function computes in JAX, and the relative precision of what it returns."""
        found = self._run(np.array(row[None] if lifted else row), key)
        leaves = jax.tree.leaves(found)
        kinds = [leaf.dtype for leaf in leaves if isinstance(getattr(leaf, "dtype", None), np.dtype)]
        precision = max((np.finfo(kind).eps for kind in kinds if kind.kind == "f"), default=np.finfo(np.float64).eps)
        return any(isinstance(leaf, jax.Array) for leaf in leaves), float(precision)

    def _agrees(self, way, theta, keys, rows, alone, chosen):
        """Whether a batch of the chosen rows gives the same observations as each row alone."""
        picked = [rows[k] for k in chosen]
        found = self._batch(way, theta[picked], keys[picked])
        typical = typical_of(alone)
        return not isinstance(found, str) and all(
            alike(f, alone[k], typical, way.tolerance) for f, k in zip(found, chosen, strict=True)
        )

    def _repeats_agree(self, plain, theta, keys, rows):
        """Whether repeats of some rows have the same distribution in a batch as alone; False if too few to decide."""
        if len(rows) < _PROBES:
            return False
        size = len(plain.first[0])
        mixed = np.random.default_rng(0).permutation(np.repeat(np.arange(len(rows)), _REPEATS))
        together = []
        for part in np.split(mixed, _BATCHES):
            found = self._whole(theta[np.asarray(rows)[part]], keys[part])
            if isinstance(found, str) or found.shape[1] != size:
                return False
            together.append(found)
        alone = [[self.alone(theta[i], keys[i], plain.lifted) for _ in range(_REPEATS)] for i in rows]
        if any(isinstance(found, str) or len(found) != size for row in alone for found in row):
            return False
        return _same_law(np.array(alone), np.concatenate(together), mixed)


def _numbers(call: Callable[[], Any]) -> np.ndarray | str:
    """A copy of the result of a call, or the reason why it is unusable.

    Raises:
        InputError: for complex numbers, since any silent conversion would be wrong.
    """
    try:
        found = call()
    except Exception as error:  # a function may raise anything for unexpected input
        return error_in_words(error)
    if found is None:
        return "it returned None"
    try:
        return as_numbers(found, "an observation")
    except InputError as error:
        if "complex" in str(error):
            raise InputError(f"{error}; try their real and imaginary parts, or np.abs, in the simulator") from None
        return str(error).partition(";")[0].removeprefix("got ")


def _rows(found: np.ndarray | str, count: int) -> np.ndarray | str:
    """A batch of observations as rows, if there is one for each row."""
    if isinstance(found, str):
        return found
    if found.ndim == 0 or len(found) != count or not found.size:
        return f"observations of shape {found.shape} of {count} rows"
    return found.reshape(count, -1)


def _different(theta: np.ndarray) -> list[int]:
    """Up to 8 different rows, not in sorted order, so that a simulator that sorts rows is noticed."""
    searched = np.unique(np.linspace(0, len(theta) - 1, min(len(theta), 1000)).astype(int))
    _, index = np.unique(theta[searched], axis=0, return_index=True)
    chosen = index[np.unique(np.linspace(0, len(index) - 1, min(len(index), _PROBES)).astype(int))]
    return [int(searched[i]) for i in np.random.default_rng(0).permutation(chosen)]


def _same(first: Outcome, second: Outcome) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return isinstance(first, str) and isinstance(second, str)
    return np.array_equal(first, second, equal_nan=True)


def typical_of(observations: np.ndarray) -> np.ndarray:
    """The typical size of each number of an observation."""
    return np.median(np.abs(np.where(np.isfinite(observations), observations, 0.0)), axis=0)


def alike(found: np.ndarray, alone: Outcome, typical: np.ndarray, tolerance: float) -> bool:
    """Whether numbers are equal up to rounding, relative to themselves and to typical numbers of their column."""
    if isinstance(alone, str) or found.shape != alone.shape:
        return False
    finite = np.isfinite(alone)
    if not np.array_equal(np.where(finite, 0.0, alone), np.where(np.isfinite(found), 0.0, found), equal_nan=True):
        return False
    scale = (np.abs(alone) + typical)[finite]
    # numbers that are pure rounding errors, such as sin(pi)
    nothing = 16 * np.finfo(np.float64).eps * np.max(scale, initial=0.0)
    return bool(np.all(np.abs(found[finite] - alone[finite]) <= tolerance * scale + nothing))


def _same_law(alone: np.ndarray, together: np.ndarray, rows: np.ndarray) -> bool:
    """Whether noisy repeats alone (k rows, r repeats, m) and in batches (k r, m; of rows `rows`) agree.

    Means and variances of each row are compared, and the means of batches, whose variance shared noise would increase.
    A dependence between rows is about as large as the differences between rows. If noise hides these, the answer is no.
    """
    from scipy import stats

    count, repeats, size = alone.shape
    sorted_rows = np.stack([together[rows == k] for k in range(count)])
    if not (np.isfinite(alone).all() and np.isfinite(together).all()):
        return False
    means = [values.mean(axis=1) for values in (alone, sorted_rows)]
    variances = [values.var(axis=1, ddof=1) for values in (alone, sorted_rows)]
    if not all(np.all(variance > 0) for variance in variances):
        return False
    error = (variances[0] + variances[1]) / repeats
    if np.any(means[0].var(axis=0) < 20**2 * error.mean(axis=0)):
        return False
    kurtosis = np.clip(stats.kurtosis(alone, axis=1), 0, None)
    of_means = np.sum((means[0] - means[1]) ** 2 / error, axis=0)
    of_variances = np.sum(np.log(variances[0] / variances[1]) ** 2 * repeats / (2 * (2 + kurtosis)), axis=0)
    residuals = (together - means[1][rows]) / np.sqrt(variances[0])[rows]
    batches = residuals.reshape(_BATCHES, -1, size)
    of_batches = np.sum(batches.mean(axis=1) ** 2, axis=0) * batches.shape[1]
    found = [
        stats.chi2.sf(of_means, count),
        stats.chi2.sf(of_variances, count),
        stats.chi2.sf(of_batches, _BATCHES - 1),
    ]
    return bool(np.min(found) > 0.01 / (3 * size))
