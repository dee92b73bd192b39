"""Running a simulator in a pool of threads or processes, in chunks that do not depend on the number of workers."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing.pool
import os
import pickle
import platform
import random
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from flowknife._types import error_in_words
from flowknife.data._simulators import Outcome, Simulator, Unlike, Way, _same
from flowknife.errors import InputError

_CHUNKS, _MOST_ROWS = 128, 10_000
_AHEAD = 256  # pending tasks: enough for many workers, few enough for the memory
_TRY = (
    'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")), or loky.get_reusable_executor() '
    "(in joblib.externals too)"
)

Place = tuple[str, int]
"""A process: its machine and its process id."""


def chunk_size(rows: int) -> int:
    """Rows of one task."""
    return min(-(-rows // _CHUNKS), _MOST_ROWS)


class Chunk(NamedTuple):
    """Rows that are simulated together.

    Attributes:
        number: number of the chunk; it determines its random streams together with the seed.
        theta: the rows of parameters.
        keys: the key of each row.
    """

    number: int
    theta: np.ndarray
    keys: np.ndarray


def of_chunk(seed: Sequence[int], number: int) -> tuple[int, ...]:
    """The seed of the random streams of a chunk; differs from the common seed, since trailing zeros are ignored."""
    return (*seed, number + 1)


class LostWorker(str):
    """A row has no observation because its worker ended, not because the simulator failed."""

    __slots__ = ()


@contextlib.contextmanager
def seeded(seed: Sequence[int]) -> Generator[None, None, None]:
    """Reseed the global random generators of NumPy and Python inside the block, for simulators without a key."""
    words = np.random.SeedSequence(tuple(seed)).generate_state(8)
    before = np.random.get_state(), random.getstate()  # noqa: NPY002, the stream that simulators draw from
    np.random.seed(words[:4])  # noqa: NPY002
    random.seed(words[4:].tobytes())
    try:
        yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


@dataclass(frozen=True)
class _Task:
    """One task for a worker: simulate rows or, without a `Way`, determine it."""

    token: str  # identifies the run: a worker loads the simulator once
    simulator: Any  # pickled, or unpickled for a pool with its own serialisation
    home: Place
    seed: tuple[int, ...]
    theta: np.ndarray
    keys: np.ndarray
    way: Way | None
    first: np.ndarray  # the first row of all


@dataclass(frozen=True)
class _Answer:
    """The answer of a worker.

    Attributes:
        found: the `Way`, or the observations; None if a batch gave a row another observation than the row alone.
        place: the process.
        first: two observations of the first row, made before any others; empty if the process had already made some.
    """

    found: Way | list[Outcome] | None
    place: Place
    first: tuple[Outcome, ...] = ()


def _place() -> Place:
    return platform.node(), os.getpid()


_loaded: dict[str, Simulator] = {}  # in a worker process, the simulator of the latest run


def _load(task: _Task) -> Simulator:
    """The simulator, the same object for all tasks of a run, so that it is compiled once."""
    if task.token not in _loaded:
        simulator = task.simulator
        if isinstance(simulator, bytes):
            try:
                simulator = pickle.loads(simulator)
            except Exception as error:
                raise _not_picklable(error_in_words(error)) from None
        _loaded.clear()
        _loaded[task.token] = simulator
    return _loaded[task.token]


def _perform(task: _Task) -> _Answer:
    """Perform a task in a worker."""
    away = _place() != task.home
    fresh = away and task.token not in _loaded
    simulator = _load(task) if away else task.simulator

    def stream():  # threads share the global random generators with the caller
        return seeded(task.seed) if away else contextlib.nullcontext()

    if task.way is None:
        with stream():
            return _Answer(simulator.way(task.theta, task.keys), _place())
    first: tuple[Outcome, ...] = ()
    if fresh and task.way.noisy and task.keys[0] is None:
        with stream():
            first = tuple(simulator.alone(task.first, None, task.way.lifted) for _ in range(2))
    try:
        with stream():  # from its start, so that the first chunk of a worker is like any other
            return _Answer(simulator.outcomes(task.way, task.theta, task.keys), _place(), first)
    except Unlike:
        return _Answer(None, _place(), first)


class Pool:
    """Runs a simulator in an executor of the caller.

    Args:
        executor: an object with `submit`, as in `concurrent.futures`, loky and Dask, with `apply_async`, as in
            `multiprocessing`, or with `map`.
        simulator: the function.
        first: the very first row.
        seed: seed of the random streams of NumPy and Python; each chunk has its own.

    Raises:
        InputError: for a pool of forked processes, or a simulator that cannot be sent to another process.
    """

    def __init__(self, executor: Any, simulator: Any, first: np.ndarray, seed: Sequence[int]):
        self.executor = executor
        _check(executor)
        sent: Any = Simulator(simulator)
        plain = isinstance(executor, (concurrent.futures.ProcessPoolExecutor, multiprocessing.pool.Pool))
        if plain and not isinstance(executor, multiprocessing.pool.ThreadPool):
            try:
                sent = pickle.dumps(sent)
            except Exception as error:
                raise _not_picklable(error_in_words(error)) from None
        self.blank = _Task(
            token=secrets.token_hex(8),
            simulator=sent,
            home=_place(),
            seed=tuple(seed),
            theta=first[:0],
            keys=first[:0],
            way=None,
            first=first,
        )
        self._streams: dict[Place, tuple[Outcome, ...]] = {}

    def way(self, theta: np.ndarray, keys: np.ndarray) -> Way:
        """Determine in a worker how the simulator accepts rows such as these.

        Raises:
            InputError: if no worker can do that.
        """
        # a few rows are enough, but the total number of rows decides how many tests are worthwhile
        _, found = next(self._answers([replace(self.blank, theta=theta, keys=keys)]))
        if isinstance(found, Exception):
            raise _of_failure(found)
        self._streams[found.place] = found.found.first
        return found.found

    def outcomes(self, way: Way, chunks: Iterable[Chunk]) -> Iterator[list[Outcome] | None]:
        """The observations of each chunk, or None if its batches are inconsistent.

        In a chunk whose worker was lost, each observation is replaced by a `LostWorker` with the reason.
        """
        tasks = (
            replace(
                self.blank, way=way, theta=chunk.theta, keys=chunk.keys, seed=of_chunk(self.blank.seed, chunk.number)
            )
            for chunk in chunks
        )
        for rows, answer in self._answers(tasks):
            if isinstance(answer, InputError):
                raise answer
            if isinstance(answer, Exception):
                yield [LostWorker(f"a worker was lost ({error_in_words(answer)})")] * rows
            else:
                self._check_stream(answer)
                yield answer.found

    def _check_stream(self, answer):
        """Refuse a simulator whose own random generator is identical in every process."""
        if len(answer.first) != 2 or any(isinstance(outcome, str) for outcome in answer.first):
            return
        one, two = answer.first
        telling = not _same(one, two) and not (len(one) < 8 and np.array_equal(one, np.round(one)))
        for other in self._streams.values():
            if telling and len(other) == 2 and _same(one, other[0]) and _same(two, other[1]):
                raise InputError(
                    "got a simulator whose own random generator gives the same numbers in every process; expected "
                    "one that draws from np.random, which is seeded for each chunk, or takes a key; try "
                    "def simulator(theta, key)"
                )
        self._streams[answer.place] = answer.first

    def _answers(self, tasks: Iterable[_Task]) -> Iterator[tuple[int, Any]]:
        """The rows of each task, and its answer or exception, in order; only a few tasks are pending at a time."""
        waiting: deque[tuple[int, Callable[[], Any], Callable[[], Any]]] = deque()

        def answered():
            rows, wait, _ = waiting.popleft()
            try:
                return rows, wait()
            except Exception as error:
                return rows, error

        tasks = iter(tasks)
        try:
            while group := list(itertools.islice(tasks, 1 if hasattr(self.executor, "submit") else _AHEAD)):
                waiting.extend(self._submitted(group))
                while len(waiting) >= _AHEAD:
                    yield answered()
            while waiting:
                yield answered()
        finally:
            for _, _, cancel in waiting:
                cancel()

    def _submitted(self, tasks: Sequence[_Task]) -> list[tuple[int, Callable[[], Any], Callable[[], Any]]]:
        """Submit tasks; for each, the number of rows, a function that waits for the answer, and one that cancels."""
        rows = [len(task.theta) for task in tasks]
        cancels: list[Callable[[], Any]] = [lambda: None] * len(tasks)
        waits: list[Callable[[], Any]]
        try:
            if hasattr(self.executor, "submit"):
                futures = [self.executor.submit(_perform, task) for task in tasks]
                waits = [future.result for future in futures]
                cancels = [getattr(future, "cancel", lambda: None) for future in futures]
            elif hasattr(self.executor, "apply_async"):
                workers = _workers(self.executor)
                results = [self.executor.apply_async(_perform, (task,)) for task in tasks]
                waits = [lambda result=result: _awaited(self.executor, result, workers) for result in results]
            else:
                answers = iter(self.executor.map(_perform, tasks))
                waits = [lambda: next(answers)] * len(tasks)
        except Exception as error:  # a broken or closed pool
            waits = [lambda error=error: _raise(error)] * len(tasks)
        return list(zip(rows, waits, cancels, strict=True))


def _raise(error):
    raise error


def _workers(pool) -> set[int] | None:
    """The processes of a `multiprocessing.Pool`; None if the pool replaces dead ones by itself."""
    if getattr(pool, "_maxtasksperchild", None) or isinstance(pool, multiprocessing.pool.ThreadPool):
        return None
    return {process.pid for process in getattr(pool, "_pool", [])}


def _awaited(pool, result, workers):
    """A result of a `multiprocessing.Pool`, which by itself would wait forever for a dead worker."""
    while workers is not None and not result.ready():
        result.wait(0.2)
        if _workers(pool) != workers:
            result.wait(1.0)
            if not result.ready():
                raise ChildProcessError("a process of the pool ended")
    return result.get()


def _check(executor):
    kind = type(executor)
    if isinstance(executor, type) or not any(hasattr(executor, name) for name in ("submit", "apply_async", "map")):
        got = f"the class {executor.__name__}" if isinstance(executor, type) else kind.__name__
        raise InputError(f"got {got} as the executor; expected one with submit or map; try {_TRY}")
    contexts = [getattr(executor, name, None) for name in ("_mp_context", "_ctx", "_context")]
    method = next((context.get_start_method() for context in contexts if hasattr(context, "get_start_method")), "")
    if method == "fork" and not isinstance(executor, multiprocessing.pool.ThreadPool):
        raise InputError(
            f"got {kind.__name__} with the start method fork, whose processes hang in JAX; expected spawn or "
            f"forkserver; try {_TRY}"
        )


def _not_picklable(reason: str) -> InputError:
    return InputError(
        f"got a simulator that cannot be sent to another process ({reason}); expected a function, or an object of a "
        "class, at the top level of a module, no lambda, closure, or definition of a notebook; try moving it into a "
        ".py file, or loky.get_reusable_executor() (in joblib.externals too), which sends those as well"
    )


def _of_failure(error: Exception) -> InputError:
    """The error for a first task without an answer."""
    if isinstance(error, InputError):
        return error
    words = error_in_words(error)
    if isinstance(error, (pickle.PicklingError, AttributeError, TypeError)) or "pickle" in words.lower():
        return _not_picklable(words)
    if isinstance(error, (concurrent.futures.BrokenExecutor, ChildProcessError)) or "Terminated" in words:
        return InputError(
            f"got a pool whose processes ended before the first simulation ({words}); expected processes that can "
            'import the program; try if __name__ == "__main__": around what starts the pool, or another simulator'
        )
    return InputError(f"got a pool that does not run ({words}); expected one that is open; try {_TRY}")
