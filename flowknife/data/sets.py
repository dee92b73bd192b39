"""A set of simulations on disk: chunks of rows that are made once, by whichever process, and read as two arrays.

The folder holds

    simulations.json              what is simulated; once it is complete also the SHA-256 of every chunk
    prior.safetensors             the prior, where one is known
    chunk-00000042.safetensors    parameters and observations of some rows, with a checksum

Each chunk has a key of its own, derived from that of the set and from its number. So no chunk depends on who makes it,
when, or what was made before; and a folder that was left at any time is completed by doing the same again. Every file
is written next to its place and moved there.

A folder may come from anybody: whatever is in it is compared with what is written here, and no number of rows is
believed before the file that should hold them is known to be as large.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pydantic

from flowknife._files import open_file, plain_values, read_json, remove_drafts, replacing, sha256_of
from flowknife._types import Key, as_key
from flowknife.data._memory import room_in_memory
from flowknife.data._pools import Chunk, LostWorker, chunk_size
from flowknife.data._simulators import Outcome, Way, plain_way, row_keys, takes_key, way_of
from flowknife.data.simulations import Here, Pooled, Report, seed_of
from flowknife.errors import InputError, StorageError, reason_of

MANIFEST = "simulations.json"
"""What a set of simulations says of itself."""

PRIOR = "prior.safetensors"
"""The prior of a set of simulations."""

_FORMAT = 1
_HEADER = "flowknife"
_MOST_MANIFEST = 2**26  # bytes: some 150 for each chunk
_MOST_HEADER = 2**26  # bytes of a chunk, which lists the rows that failed
_OPEN = 64  # chunks that are mapped at a time

# What is read, field by field; lists, since that is what JSON has.


class _Said(pydantic.BaseModel, frozen=True, extra="ignore", strict=True, allow_inf_nan=False):
    """Base: values of another type are errors."""


class _Entry(_Said):
    """What a manifest says of a chunk."""

    rows: int = pydantic.Field(ge=1, lt=2**40)
    failed: int = pydantic.Field(ge=0)
    sha256: str
    reason: str = ""


class _About(_Said):
    """What is simulated; all of it is compared, and this is read."""

    rows: int = pydantic.Field(ge=1, lt=2**50)
    chunk: int = pydantic.Field(ge=1, lt=2**40)
    problem: str = ""
    names: list[str] = []
    y_names: list[str] = []


class _Manifest(_Said):
    """A manifest; without chunks, one of a set that is not complete."""

    simulations: Literal[1]
    about: dict[str, Any]
    way: dict[str, Any] | None = None
    exact: bool = False
    sha256: str = ""
    chunks: list[_Entry] | None = None

    @property
    def said(self) -> _About:
        return _About.model_validate(self.about)

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> "_Manifest":
        said = self.said
        if self.way is not None:
            way_of(self.way)
        if self.chunks is not None:
            rows = [entry.rows for entry in self.chunks]
            if not rows or sum(rows) != said.rows or set(rows[:-1]) - {said.chunk} or not 0 < rows[-1] <= said.chunk:
                raise ValueError("chunks of another number of rows")
        return self


class _Made(_Said):
    """What a chunk says of itself."""

    failed: list[int]
    reason: str
    batch: str
    digest: str


class _Array(_Said):
    """What the header of a chunk says of an array."""

    dtype: Literal["F64"]
    shape: list[int] = pydantic.Field(min_length=2, max_length=2)
    data_offsets: list[int] = pydantic.Field(min_length=2, max_length=2)


@dataclass(frozen=True)
class _Chunk:
    """The head of a chunk: what it says, and where its arrays lie in the file."""

    said: _Made
    places: dict[str, tuple[tuple[int, int], int]]  # by name, shape and first byte


@dataclass(frozen=True)
class SimulationSet:
    """Pairs of parameters and observations on disk, which need not fit in memory.

    Attributes:
        folder: where they are.
        rows: simulations that were made.
        failed: those without an observation.
        reason: the first such failure in words, or "".
        sha256: of all of them; equal for equal sets.
        exact: the simulator gives the same observation of the same parameters every time.
        problem: the name of the problem, where it was one.
        names: of the parameters.
        y_names: of the data; () where they have none.
    """

    folder: Path
    rows: int
    failed: int
    reason: str
    sha256: str
    exact: bool
    problem: str = ""
    names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ()

    def usable(self) -> np.ndarray:
        """The numbers of the rows that have an observation.

        Raises:
            StorageError: a chunk is damaged, or their list does not fit in memory.
        """
        if 8 * self.rows > room_in_memory():
            raise StorageError(f"got {self.folder} of {self.rows:,} rows; expected as many as have a place in memory")
        failed: list[np.ndarray] = []
        start = 0
        for entry, path in self._chunks():
            if entry.failed:
                failed.append(start + np.asarray(_head(path, entry.rows).said.failed, np.int64))
            start += entry.rows
        return np.delete(np.arange(self.rows), np.concatenate(failed)) if failed else np.arange(self.rows)

    @property
    def theta(self) -> "ChunkedRows":
        """The parameters, (rows, d)."""
        return self._array("theta")

    @property
    def y(self) -> "ChunkedRows":
        """The observations, (rows, m); NaN where a simulation failed."""
        return self._array("y")

    def verify(self) -> None:
        """Compare every chunk with its checksum.

        Raises:
            StorageError: one is missing or damaged.
        """
        for entry, path in self._chunks():
            _head(path, entry.rows)  # before as much is read as the file is said to hold
            if sha256_of(path) != entry.sha256:
                raise _damaged(path, "its checksum is another")

    def _chunks(self) -> list[tuple[_Entry, Path]]:
        entries = _manifest(self.folder).chunks or []
        return [(entry, chunk_file(self.folder, number)) for number, entry in enumerate(entries)]

    def _array(self, name):
        found = self._chunks()
        return ChunkedRows(tuple(path for _, path in found), tuple(entry.rows for entry, _ in found), name)


class ChunkedRows:
    """Rows of many files as one array, of which parts are read on demand.

    Args:
        paths: safetensors files.
        sizes: the rows of each.
        name: of the array in each file.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], name: str):
        self._ends = np.cumsum(sizes)
        self._mapped = functools.lru_cache(_OPEN)(lambda number: _mapped(paths[number], name, sizes[number]))
        widths = (self._mapped(number).shape[1] for number in range(len(paths)))
        self.shape = (int(self._ends[-1]), next((width for width in widths if width), 0))  # 0: all of a chunk failed
        self.dtype = np.dtype(np.float64)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        flat = rows.reshape(-1)
        found = np.full((len(flat), self.shape[1]), np.nan)
        chunks = np.searchsorted(self._ends, flat, side="right")
        order = np.argsort(chunks, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1) if len(flat) else ():
            number = int(chunks[part[0]])
            mapped = self._mapped(number)
            if mapped.shape[1] not in (0, self.shape[1]):
                raise StorageError(
                    f"got chunks with rows of {self.shape[1]} and of {mapped.shape[1]} numbers; expected one length; "
                    "try to simulate again"
                )
            if mapped.shape[1]:
                found[part] = mapped[flat[part] - (self._ends[number] - len(mapped))]
        return found.reshape(*rows.shape, self.shape[1])


