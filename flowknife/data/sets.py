"""A set of simulations on disk: chunks of rows that are made once, by whichever process, and read as two arrays.

The folder holds

    simulations.json              what is simulated; once it is complete also the SHA-256 of every chunk
    prior.safetensors             the prior, where one is known
    chunk-00000042.safetensors    parameters and observations of some rows, with a checksum

Each chunk has a key of its own, derived from that of the set and from its number. So no chunk depends on who makes it,
when, or what was made before; and a folder that was left at any time is completed by doing the same again. Every file
is written next to its place and moved there.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowknife._files import open_file, read_file, replacing
from flowknife._types import Key, as_key
from flowknife.data._pools import Chunk, LostWorker, chunk_size
from flowknife.data._simulators import Outcome, Way, row_keys, takes_key
from flowknife.data.simulations import Here, Pooled, Report, seed_of
from flowknife.errors import InputError, StorageError

MANIFEST = "simulations.json"
"""What a set of simulations says of itself."""

PRIOR = "prior.safetensors"
"""The prior of a set of simulations."""

_FORMAT = 1
_HEADER = "flowknife"
_MOST_MANIFEST = 2**30  # bytes: a line for each chunk
_OPEN = 64  # chunks that are mapped at a time


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
        """The numbers of the rows that have an observation."""
        failed: list[np.ndarray] = []
        start = 0
        for entry, path in self._chunks():
            if entry["failed"]:
                failed.append(start + np.asarray(_about(path)["failed"], np.int64))
            start += entry["rows"]
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
            if not path.is_file() or _sha256(path) != entry["sha256"]:
                raise StorageError(f"got {path}, which is damaged; expected its checksum; try to simulate again")

    def _chunks(self):
        entries = _manifest(self.folder)["chunks"]
        return [(entry, chunk_file(self.folder, number)) for number, entry in enumerate(entries)]

    def _array(self, name):
        found = self._chunks()
        return ChunkedRows(tuple(path for _, path in found), tuple(entry["rows"] for entry, _ in found), name)


class ChunkedRows:
    """Rows of many files as one array, of which parts are read on demand.

    Args:
        paths: safetensors files.
        sizes: the rows of each.
        name: of the array in each file.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], name: str):
        self._ends = np.cumsum(sizes)
        self._mapped = functools.lru_cache(_OPEN)(lambda number: _mapped(paths[number], name))
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
        todo = [number for number in range(shard[0], job.chunks, shard[1]) if not job.has(number, way)]
        mine = len(range(shard[0], job.chunks, shard[1]))
        if job.run(runs, way, todo, (mine - len(todo)) * chunk, min(mine * chunk, rows), on_progress):
            break
    return job.finish(way)


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
            found = _manifest(self.folder).get("about", {})
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
        found = _manifest(self.folder).get("way")
        if found is not None:
            return Way(**found)
        first = self.made_of(0)
        way = runs.way(first.theta, first.keys)
        if way.noisy and first.keys[0] is None and _in_threads(executor):
            raise InputError(
                "got a simulator whose observations vary, without an argument key, in a pool of threads, which share "
                "their random numbers; expected a key, or processes; try def simulator(theta, key)"
            )
        way = replace(way, first=("", ""))
        self._say({"way": _plain_way(way)})
        return way

    def made_of(self, number: int) -> Chunk:
        """The parameters and keys of a chunk."""
        size = min(self.about["chunk"], self.about["rows"] - number * self.about["chunk"])
        theta_key, own = jax.random.split(jax.random.fold_in(self.key, number))
        return Chunk(number, self.draw(size, theta_key), row_keys(self.simulator, size, own))

    def has(self, number, way) -> bool:
        """Whether a chunk is there, whole, and made in this way."""
        try:
            said = _about(path := chunk_file(self.folder, number))
            arrays = [_mapped(path, name) for name in ("theta", "y")]
            return said["batch"] == way.batch and said["digest"] == _digest(arrays)
        except (OSError, StorageError, KeyError, ValueError):
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
                    self._say({"way": _plain_way(replace(way, batch=""))})
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
        widths = (_mapped(path, "y").shape[1] for path in self.folder.glob("chunk-*.safetensors"))
        return {next((width for width in widths if width), 0)} - {0}

    def finish(self, way) -> SimulationSet | None:
        """Write the manifest, once all chunks are there."""
        entries: list[dict[str, Any]] = []
        for number in range(self.chunks):
            path = chunk_file(self.folder, number)
            if not path.exists() or _about(path)["batch"] != way.batch:
                return None
            said = _about(path)
            size = min(self.about["chunk"], self.about["rows"] - number * self.about["chunk"])
            entry = {"rows": size, "failed": len(said["failed"]), "sha256": _sha256(path)}
            entries.append(entry | ({"reason": said["reason"]} if said["reason"] else {}))
        whole = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()
        exact = not takes_key(self.simulator) and way.noisy is False
        self._say({"way": _plain_way(way), "exact": exact, "sha256": whole, "chunks": entries})
        return read_set(self.folder)


