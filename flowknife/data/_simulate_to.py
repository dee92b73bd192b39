"""Simulate to disk, chunk by chunk.

Each chunk has its own key, derived from the key of the set and the number of the chunk. So a chunk depends neither on
the process that simulates it nor on other chunks, and an interrupted set is completed by the same call. Every file is
written to a temporary name in the same folder and then renamed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowknife._files import remove_drafts, replacing, sha256_of
from flowknife._types import Key, as_key
from flowknife.data._chunks import FORMAT, HEADER, MANIFEST, array_at, chunk_file, digest_of, head_of, manifest_of
from flowknife.data._pools import Chunk, LostWorker, chunk_size
from flowknife.data._simulators import Outcome, Way, plain_way, row_keys, takes_key, way_of
from flowknife.data.sets import SimulationSet, read_set
from flowknife.data.simulations import Here, Pooled, Report, seed_of
from flowknife.errors import InputError, StorageError


def simulate_to(
    folder: str | os.PathLike[str],
    simulator: Callable[..., Any],
    draw: Callable[[int, jax.Array], np.ndarray],
    rows: int,
    *,
    about: Mapping[str, Any],
    key: Key = None,
    executor: Any = None,
    chunk: int | None = None,
    shard: tuple[int, int] = (0, 1),
    on_progress: Report | None = None,
) -> SimulationSet | None:
    """Simulate the missing chunks of a set.

    Args:
        folder: a new folder, or that of the same set.
        simulator: see `simulate`.
        draw: (number of rows, key) -> parameters, the same for the same key.
        rows: number of simulations of the whole set.
        about: description of the simulations in plain values; a folder with another description is refused.
        key: int or JAX key.
        executor: see `simulate`.
        chunk: rows per chunk; default by `rows`, at most 10,000.
        shard: (i, n): every n-th chunk, starting with the i-th, so that n processes with one folder share the work.
        on_progress: called with (done, total) of the rows of this shard.

    Returns:
        the set, or None while chunks of other shards are missing.

    Raises:
        InputError: see `simulate`; or a simulator without a key, whose observations vary, in a pool of threads.
        StorageError: the folder holds other data, or a worker was lost; the same call continues.
    """
    folder, key = Path(folder), as_key(key)
    chunk = chunk or chunk_size(rows)
    says = {"format": FORMAT, **about, "rows": rows, "chunk": chunk, "key": seed_of(key)}
    job = _Job(folder, simulator, draw, key, json.loads(json.dumps(says)))
    job.claim()
    runs = (
        Here(simulator, seed_of(key)) if executor is None else Pooled(executor, simulator, job.made_of(0).theta[0], key)
    )
    while True:
        way = job.way(runs, executor)
        mine = range(shard[0], job.chunks, shard[1])
        todo = [number for number in mine if not job.has(number, way)]
        if job.run(runs, way, todo, (len(mine) - len(todo)) * chunk, min(len(mine) * chunk, rows), on_progress):
            break
    return job.finish(way, mine)


@dataclass(frozen=True)
class _Job:
    """A set that is being simulated."""

    folder: Path
    simulator: Callable[..., Any]
    draw: Callable[[int, jax.Array], np.ndarray]
    key: jax.Array
    about: dict[str, Any]
    size: list[int] = field(default_factory=list)  # numbers of an observation, once known

    @property
    def chunks(self) -> int:
        return -(-self.about["rows"] // self.about["chunk"])

    def claim(self):
        """Write the description to the folder, or check it against the one that is there."""
        if (self.folder / MANIFEST).exists():
            found = manifest_of(self.folder).about
            changed = [name for name in {**found, **self.about} if found.get(name) != self.about.get(name)]
            if changed:
                name = changed[0]
                raise StorageError(
                    f"got {self.folder}, which holds other simulations ({name}={found.get(name)} there, "
                    f"{self.about.get(name)} here); expected the same, or a new folder"
                )
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise StorageError(f"got {self.folder} for simulations, which holds other files; expected a new folder")
        self._write_manifest({})

    def _write_manifest(self, more):
        text = json.dumps({"simulations": FORMAT, "about": self.about, **more}, indent=1)
        with replacing(self.folder / MANIFEST) as place:
            place.write_text(text + "\n", encoding="utf-8")

    def way(self, runs, executor) -> Way:
        """How the simulator accepts rows, as determined on the first chunk."""
        found = manifest_of(self.folder).way
        if found is not None:
            return way_of(found)
        first = self.made_of(0)
        way = runs.way(first.theta, first.keys)
        if way.noisy and first.keys[0] is None and _in_threads(executor):
            raise InputError(
                "got a simulator whose observations vary, without an argument key, in a pool of threads, which share "
                "their random numbers; expected a key, or processes; try def simulator(theta, key)"
            )
        way = replace(way, first=("", ""))
        self._write_manifest({"way": plain_way(way)})
        return way

    def made_of(self, number: int) -> Chunk:
        """The parameters and keys of a chunk."""
        size = self._rows(number)
        theta_key, own = jax.random.split(jax.random.fold_in(self.key, number))
        return Chunk(number, self.draw(size, theta_key), row_keys(self.simulator, size, own))

    def _rows(self, number: int) -> int:
        return min(self.about["chunk"], self.about["rows"] - number * self.about["chunk"])

    def has(self, number, way) -> bool:
        """Whether a chunk exists, is complete, and was simulated in this way."""
        path, rows = chunk_file(self.folder, number), self._rows(number)
        try:
            head = head_of(path, rows)
            metadata, theta, y = head.metadata, *(array_at(path, head.places[name]) for name in ("theta", "y"))
            failed = np.flatnonzero(~np.isfinite(y).all(axis=1)) if y.shape[1] else range(rows)
            as_made = metadata.batch == way.batch and metadata.digest == digest_of([theta, y])
            return as_made and sorted(metadata.failed) == list(failed)
        except StorageError:
            return False

    def run(self, runs, way, todo, done, total, on_progress) -> bool:
        """Simulate chunks; returns False if batches were inconsistent, after changing `way`."""
        made = (self.made_of(number) for number in todo)
        thetas: dict[int, np.ndarray] = {}

        def told(chunks):
            for chunk in chunks:
                thetas[chunk.number] = chunk.theta
                yield chunk

        found = runs.outcomes(way, told(made))
        try:
            for number, outcomes in zip(todo, found, strict=True):
                if outcomes is None:
                    self._write_manifest({"way": plain_way(replace(way, batch=""))})
                    return False
                if isinstance(outcomes[0], LostWorker):
                    raise StorageError(
                        f"got no answer for chunk {number}: {outcomes[0]}; {done:,} of {total:,} simulations are in "
                        f"{self.folder}; try the same again, which makes the others"
                    )
                self._write(number, thetas.pop(number), outcomes, way)
                done = min(done + len(outcomes), total)
                if on_progress:
                    on_progress(done, total)
        finally:
            found.close()  # cancels pending tasks
        return True

    def _write(self, number, theta, outcomes: Sequence[Outcome], way):
        from safetensors.numpy import save

        sizes = {len(outcome) for outcome in outcomes if not isinstance(outcome, str)}
        if not self.size:
            self.size.extend(self._known())
        sizes |= set(self.size)
        if len(sizes) > 1:
            raise InputError(
                f"got observations of {' and '.join(map(str, sorted(sizes)))} numbers in chunk {number}; expected one "
                "length"
            )
        self.size[:] = sizes
        y = np.full((len(outcomes), max(sizes, default=0)), np.nan)
        failed, reason = [], ""
        for row, outcome in enumerate(outcomes):
            if not isinstance(outcome, str):
                y[row] = outcome
            if isinstance(outcome, str) or not np.isfinite(y[row]).all():
                failed.append(row)
                reason = reason or (outcome if isinstance(outcome, str) else "a number that is not finite")
        theta = np.ascontiguousarray(theta, np.float64)
        metadata = {"failed": failed, "reason": reason, "batch": way.batch, "digest": digest_of([theta, y])}
        content = save({"theta": theta, "y": y}, metadata={HEADER: json.dumps(metadata)})
        with replacing(chunk_file(self.folder, number)) as place:
            place.write_bytes(content)

    def _known(self) -> set[int]:
        """The length of an observation, if a chunk is available."""
        for path in self.folder.glob("chunk-*.safetensors"):
            with contextlib.suppress(StorageError):  # a damaged chunk is simulated again
                if width := head_of(path).places["y"][0][1]:
                    return {width}
        return set()

    def finish(self, way, mine: range) -> SimulationSet | None:
        """Write the manifest once all chunks exist; chunks of other shards are checked first."""
        if not all(chunk_file(self.folder, number).exists() for number in range(self.chunks)):
            return None
        entries: list[dict[str, Any]] = []
        for number in range(self.chunks):
            path = chunk_file(self.folder, number)
            if number not in mine and not self.has(number, way):
                return None
            metadata = head_of(path, self._rows(number)).metadata
            entry = {"rows": self._rows(number), "failed": len(metadata.failed), "sha256": sha256_of(path)}
            entries.append(entry | ({"reason": metadata.reason} if metadata.reason else {}))
        whole = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()
        exact = not takes_key(self.simulator) and way.noisy is False
        self._write_manifest({"way": plain_way(way), "exact": exact, "sha256": whole, "chunks": entries})
        remove_drafts(self.folder, *(chunk_file(self.folder, number).name for number in range(self.chunks)))
        return read_set(self.folder)


def _in_threads(executor) -> bool:
    kind = type(executor).__name__
    return "Thread" in kind
