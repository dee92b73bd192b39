"""A set of simulations on disk: chunks of rows that are made once, by whichever process, and read as two arrays.

The folder holds

    simulations.json              what is simulated; once it is complete also the SHA-256 of every chunk
    prior.safetensors             the prior, where one is known
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
                failed.append(start + np.asarray(head_of(path, entry.rows).said.failed, np.int64))
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
            head_of(path, entry.rows)  # before as much is read as the file is said to hold
            if sha256_of(path) != entry.sha256:
                raise damaged(path, "its checksum is another")

    def _chunks(self) -> list[tuple[Entry, Path]]:
        entries = manifest_of(self.folder).chunks or []
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
        self._mapped = functools.lru_cache(_OPEN)(lambda number: mapped(paths[number], name, sizes[number]))
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
    """Whether `source` is a folder of simulations."""
    return isinstance(source, (str, os.PathLike)) and (Path(source).expanduser() / MANIFEST).is_file()


def read_set(folder: str | os.PathLike[str]) -> SimulationSet:
    """A set of simulations that is complete.

    Raises:
        StorageError: it is none, is damaged, or chunks are missing.
    """
    folder = Path(folder).expanduser()
    found = manifest_of(folder)
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
