"""Runs a row: every side in a process of its own, in turn, and what they say as one file of results."""

import json
import math
import os
import platform
import selectors
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.environments import OWN, PLACE, ROOT, Unable, python_of
from benchmarks.rows import Row, Side

PROGRAMS = Path(__file__).parent / "programs"
_MOST_OF_THE_TIME = 0.6  # that is left, for one side to be ready
_FOLDER_OF_PROGRAMS = "FLOWKNIFE_CACHE"  # of compiled ones


class Worker:
    """A process of one side, which measures when it is told to."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        began = {"BENCH_START": str(time.time())}
        # where Python may write no compiled files, every process would compile all of its modules
        environment = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**environment, **began},
        )
        self._left = b""

    def read(self, key: str, deadline: float) -> dict[str, Any]:
        """The next answer of this kind.

        Raises:
            Unable: when the process ends, or the time is up.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._left:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise Unable("no time was left for it")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise Unable(self._last_words())
                self._left += part
        line, self._left = self._left.split(b"\n", 1)
        return json.loads(line)[key]

    def sample(self, deadline: float) -> dict[str, Any]:
        """Let it measure once."""
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unable(self._last_words()) from None
        return self.read("sample", deadline)

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1][:300]}" if lines else f"ended with exit code {self._process.returncode}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


def run_row(
    name: str, row: Row, *, small: bool = False, repeats: int | None = None, most: float | None = None
) -> dict[str, Any]:
    """Measure a row, and return what its file of results holds.

    Args:
        name: of the row.
        row: what is run.
        small: replace settings by those of a trial.
        repeats: samples of each side, if not as many as the row says.
        most: seconds, if fewer than the row may take.
    """
    start, busy = time.monotonic(), busy_cores()
    limit = 3 * row.limit if small else row.limit  # a trial may run beside other work
    deadline = start + min(limit, math.inf if most is None else most)
    repeats = repeats or (1 if small else row.repeats)
    trial = row.small if small else {}
    settings = {**row.settings, **trial}
    systems: dict[str, dict[str, Any]] = {
        label: {"unable": side} for label, side in row.sides.items() if isinstance(side, str)
    }
    pythons = {}
    for label, side in row.sides.items():
        if isinstance(side, Side):
            before = time.monotonic()
            try:
                pythons[label] = python_of(side.environment)
            except Unable as error:
                systems[label] = {"unable": str(error)}
            deadline += time.monotonic() - before  # what is installed once is no part of a row's time
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if row.prepare:
            settings |= row.prepare(settings, folder)
        sides = {label: side for label, side in row.sides.items() if label in pythons}
        measured = _fresh if row.fresh else _waiting
        for label, found in measured(row, sides, pythons, settings, folder, repeats, deadline, trial).items():
            systems[label] = summary(row, found)
    plain = {key: value for key, value in settings.items() if key not in ("data", "out")}
    return {
        "row": name,
        "title": row.title,
        "settings": plain,
        "trial": small,
        "systems": {label: systems[label] for label in row.sides},
        "ratios": ratios(row, systems),
        "machine": machine(busy, busy_cores()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - start, 1),
    }


def _worker(side: Side, python: str, settings: Mapping[str, Any], cache: Path) -> Worker:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", _FOLDER_OF_PROGRAMS: str(cache), "PYTHONWARNINGS": "ignore"}
    if side.environment == OWN:
        environment["PYTHONPATH"] = str(ROOT)
    else:
        environment.pop("PYTHONPATH", None)
    program = PROGRAMS / f"{side.program}.py"
    return Worker([python, str(program), json.dumps(settings)], environment)