# -- making one -------------------------------------------------------------------------------------------------------


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
    """Make the chunks of a set that are missing.

    Args:
        folder: where to; a new one, or one of the same set.
        simulator: see `simulate`.
        draw: (number of rows, key) -> parameters, the same for the same key.
        rows: simulations of the whole set.
        about: what is simulated, in plain values: a folder that says something else is refused.
        key: int or JAX key.
        executor: see `simulate`.
        chunk: rows of a chunk; default by `rows`, 10,000 at most.
        shard: (i, n): only every n-th chunk from the i-th on, so that n processes with one folder share the work.
        on_progress: called with (done, total) of the rows of this shard.

    Returns:
        the set, or None while chunks of other shards are missing.

    Raises:
        InputError: see `simulate`; or a simulator without a key, whose observations vary, in a pool of threads.
        StorageError: the folder holds something else, or a worker was lost: the same call goes on.
    """
    folder, key = Path(folder), as_key(key)
    chunk = chunk or chunk_size(rows)
    says = {"format": _FORMAT, **about, "rows": rows, "chunk": chunk, "key": seed_of(key)}
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
    """A set that is being made."""

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
        """Say what is simulated in the folder, or check that this is what it says."""
        if (self.folder / MANIFEST).exists():
            found = _manifest(self.folder).about
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
        self._say({})

    def _say(self, more):
        text = json.dumps({"simulations": _FORMAT, "about": self.about, **more}, indent=1)
        with replacing(self.folder / MANIFEST) as place:
            place.write_text(text + "\n", encoding="utf-8")

    def way(self, runs, executor) -> Way:
        """How the simulator takes its rows, as it was found out with the first chunk."""
        found = _manifest(self.folder).way
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
        self._say({"way": plain_way(way)})
        return way

    def made_of(self, number: int) -> Chunk:
        """The parameters and keys of a chunk."""
        size = self._rows(number)
        theta_key, own = jax.random.split(jax.random.fold_in(self.key, number))
        return Chunk(number, self.draw(size, theta_key), row_keys(self.simulator, size, own))

    def _rows(self, number: int) -> int:
        return min(self.about["chunk"], self.about["rows"] - number * self.about["chunk"])

    def has(self, number, way) -> bool:
        """Whether a chunk is there, whole, and made in this way."""
        path, rows = chunk_file(self.folder, number), self._rows(number)
        try:
            head = _head(path, rows)
            said, theta, y = head.said, *(_array_at(path, head.places[name]) for name in ("theta", "y"))
            failed = np.flatnonzero(~np.isfinite(y).all(axis=1)) if y.shape[1] else range(rows)
            as_made = said.batch == way.batch and said.digest == _digest([theta, y])
            return as_made and sorted(said.failed) == list(failed)
        except StorageError:
            return False

    def run(self, runs, way, todo, done, total, on_progress) -> bool:
        """Make chunks; whether all of them can be trusted, else `way` is now another."""
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
                    self._say({"way": plain_way(replace(way, batch=""))})
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
            found.close()  # what a pool has not begun is not needed any more
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
        said = {"failed": failed, "reason": reason, "batch": way.batch, "digest": _digest([theta, y])}
        content = save({"theta": theta, "y": y}, metadata={_HEADER: json.dumps(said)})
        with replacing(chunk_file(self.folder, number)) as place:
            place.write_bytes(content)

    def _known(self) -> set[int]:
        """The numbers of an observation, where a chunk tells."""
        for path in self.folder.glob("chunk-*.safetensors"):
            with contextlib.suppress(StorageError):  # one that is damaged is made again
                if width := _head(path).places["y"][0][1]:
                    return {width}
        return set()

    def finish(self, way, mine: range) -> SimulationSet | None:
        """Write the manifest, once all chunks are there; those that are not `mine` are looked at first."""
        if not all(chunk_file(self.folder, number).exists() for number in range(self.chunks)):
            return None
        entries: list[dict[str, Any]] = []
        for number in range(self.chunks):
            path = chunk_file(self.folder, number)
            if number not in mine and not self.has(number, way):
                return None
            said = _head(path, self._rows(number)).said
            entry = {"rows": self._rows(number), "failed": len(said.failed), "sha256": sha256_of(path)}
            entries.append(entry | ({"reason": said.reason} if said.reason else {}))
        whole = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()
        exact = not takes_key(self.simulator) and way.noisy is False
        self._say({"way": plain_way(way), "exact": exact, "sha256": whole, "chunks": entries})
        remove_drafts(self.folder, *(chunk_file(self.folder, number).name for number in range(self.chunks)))
        return read_set(self.folder)