def _in_threads(executor) -> bool:
    kind = type(executor).__name__
    return "Thread" in kind


def _plain_way(way: Way) -> dict[str, Any]:
    return {name: value for name, value in asdict(way).items() if name != "first"}


# -- reading one ------------------------------------------------------------------------------------------------------


def is_set(source: Any) -> bool:
    """Whether `source` is a folder of simulations."""
    return isinstance(source, (str, os.PathLike)) and (Path(source).expanduser() / MANIFEST).is_file()


def read_set(folder: str | os.PathLike[str]) -> SimulationSet:
    """A set of simulations that is complete.

    Raises:
        StorageError: it is none, or chunks are missing.
    """
    folder = Path(folder).expanduser()
    found = _manifest(folder)
    about = found.get("about", {})
    if "chunks" not in found:
        made = sum(1 for _ in folder.glob("chunk-*.safetensors"))
        chunks = -(-about.get("rows", 0) // max(about.get("chunk", 1), 1))
        raise StorageError(
            f"got {folder}, in which {made} of {chunks} chunks were simulated; expected all; try the command that "
            "simulated them again"
        )
    entries = found["chunks"]
    return SimulationSet(
        folder,
        rows=sum(entry["rows"] for entry in entries),
        failed=sum(entry["failed"] for entry in entries),
        reason=next((entry["reason"] for entry in entries if entry.get("reason")), ""),
        sha256=found["sha256"],
        exact=bool(found["exact"]),
        problem=about.get("problem", ""),
        names=tuple(about.get("names", ())),
        y_names=tuple(about.get("y_names", ())),
    )


def chunk_file(folder: Path, number: int) -> Path:
    """Where a chunk is."""
    return folder / f"chunk-{number:08d}.safetensors"


def _manifest(folder) -> dict[str, Any]:
    try:
        found = json.loads(read_file(folder / MANIFEST, _MOST_MANIFEST))
        if found["simulations"] != _FORMAT:
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"got {folder}, which holds no simulations that can be read ({error})") from None
    return found


def _header(path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin."""
    with open_file(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > _MOST_MANIFEST:
            raise StorageError(f"got {path}, which is damaged; expected simulations")
        return json.loads(stream.read(size)), 8 + size


def _about(path) -> dict[str, Any]:
    return json.loads(_header(path)[0]["__metadata__"][_HEADER])


def _mapped(path, name) -> np.ndarray:
    """An array of a chunk, mapped from the disk."""
    header, start = _header(path)
    shape, (begin, end) = tuple(header[name]["shape"]), header[name]["data_offsets"]
    if header[name]["dtype"] != "F64" or end - begin != 8 * int(np.prod(shape)):
        raise StorageError(f"got {path}, which is damaged; expected numbers in double precision")
    if not end > begin:
        return np.zeros(shape)
    return np.memmap(path, np.float64, "r", start + begin, shape)


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _sha256(path) -> str:
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
