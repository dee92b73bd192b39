"""Pairs (theta, y) of parameters and observations, given or simulated by a Python function."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from flowknife._types import Key, as_key, as_numbers
from flowknife.data._pools import Chunk, Pool, chunk_size, of_chunk, seeded
from flowknife.data._simulators import Outcome, Simulator, Unlike, Way, alike, row_keys, typical_of
from flowknife.errors import InputError

_AT_ONCE = 10_000
_LEAST = 8
_RAREST = 4  # observations to repeat, each the most extreme in one of its numbers
_KEEP_EVERY = 5.0  # seconds between writes of finished chunks

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulations:
    """Pairs of parameters and observations.

    Attributes:
        theta: parameters, shape (n, d).
        y: observations, shape (n, m).
        failed: number of pairs left out, because the simulation raised an exception or a number is not finite.
        reason: reason of the first failure, or "".
        exact: whether the simulator is deterministic.
    """

    theta: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    failed: int = 0
    reason: str = ""
    exact: bool = False


@runtime_checkable
class Kept(Protocol):
    """Storage of finished simulations, so that they are not repeated."""

    def read(self) -> tuple[Way | None, list[Outcome]]:
        """How the simulator accepts rows, and the outcomes of the first rows; (None, []) if nothing is stored."""
        ...

    def write(self, way: Way, first: int, outcomes: Sequence[Outcome]) -> None:
        """Store the outcomes of the rows from `first` on."""
        ...

    def forget(self) -> None:
        """Remove everything stored."""
        ...


def given_pairs(theta: Any, y: Any, *, gaps: bool = False) -> Simulations:
    """Existing pairs; pairs with a non-finite number are left out and counted.

    Args:
        theta: parameters, shape (n, d), or (n,) for a single one.
        y: observations, shape (n, ...), flattened to vectors.
        gaps: NaN in observations means a missing number; only observations without any number are left out.

    Raises:
        InputError: for anything but numbers, different lengths, or fewer than 8 usable pairs.
    """
    theta, y = as_numbers(theta, "theta of the pairs"), as_numbers(y, "y of the pairs")
    if not theta.ndim or not y.ndim or len(theta) != len(y):
        raise InputError(f"got theta of shape {theta.shape} and y of shape {y.shape}; expected as many rows in both")
    if not theta.size or not y.size:
        raise InputError(
            f"got theta of shape {theta.shape} and y of shape {y.shape}, which hold no numbers; expected (n, d) and "
            f"(n, m) with at least {_LEAST} rows, better some thousands"
        )
    return _finite(theta.reshape(len(theta), -1), list(y.reshape(len(y), -1)), gaps)


def simulate(
    simulator: Callable[..., Any],
    theta: Any,
    *,
    key: Key = None,
    executor: Any = None,
    on_progress: Report | None = None,
    kept: Kept | None = None,
    gaps: bool = False,
) -> Simulations:
    """Observations of given parameters.

    The observation of a row never depends on other rows. Batches are used only if they give different rows the same
    observations as each row alone; some rows of every batch are compared. Otherwise, or if noise hides the comparison,
    rows are simulated one by one.

    Args:
        simulator: `simulator(theta)` or `simulator(theta, key=...)`, of one row (d,), of a batch (n, d), or of both; if
            it accepts a single row, its result for that row is the reference. With an argument `key` it gets a JAX key
            for each row; otherwise it may draw its own random numbers.
        theta: parameters, shape (n, d); the simulator gets copies, in double precision.
        key: int, JAX key or None.
        executor: a pool that runs the simulator in chunks: an object with `submit` (`concurrent.futures`, loky, Dask),
            `apply_async` (`multiprocessing`) or `map`. The random streams of NumPy and Python are seeded for each
            chunk, so that results do not depend on the number of processes.
        on_progress: called with (done, total).
        kept: stores finished chunks; chunks that an earlier process stored are not simulated again.
        gaps: NaN in observations means a missing number; only observations without any number are left out.

    Returns:
        the pairs whose simulation did not fail.

    Raises:
        InputError: if all simulations fail, observations are complex or of several lengths, the executor is a pool of
            forked processes, or the simulator cannot be sent to its processes.
    """
    theta = _as_rows(theta)
    keys = row_keys(simulator, len(theta), key)
    runs = Here(simulator) if executor is None else Pooled(executor, simulator, theta[0], key)
    way, outcomes = (None, []) if kept is None else kept.read()
    way = way or runs.way(theta, keys)
    made = _in_chunks(runs, way, theta, keys, on_progress, kept, outcomes)
    found = _finite(theta, made, gaps)
    if keys[0] is not None:
        return found
    if way.noisy is False and len(outcomes) < len(theta) and not _repeatable(runs, way, found):
        way = replace(way, noisy=True)
        if kept is not None:  # when resumed, they are not checked again
            kept.forget()
            kept.write(way, 0, made)
    if way.noisy is None:  # all tested rows failed, but this one does not
        way = Simulator(simulator).way(found.theta[:1], keys[:1])
    return replace(found, exact=way.noisy is False)


def _repeatable(runs, way: Way, found: Simulations) -> bool:
    """Whether the most extreme observations are reproducible; a few random rows miss rare noise, such as few counts."""
    known = np.where(np.isfinite(found.y), found.y, 0.0)
    off = np.abs(known - np.median(known, axis=0))
    columns = np.unique(np.linspace(0, off.shape[1] - 1, min(off.shape[1], _RAREST)).astype(int))
    rows = np.unique(off[:, columns].argmax(axis=0))
    # a number that no other chunk has, since it seeds the random numbers in a pool
    chunk = Chunk(len(found.theta), found.theta[rows], np.full(len(rows), None))
    again = next(iter(runs.outcomes(replace(way, batch=""), [chunk]))) or []
    typical = typical_of(known)
    return all(
        isinstance(outcome, str) or alike(found.y[row], outcome, typical, way.tolerance)
        for row, outcome in zip(rows, again, strict=False)
    )


def predicted(simulator: Callable[..., Any], theta: Any) -> np.ndarray:
    """Observations of a noise-free simulator, shape (n, m), as by `simulate`; NaN where it fails."""
    theta = _as_rows(theta)
    runs, keys = Here(simulator), np.full(len(theta), None)
    outcomes = _in_chunks(runs, runs.simulator.way(theta, keys, noise=False), theta, keys)
    sizes = {len(outcome) for outcome in outcomes if not isinstance(outcome, str)}
    if len(sizes) != 1:
        got = f"observations of {' and '.join(map(str, sorted(sizes)))} numbers" if sizes else str(outcomes[0])
        raise InputError(f"got {got} from the simulator; expected one vector of numbers for each row")
    size = sizes.pop()
    return np.stack([np.full(size, np.nan) if isinstance(outcome, str) else outcome for outcome in outcomes])


def _as_rows(theta) -> np.ndarray:
    theta = as_numbers(theta, "theta")
    if theta.ndim != 2 or not theta.size:
        raise InputError(f"got theta of shape {theta.shape}; expected rows of parameters, (n, d)")
    return theta


class Here:
    """Simulations in this process.

    Args:
        simulator: the function.
        seed: seeds the random streams of each chunk as in a pool; default: the streams are not reseeded.
    """

    def __init__(self, simulator: Any, seed: Sequence[int] | None = None):
        self.simulator, self.seed = Simulator(simulator), seed

    def _stream(self, seed):
        return contextlib.nullcontext() if self.seed is None else seeded(seed)

    def way(self, theta: np.ndarray, keys: np.ndarray) -> Way:
        """How the simulator accepts rows such as these."""
        with self._stream(self.seed):
            return self.simulator.way(theta, keys)

    def chunk_size(self, way: Way, rows: int) -> int:
        """Rows per call."""
        return max(min(_AT_ONCE, rows // 20), 1) if way.batch else max(rows // 200, 1)

    def outcomes(self, way: Way, chunks: Iterable[Chunk]) -> Iterator[list[Outcome] | None]:
        """The observations of each chunk, or None if its batches are inconsistent."""
        for chunk in chunks:
            try:
                with self._stream(self.seed and of_chunk(self.seed, chunk.number)):
                    found = self.simulator.outcomes(way, chunk.theta, chunk.keys)
            except Unlike:
                found = None
            yield found


class Pooled(Pool):
    """Simulations in a pool; the key seeds the chunks."""

    def __init__(self, executor: Any, simulator: Any, first: np.ndarray, key: Key):
        super().__init__(executor, simulator, first, seed_of(key))

    def chunk_size(self, way: Way, rows: int) -> int:
        """Rows of one task."""
        return chunk_size(rows)


def seed_of(key: Key) -> list[int]:
    """The integers of a key, to seed random streams."""
    return [int(word) for word in np.asarray(jax.random.key_data(as_key(key))).ravel()]


def _in_chunks(
    runs,
    way: Way,
    theta: np.ndarray,
    keys: np.ndarray,
    on_progress: Report | None = None,
    kept: Kept | None = None,
    known: Sequence[Outcome] = (),
) -> list[Outcome]:
    """The observations of all rows; if a batch is inconsistent, starts again row by row.

    `known` holds the observations of the first rows. New ones are stored in `kept` as they arrive.
    """
    rows = len(theta)
    size = runs.chunk_size(way, rows)
    done = len(known) // size if len(known) < rows else -(-rows // size)  # whole chunks
    outcomes = list(known[: done * size])
    chunks = runs.outcomes(
        way,
        (
            Chunk(start // size, theta[start : start + size], keys[start : start + size])
            for start in range(done * size, rows, size)
        ),
    )
    written, last = len(outcomes), time.monotonic()
    try:
        for chunk in chunks:
            if chunk is None:
                break
            outcomes += chunk
            if kept is not None and time.monotonic() - last >= _KEEP_EVERY:
                kept.write(way, written, outcomes[written:])
                written, last = len(outcomes), time.monotonic()
            if on_progress:
                on_progress(len(outcomes), rows)
        else:
            return outcomes
    finally:
        if kept is not None and written < len(outcomes):
            kept.write(way, written, outcomes[written:])
    chunks.close()  # cancels pending tasks
    if kept is not None:
        kept.forget()
    return _in_chunks(runs, replace(way, batch=""), theta, keys, on_progress, kept)


def _finite(theta: np.ndarray, outcomes: Sequence[Outcome], gaps: bool = False) -> Simulations:
    """The usable pairs, and the number of the others."""
    made = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    odd = next((i for i in made if len(outcomes[i]) != len(outcomes[made[0]])), None)
    if odd is not None:
        raise InputError(
            f"got an observation of {len(outcomes[odd])} numbers in row {odd + 1} and of {len(outcomes[made[0]])} "
            "before; expected one length"
        )
    usable = np.zeros(len(outcomes), bool)
    y = np.stack([outcomes[i] for i in made]) if made else np.zeros((0, 1))
    known = np.isfinite(y).any(axis=1) & ~np.isinf(y).any(axis=1) if gaps else np.isfinite(y).all(axis=1)
    usable[made] = known & np.isfinite(theta[made]).all(axis=1)
    failed = np.flatnonzero(~usable)
    first = outcomes[failed[0]] if len(failed) else ""
    reason = first if isinstance(first, str) else "a number that is not finite"
    if usable.sum() < _LEAST:
        raise InputError(
            f"got {usable.sum()} usable pairs of {len(outcomes)}{f' ({reason})' if reason else ''}; expected at least "
            f"{_LEAST}, better some thousands"
        )
    return Simulations(theta[usable], y[usable[made]], len(failed), reason)
