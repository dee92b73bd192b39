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
_AHEAD = 256  # messages under way: enough for many workers, and few enough to hold in memory
_TRY = (
    'ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")), or loky.get_reusable_executor() '
    "(in joblib.externals too)"
)

Place = tuple[str, int]
"""A process: its machine and its number."""


def chunk_size(rows: int) -> int:
    """Rows of one message."""
    return min(-(-rows // _CHUNKS), _MOST_ROWS)


class Chunk(NamedTuple):
    """Rows that are simulated together.

    Attributes:
        number: of the chunk, which with the seed gives its random streams.
        theta: the rows.
        keys: one for each row.
    """

    number: int
    theta: np.ndarray
    keys: np.ndarray


def of_chunk(seed: Sequence[int], number: int) -> tuple[int, ...]:
    """The seed of the random streams of a chunk; never that of all: a zero at the end of a seed counts not."""
    return (*seed, number + 1)


class LostWorker(str):
    """Why a row has no observation: its worker ended, which says nothing about the simulator."""

    __slots__ = ()


@contextlib.contextmanager
def seeded(seed: Sequence[int]) -> Generator[None, None, None]:
    """The random streams of NumPy and Python, which simulators without a key draw from, begin anew in the block."""
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
    """One message to a worker; without a way, it asks for the way."""

    token: str  # of the run: a worker loads the simulator once
    simulator: Any  # pickled to bytes, or as it is for a pool that has a way of its own to send it
    home: Place
    seed: tuple[int, ...]
    theta: np.ndarray
    keys: np.ndarray
    way: Way | None
    first: np.ndarray  # the first row of all


@dataclass(frozen=True)
class _Answer:
    """What a worker sends back.

    Attributes:
        found: the way, or the observations; None where a batch gave a row another observation than it has alone.
        place: the process.
        first: two observations of the first row, made before any other; empty if the process had made some before.
    """

    found: Way | list[Outcome] | None
    place: Place
    first: tuple[Outcome, ...] = ()


def _place() -> Place:
    return platform.node(), os.getpid()


_loaded: dict[str, Simulator] = {}  # in a worker process: the simulator of the latest run


def _load(task: _Task) -> Simulator:
    """The simulator, the same object for all messages of a run, so that it is compiled once."""
    if task.token not in _loaded:
        simulator = task.simulator
        if isinstance(simulator, bytes):
            try:
                simulator = pickle.loads(simulator)
            except Exception as error:
                raise _unsendable(error_in_words(error)) from None
        _loaded.clear()
        _loaded[task.token] = simulator
    return _loaded[task.token]


def _perform(task: _Task) -> _Answer:
    """What a worker does."""
    away = _place() != task.home
    fresh = away and task.token not in _loaded
    simulator = _load(task) if away else task.simulator

    def stream():  # threads share their random numbers with the caller
        return seeded(task.seed) if away else contextlib.nullcontext()

    if task.way is None:
        with stream():
            return _Answer(simulator.way(task.theta, task.keys), _place())
    first: tuple[Outcome, ...] = ()
    if fresh and task.way.noisy and task.keys[0] is None:
        with stream():
            first = tuple(simulator.alone(task.first, None, task.way.lifted) for _ in range(2))
    try:
        with stream():  # from its start: the chunk that a worker begins with is as any other
            return _Answer(simulator.outcomes(task.way, task.theta, task.keys), _place(), first)
    except Unlike:
        return _Answer(None, _place(), first)


class Pool:
    """An executor of the caller's that runs a simulator.

    Args:
        executor: something with `submit`, as in `concurrent.futures`, loky and Dask, with `apply_async`, as in
            `multiprocessing`, or with `map`.
        simulator: the function.
        first: the first row of all.
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
                raise _unsendable(error_in_words(error)) from None
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
        """How the simulator takes rows such as these, found out in a worker.

        Raises:
            InputError: if no worker can do that.
        """
        # a few rows say it, but the number of all rows decides what it is worth
        _, found = next(self._answers([replace(self.blank, theta=theta, keys=keys)]))
        if isinstance(found, Exception):
            raise _of_failure(found)
        self._streams[found.place] = found.found.first
        return found.found

    def outcomes(self, way: Way, chunks: Iterable[Chunk]) -> Iterator[list[Outcome] | None]:
        """The observations of each chunk, or None if its batches cannot be trusted.

        A chunk that is lost with its worker has the reason, a `LostWorker`, in place of each observation.
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
        """Refuse a random generator of which every process has the same copy."""
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
        """The rows of each task, and its answer or the exception in its place, in order; few are under way at once."""
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
                waiting.extend(self._begun(group))
                while len(waiting) >= _AHEAD:
                    yield answered()
            while waiting:
                yield answered()
        finally:
            for _, _, cancel in waiting:
                cancel()

    def _begun(self, tasks: Sequence[_Task]) -> list[tuple[int, Callable[[], Any], Callable[[], Any]]]:
        """Of tasks handed to the executor: their rows, what waits for the answer, and what cancels it."""
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
        except Exception as error:  # a pool that is broken, or shut down
            waits = [lambda error=error: _raise(error)] * len(tasks)
        return list(zip(rows, waits, cancels, strict=True))


def _raise(error):
    raise error


def _workers(pool) -> set[int] | None:
    """The processes of a `multiprocessing.Pool`; None if it replaces them by itself."""
    if getattr(pool, "_maxtasksperchild", None) or isinstance(pool, multiprocessing.pool.ThreadPool):
        return None
    return {process.pid for process in getattr(pool, "_pool", [])}


def _awaited(pool, result, workers):
    """A result of a `multiprocessing.Pool`, which waits forever for a worker that has died."""
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


def _unsendable(reason: str) -> InputError:
    return InputError(
        f"got a simulator that cannot be sent to another process ({reason}); expected a function, or an object of a "
        "class, at the top level of a module, no lambda, closure, or definition of a notebook; try moving it into a "
        ".py file, or loky.get_reusable_executor() (in joblib.externals too), which sends those as well"
    )


def _of_failure(error: Exception) -> InputError:
    """Why the first message to a pool had no answer."""
    if isinstance(error, InputError):
        return error
    words = error_in_words(error)
    if isinstance(error, (pickle.PicklingError, AttributeError, TypeError)) or "pickle" in words.lower():
        return _unsendable(words)
    if isinstance(error, (concurrent.futures.BrokenExecutor, ChildProcessError)) or "Terminated" in words:
        return InputError(
            f"got a pool whose processes ended before the first simulation ({words}); expected processes that can "
            'import the program; try if __name__ == "__main__": around what starts the pool, or another simulator'
        )
    return InputError(f"got a pool that does not run ({words}); expected one that is open; try {_TRY}")