def _in_threads(executor) -> bool:
    kind = type(executor).__name__
    return "Thread" in kind


# -- reading one ------------------------------------------------------------------------------------------------------


def is_set(source: Any) -> bool:
    """Whether `source` is a folder of simulations."""
    return isinstance(source, (str, os.PathLike)) and (Path(source).expanduser() / MANIFEST).is_file()


def read_set(folder: str | os.PathLike[str]) -> SimulationSet:
    """A set of simulations that is complete.

    Raises:
        StorageError: it is none, is damaged, or chunks are missing.
    """
    folder = Path(folder).expanduser()
    found = _manifest(folder)
    about, entries = found.said, found.chunks
    if entries is None:
        made = sum(1 for _ in folder.glob("chunk-*.safetensors"))
        raise StorageError(
            f"got {folder}, in which {made} of {-(-about.rows // about.chunk)} chunks were simulated; expected all; "
            "try the command that simulated them again"
        )
    for number, entry in enumerate(entries):
        path = chunk_file(folder, number)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise StorageError(
                f"got {folder} without {path.name} ({error.strerror}); expected all chunks; try the command that "
                "simulated them again"
            ) from None
        if size < 8 * entry.rows:  # of one parameter
            raise _damaged(path, f"{size:,} bytes for {entry.rows:,} rows")
    return SimulationSet(
        folder,
        rows=sum(entry.rows for entry in entries),
        failed=sum(entry.failed for entry in entries),
        reason=next((entry.reason for entry in entries if entry.reason), ""),
        sha256=found.sha256,
        exact=found.exact,
        problem=about.problem,
        names=tuple(about.names),
        y_names=tuple(about.y_names),
    )


