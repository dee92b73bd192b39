"""The files of a simulation set: its manifest, and chunks of rows.

A folder may come from an untrusted source. Everything in it is validated, and a number of rows is accepted only after
it is checked against the size of the file.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from flowknife._files import open_file, plain_values, read_json
from flowknife.data._simulators import way_of
from flowknife.errors import StorageError, reason_of

MANIFEST = "simulations.json"
"""The manifest of a simulation set."""

FORMAT = 1
HEADER = "flowknife"
_MOST_MANIFEST = 2**26  # bytes; a chunk takes about 150
_MOST_HEADER = 2**26  # bytes; the header of a chunk lists its failed rows

# The types of all fields that are read; lists, as in JSON.


class _FileModel(pydantic.BaseModel, frozen=True, extra="ignore", strict=True, allow_inf_nan=False):
    """Base class; values of another type are errors."""


class Entry(_FileModel):
    """A chunk in the manifest."""

    rows: int = pydantic.Field(ge=1, lt=2**40)
    failed: int = pydantic.Field(ge=0)
    sha256: str
    reason: str = ""


class About(_FileModel):
    """Description of the simulations: the fields that are read; for equality all fields are compared."""

    rows: int = pydantic.Field(ge=1, lt=2**50)
    chunk: int = pydantic.Field(ge=1, lt=2**40)
    problem: str = ""
    names: list[str] = []
    y_names: list[str] = []


class Manifest(_FileModel):
    """A manifest; that of an incomplete set has no chunks."""

    simulations: Literal[1]
    about: dict[str, Any]
    way: dict[str, Any] | None = None
    exact: bool = False
    sha256: str = ""
    chunks: list[Entry] | None = None

    @property
    def description(self) -> About:
        return About.model_validate(self.about)

    @pydantic.model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        found = self.description
        if self.way is not None:
            way_of(self.way)
        if self.chunks is not None:
            rows = [entry.rows for entry in self.chunks]
            if not rows or sum(rows) != found.rows or set(rows[:-1]) - {found.chunk} or not 0 < rows[-1] <= found.chunk:
                raise ValueError("chunks of another number of rows")
        return self


class Made(_FileModel):
    """The metadata of a chunk."""

    failed: list[int]
    reason: str
    batch: str
    digest: str


class ArrayEntry(_FileModel):
    """An array in the header of a chunk."""

    dtype: Literal["F64"]
    shape: list[int] = pydantic.Field(min_length=2, max_length=2)
    data_offsets: list[int] = pydantic.Field(min_length=2, max_length=2)


@dataclass(frozen=True)
class Head:
    """The head of a chunk: its metadata, and the position of its arrays in the file."""

    metadata: Made
    places: dict[str, tuple[tuple[int, int], int]]  # by name, shape and first byte


def chunk_file(folder: Path, number: int) -> Path:
    """The path of a chunk."""
    return folder / f"chunk-{number:08d}.safetensors"


def manifest_of(folder) -> Manifest:
    try:
        return Manifest.model_validate(read_json(folder / MANIFEST, _MOST_MANIFEST))
    except (OSError, ValueError) as error:
        raise StorageError(f"got {folder}, which holds no simulations that can be read ({reason_of(error)})") from None


def damaged(path, words) -> StorageError:
    return StorageError(f"got {path}, which is damaged ({words}); expected simulations; try to simulate them again")


def head_of(path, rows: int | None = None) -> Head:
    """The head of a chunk with this number of rows.

    Raises:
        StorageError: it is missing or damaged.
    """
    try:
        with open_file(path) as stream:
            whole, size = os.fstat(stream.fileno()).st_size, int.from_bytes(stream.read(8), "little")
            if size > min(_MOST_HEADER, whole):
                raise ValueError(f"a header of {size:,} bytes")
            header = plain_values(stream.read(size))
        metadata = Made.model_validate(plain_values(header["__metadata__"][HEADER].encode()))
        places = {name: _place(ArrayEntry.model_validate(header[name]), 8 + size, whole) for name in ("theta", "y")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, reason_of(error)) from None
    count, ends = places["theta"][0][0], [start + 8 * shape[0] * shape[1] for shape, start in places.values()]
    if max(ends) != whole:
        raise damaged(path, f"{whole:,} bytes instead of {max(ends):,}")
    if places["y"][0][0] != count or rows not in (None, count):
        raise damaged(path, f"{count:,} rows of parameters and {places['y'][0][0]:,} of data")
    if any(not 0 <= row < count for row in metadata.failed) or len(set(metadata.failed)) != len(metadata.failed):
        raise damaged(path, "rows that failed and are not there")
    return Head(metadata, places)


def _place(array: ArrayEntry, start: int, whole: int) -> tuple[tuple[int, int], int]:
    (rows, width), (begin, end) = array.shape, array.data_offsets
    if min(rows, width, begin) < 0 or end - begin != 8 * rows * width or start + end > whole:
        raise ValueError(f"an array of shape ({rows}, {width}) at {begin} to {end}")
    return (rows, width), start + begin


def mapped(path, name: str, rows: int | None = None) -> np.ndarray:
    """An array of a chunk, mapped from the disk."""
    return array_at(path, head_of(path, rows).places[name])


def array_at(path, place) -> np.ndarray:
    shape, start = place
    return np.memmap(path, np.float64, "r", start, shape) if shape[0] * shape[1] else np.zeros(shape)


def digest_of(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
