"""A set of simulations on disk: chunks of rows from any number of processes, read as two arrays.

The folder holds

    simulations.json              a description; in a complete set also the SHA-256 of every chunk
    prior.safetensors             the prior, if it is known
    chunk-00000042.safetensors    parameters and observations of some rows, with a checksum
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowknife._files import sha256_of
from flowknife.data._chunks import MANIFEST, Entry, chunk_file, damaged, head_of, manifest_of, mapped
from flowknife.data._memory import room_in_memory
from flowknife.errors import StorageError

PRIOR = "prior.safetensors"
"""The prior of a set of simulations."""

_OPEN = 64  # memory-mapped chunks at a time


@dataclass(frozen=True)
class SimulationSet:
    """Pairs of parameters and observations on disk, which need not fit in memory.

    Attributes:
        folder: the folder.
        rows: number of simulations.
        failed: number of simulations without an observation.
        reason: reason of the first failure, or "".
        sha256: hash of all simulations; equal for equal sets.
        exact: whether the simulator is deterministic.
        problem: name of the problem, if it was one of `flowknife.problems`.
        names: names of the parameters.
        y_names: names of the data; () without names.
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
        """Indices of the rows that have an observation.

        Raises:
            StorageError: a chunk is damaged, or their list does not fit in memory.
        """
        if 8 * self.rows > room_in_memory():
            raise StorageError(f"got {self.folder} of {self.rows:,} rows; expected as many as have a place in memory")
        failed: list[np.ndarray] = []
        start = 0
        for entry, path in self._chunks():
            if entry.failed:
                failed.append(start + np.asarray(head_of(path, entry.rows).metadata.failed, np.int64))
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
            head_of(path, entry.rows)  # checks the size before the file is read
            if sha256_of(path) != entry.sha256:
                raise damaged(path, "its checksum is another")

    def _chunks(self) -> list[tuple[Entry, Path]]:
        entries = manifest_of(self.folder).chunks or []
        return [(entry, chunk_file(self.folder, number)) for number, entry in enumerate(entries)]

    def _array(self, name):
        found = self._chunks()
        return ChunkedRows(tuple(path for _, path in found), tuple(entry.rows for entry, _ in found), name)


class ChunkedRows:
    """Rows of many files as one array that is read on demand.

    Args:
        paths: safetensors files.
        sizes: number of rows in each file.
        name: name of the array in each file.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], name: str):
        self._ends = np.cumsum(sizes)
        self._mapped = functools.lru_cache(_OPEN)(lambda number: mapped(paths[number], name, sizes[number]))
        widths = (self._mapped(number).shape[1] for number in range(len(paths)))
        self.shape = (int(self._ends[-1]), next((width for width in widths if width), 0))  # 0 if a whole chunk failed
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
            chunk_rows = self._mapped(number)
            if chunk_rows.shape[1] not in (0, self.shape[1]):
                raise StorageError(
                    f"got chunks with rows of {self.shape[1]} and of {chunk_rows.shape[1]} numbers; expected one "
                    "length; try to simulate again"
                )
            if chunk_rows.shape[1]:
                found[part] = chunk_rows[flat[part] - (self._ends[number] - len(chunk_rows))]
        return found.reshape(*rows.shape, self.shape[1])


def is_set(source: Any) -> bool:
    """Whether `source` is a simulation set."""
    return isinstance(source, (str, os.PathLike)) and (Path(source).expanduser() / MANIFEST).is_file()


def read_set(folder: str | os.PathLike[str]) -> SimulationSet:
    """Read a complete set of simulations.

    Raises:
        StorageError: the folder is not a set, is damaged, or lacks chunks.
    """
    folder = Path(folder).expanduser()
    found = manifest_of(folder)
    about, entries = found.description, found.chunks
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
        if size < 8 * entry.rows:  # at least one parameter
            raise damaged(path, f"{size:,} bytes for {entry.rows:,} rows")
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