def chunk_file(folder: Path, number: int) -> Path:
    """Where a chunk is."""
    return folder / f"chunk-{number:08d}.safetensors"


def _manifest(folder) -> _Manifest:
    try:
        return _Manifest.model_validate(read_json(folder / MANIFEST, _MOST_MANIFEST))
    except (OSError, ValueError) as error:
        raise StorageError(f"got {folder}, which holds no simulations that can be read ({reason_of(error)})") from None


def _damaged(path, words) -> StorageError:
    return StorageError(f"got {path}, which is damaged ({words}); expected simulations; try to simulate them again")


def _head(path, rows: int | None = None) -> _Chunk:
    """The head of a chunk of so many rows.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    try:
        with open_file(path) as stream:
            whole, size = os.fstat(stream.fileno()).st_size, int.from_bytes(stream.read(8), "little")
            if size > min(_MOST_HEADER, whole):
                raise ValueError(f"a header of {size:,} bytes")
            header = plain_values(stream.read(size))
        said = _Made.model_validate(plain_values(header["__metadata__"][_HEADER].encode()))
        places = {name: _place(_Array.model_validate(header[name]), 8 + size, whole) for name in ("theta", "y")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, reason_of(error)) from None
    count, ends = places["theta"][0][0], [start + 8 * shape[0] * shape[1] for shape, start in places.values()]
    if max(ends) != whole:
        raise _damaged(path, f"{whole:,} bytes instead of {max(ends):,}")
    if places["y"][0][0] != count or rows not in (None, count):
        raise _damaged(path, f"{count:,} rows of parameters and {places['y'][0][0]:,} of data")
    if any(not 0 <= row < count for row in said.failed) or len(set(said.failed)) != len(said.failed):
        raise _damaged(path, "rows that failed and are not there")
    return _Chunk(said, places)


def _place(array: _Array, start: int, whole: int) -> tuple[tuple[int, int], int]:
    (rows, width), (begin, end) = array.shape, array.data_offsets
    if min(rows, width, begin) < 0 or end - begin != 8 * rows * width or start + end > whole:
        raise ValueError(f"an array of shape ({rows}, {width}) at {begin} to {end}")
    return (rows, width), start + begin


def _mapped(path, name: str, rows: int | None = None) -> np.ndarray:
    """An array of a chunk, mapped from the disk."""
    return _array_at(path, _head(path, rows).places[name])


def _array_at(path, place) -> np.ndarray:
    shape, start = place
    return np.memmap(path, np.float64, "r", start, shape) if shape[0] * shape[1] else np.zeros(shape)


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