def _waiting(row, sides, pythons, settings, folder, repeats, deadline, trial):
    """Each side is one process; they measure in turn, and every round begins with the next."""
    del folder
    found: dict[str, dict[str, Any]] = {label: {"samples": []} for label in sides}
    workers: dict[str, Worker] = {}

    def attempt(label: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Unable as error:
            found[label]["unable"] = str(error)
            workers.pop(label).close()

    # compiled programs are kept from run to run: what they cost is another row
    cache = PLACE / ("small" if trial else "programs")
    try:
        for label, side in sides.items():
            workers[label] = _worker(side, pythons[label], {**settings, **side.settings, **trial, "repeat": 0}, cache)
            # one after the other, so that none compiles while another does; and none takes the time of all others
            now = time.monotonic()
            ready = now + _MOST_OF_THE_TIME * (deadline - now)
            attempt(label, lambda label=label, ready=ready: found[label].update(workers[label].read("about", ready)))
        for i in range(repeats):
            labels = list(workers)
            turn = i % max(len(labels), 1)
            for label in labels[turn:] + labels[:turn]:
                attempt(label, lambda label=label: found[label]["samples"].append(workers[label].sample(deadline)))
    finally:
        for worker in workers.values():
            worker.close()
    return found


def _fresh(row, sides, pythons, settings, folder, repeats, deadline, trial):
    """Each sample is a process of its own."""
    found: dict[str, dict[str, Any]] = {label: {"samples": []} for label in sides}
    cache = folder / "cache"
    for i in range(repeats):
        for label, side in sides.items():
            if "unable" in found[label]:
                continue
            if side.cache == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            place = cache if side.cache else folder / "none"
            worker = _worker(side, pythons[label], {**settings, **side.settings, **trial, "repeat": i}, place)
            try:
                found[label].update(worker.read("about", deadline))
                sample = worker.sample(deadline)
            except Unable as error:
                found[label]["unable"] = str(error)
                continue
            finally:
                worker.close()
            if row.judge:
                sample |= row.judge(settings, folder)
            found[label]["samples"].append(sample)
    return found


def summary(row: Row, found: Mapping[str, Any]) -> dict[str, Any]:
    """Samples with the median and the spread of each measure; without a sample, why there is none."""
    samples = found["samples"]
    if not samples:
        return {"unable": found.get("unable", "no sample was made")}
    medians, spreads = {}, {}
    for name in row.measures:
        values = [sample[name] for sample in samples if sample.get(name) is not None]
        # a mark that some samples do not reach has no median
        medians[name] = _rounded(statistics.median(values)) if len(values) == len(samples) else None
        spreads[name] = [_rounded(min(values)), _rounded(max(values))] if medians[name] is not None else None
    about = {name: value for name, value in found.items() if name not in ("samples", "unable")}
    ended = {"ended": found["unable"]} if "unable" in found else {}
    return {**about, **ended, "medians": medians, "spreads": spreads, "samples": _rounded(samples)}


def _rounded(value: Any) -> Any:
    """Numbers to six digits, which is more than any of them means."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def ratios(row: Row, systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times better the system that is compared is, by the medians of each measure."""
    own = systems.get(row.against, {}).get("medians")
    if not own:
        return {}
    found: dict[str, dict[str, float]] = {}
    for label, system in systems.items():
        if label == row.against or "medians" not in system:
            continue
        for name, measure in row.measures.items():
            a, b = own[name], system["medians"][name]
            if measure.better is None or not a or not b or a < 0 or b < 0:
                continue
            found.setdefault(label, {})[name] = round(b / a if measure.better == "smaller" else a / b, 3)
    return found


def busy_cores(seconds: float = 1.0) -> float | None:
    """How many cores other programs keep busy, while none of a row runs; None where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None

    def times():
        numbers = [int(number) for number in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # all, and idle or waiting for a disk

    all_before, idle_before = times()
    time.sleep(seconds)
    all_after, idle_after = times()
    total = all_after - all_before
    return round((1 - (idle_after - idle_before) / total) * (os.cpu_count() or 1), 2) if total else None


def machine(*busy: float | None) -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        # by other programs, before and after the row: above a few tenths the numbers say little
        "busy_cores": list(busy),
    }
