"""What every program shares: settings from the command line, one JSON line for each answer, the same data and clocks.

A program prints what it is ({"about": ...}), and then one sample for each line that it reads.
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is none of the answers


def settings() -> dict:
    """The settings of the row."""
    return json.loads(sys.argv[1])


def serve(about: dict, sample) -> None:
    """Say what runs here, then measure once for each line of the input."""
    _answer({"about": about})
    for _ in sys.stdin:
        _answer({"sample": sample()})


def _answer(value: dict) -> None:
    _answers.write(json.dumps(value, default=float) + "\n")
    _answers.flush()


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name.lower()] = version(name)
        except PackageNotFoundError:
            continue
    return found


def since_start() -> float:
    """Seconds since this process was started, by the clock of the one that did it."""
    return time.time() - float(os.environ["BENCH_START"])


def threads() -> int:
    """Processor cores that this process may use; every system takes all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def normal_rows(dim: int, count: int) -> np.ndarray:
    """Standard normal rows, the same in every program."""
    return np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)


def per_call(call, seconds: float, least: int = 1) -> float:
    """Mean seconds of a call, over as many calls as take about `seconds`."""
    start, calls = time.perf_counter(), 0
    while calls < least or time.perf_counter() - start < seconds:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def steps_within(call, seconds: float) -> int:
    """How many calls take about `seconds`; the first, which may compile, does not count."""
    call()
    start, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - start < 0.3:
        call()
        calls += 1
    return max(3, round(seconds * calls / (time.perf_counter() - start)))


def mean_of(call, count: int) -> float:
    """Mean seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def trained(s: dict, step, nats) -> dict:
    """Train for a time from the start of the process; nats above the entropy at marks, whose time does not count.

    `step(rate)` makes a step at a learning rate.
    """
    paused, curve, mark = 0.0, [], s["every"]
    while True:
        now = since_start() - paused
        if now >= mark:
            curve.append((round(now, 2), nats()))
            paused += since_start() - paused - now
            mark += s["every"]
            if now >= s["budget"]:
                break
        step(s["rate"] * cosine(now / s["budget"]))
    within = next((seconds for seconds, above in curve if above <= s["close"]), None)
    return {"seconds": curve[-1][0], "nats": curve[-1][1], "within": within, "curve": curve}


def median_of(call, repeats: int) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def peak_mebibytes() -> float:
    """Peak memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux


def auroc(normal: np.ndarray, other: np.ndarray) -> float:
    """Share of pairs in which the other score is the larger one, ties by half."""
    less = np.searchsorted(np.sort(normal), other, "left").sum()
    ties = np.searchsorted(np.sort(normal), other, "right").sum() - less
    return float((less + 0.5 * ties) / (len(normal) * len(other)))


def cosine(done: float) -> float:
    """The share of the learning rate at a share of the budget."""
    return 0.5 * (1 + float(np.cos(np.pi * min(done, 1.0))))


ROWS_AT_ONCE = 16_384
"""Rows of one call, where a million would not fit."""


def chunks(x: np.ndarray) -> list[np.ndarray]:
    """Rows in parts of at most `ROWS_AT_ONCE`."""
    return [x[i : i + ROWS_AT_ONCE] for i in range(0, len(x), ROWS_AT_ONCE)]
